"""Trained adapters by their folders: the adaptation that each was trained under, and how it was trained."""

import json
from dataclasses import dataclass
from pathlib import Path

from swaa.config import SWAAConfig
from swaa.models import ModelError, adapter_base
from swaa.recipes import Recipe
from swaa.storage import ADAPTATION_FILE, stored_adaptation

_RECORD = "train.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter in a local folder.

    Args:
        path: the folder.
        base: name of the model that it belongs to.
        config: the adaptation that it was trained under.
        training: how, in one line.
    """

    path: Path
    base: str
    config: SWAAConfig
    training: str

    @property
    def name(self) -> str:
        """What it is called in tables: its folder."""
        return self.path.resolve().name

    @property
    def key(self) -> str:
        """What PEFT calls it, which does not take every name."""
        return self.name.replace(".", "-")

    def recipes(self) -> list[tuple[Recipe, str | None]]:
        """Return its rows of a comparison: recipes, each with the `key` of the adapter that is on, None for none."""
        return [
            (Recipe(f"{self.name} untrained", self.config, f"what {self.name} was trained under"), None),
            (Recipe(self.name, self.config, self.training), self.key),
            (Recipe(f"{self.name} full", SWAAConfig(), f"{self.name} under full attention"), self.key),
        ]


def read_adapter(path: str | Path) -> Adapter:
    """Read what is beside the weights of an adapter that `swaa train` or `swaa.save` wrote.

    Raises:
        ModelError: there is no adapter, or no adaptation beside it.
    """
    path = Path(path).expanduser()
    base, stored = adapter_base(path), stored_adaptation(path)
    if base is None:
        raise ModelError(f"{path} holds no adapter: name a folder that `swaa train` wrote")
    if stored is None:
        raise ModelError(f"{path} stores no adaptation: {ADAPTATION_FILE} is missing")
    return Adapter(path, base, SWAAConfig.from_dict(stored), _training(path))


def _training(path: Path) -> str:
    # A checkpoint lies in a folder of its run.
    files = [folder / _RECORD for folder in (path, *path.resolve().parents[:2])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return "training not recorded"
    record = json.loads(file.read_text(encoding="utf-8"))
    settings = record["settings"]
    steps = f"{record['steps']} steps" if "steps" in record else "unfinished"
    rank = f"LoRA of rank {settings['lora']['rank']} on {', '.join(settings['lora']['targets'])}"
    loss = settings.get("objective", {}).get("loss", "sft")
    return f"{steps} on {record['examples']} samples, loss {loss}, {rank}: {record['command']}"
