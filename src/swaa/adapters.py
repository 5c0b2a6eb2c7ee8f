"""PEFT adapters by their folders: their model, the adaptation that each was trained under, and how it was trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from swaa.config import ConfigError, SWAAConfig
from swaa.errors import ModelError, first_line
from swaa.recipes import Recipe

PEFT_FILE = "adapter_config.json"
# PEFT's own file drops what it does not know, so the adaptation lies in a file beside it.
ADAPTATION_FILE = "swaa_config.json"
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
        ModelError: there is no adapter, or no adaptation beside it, or one of the files is damaged.
    """
    path = Path(path).expanduser()
    base, stored = adapter_base(path), stored_adaptation(path)
    if base is None:
        raise ModelError(f"{path} holds no adapter: name a folder that `swaa train` wrote")
    if stored is None:
        raise ModelError(f"{path} stores no adaptation: {ADAPTATION_FILE} is missing")
    try:
        config = SWAAConfig.from_dict(stored)
    except ConfigError as error:
        raise ModelError(f"{path / ADAPTATION_FILE} is no adaptation: {error}") from error
    return Adapter(path, base, config, _training(path))


def adapter_base(path: str | Path) -> str | None:
    """Return the name of the model that the PEFT adapter in a local folder belongs to, None if there is no adapter.

    Raises:
        ModelError: the adapter does not tell, or its file is damaged.
    """
    file = Path(path) / PEFT_FILE
    if not file.is_file():
        return None
    base = _read(file).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{file} does not name its model: put it there as base_model_name_or_path")
    return str(base)


def add_adapter(model: Any, path: str | Path, name: str = "default") -> Any:
    """Load a PEFT adapter onto a model that may have others already.

    Args:
        model: a model of transformers, or a `PeftModel`.
        path: folder of the adapter.
        name: what PEFT calls it; no dots.

    Returns:
        the `PeftModel`, in eval mode.

    Raises:
        ModelError: PEFT is not installed, or the adapter does not fit.
    """
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise ModelError("an adapter needs peft: pip install 'swaa[peft]'") from error
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(path), adapter_name=name)
        else:
            model = PeftModel.from_pretrained(model, str(path), adapter_name=name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the adapter {str(path)!r}: {first_line(error)}") from error
    return model.eval()


def stored_adaptation(folder: str | Path) -> dict[str, Any] | None:
    """Read the adaptation beside an adapter in a local folder, None if there is none.

    Raises:
        ModelError: the file is damaged.
    """
    file = Path(folder) / ADAPTATION_FILE
    return _read(file) if file.is_file() else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {first_line(error)}; restore it from where the adapter is") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object: restore it from where the adapter is")
    return content


def _training(path: Path) -> str:
    # A checkpoint lies in a folder of its run.
    files = [folder / _RECORD for folder in (path, *path.resolve().parents[:2])]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return "training not recorded"
    record = _read(file)
    try:
        settings = record["settings"]
        steps = f"{record['steps']} steps" if "steps" in record else "unfinished"
        rank = f"LoRA of rank {settings['lora']['rank']} on {', '.join(settings['lora']['targets'])}"
        loss = settings.get("objective", {}).get("loss", "sft")
        return f"{steps} on {record['examples']} samples, loss {loss}, {rank}: {record['command']}"
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"{file} is no record of `swaa train` ({reason}): restore it, or move it away") from error
