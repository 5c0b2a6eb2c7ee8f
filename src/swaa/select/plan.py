"""The layer plan: the file that selection writes. It is a recipe, with a section `plan` that says how it came about."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swaa.config import ConfigError, SWAAConfig, read_structured
from swaa.recipes import Recipe
from swaa.results import command_line, environment, replace_json

FORMAT = 1


@dataclass(frozen=True)
class LayerPlan:
    """Chosen full layers, and all that is needed to choose them again.

    The file is a recipe (`config` holds the recipe with `full_layers`), so `--recipe plan.json`, `load_recipe`,
    `SWAAConfig.load` and `full_layers="plan.json"` take it.

    Attributes:
        config: the recipe with the chosen layers full.
        layers: these layers, ascending.
        scores: of every layer that can slide, by its number; what they are depends on the method (`swaa.select`).
        method: name of the selector in `swaa.select.SELECTORS`.
        budget: how many layers might stay full.
        recipe: name of the recipe under which the layers were chosen.
        calibration: source, length, samples, seed and fingerprint of the data.
        model: name of the model.
        model_revision: what tells its weights from others (`swaa.results.model_revision`).
        measured: NLL and accuracy on the calibration data and on held-out samples (`curve.csv`'s columns).
        passes: prompts that were scored.
        seconds: that the choice took.
        environment: versions and hardware.
        command: that wrote it.
    """

    config: SWAAConfig
    layers: tuple[int, ...]
    scores: dict[int, float]
    method: str
    budget: int
    recipe: str
    calibration: dict[str, Any]
    model: str
    model_revision: str
    measured: dict[str, Any] = field(default_factory=dict)
    passes: int = 0
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=environment)
    command: str = field(default_factory=command_line)

    def to_recipe(self, name: str = "plan") -> Recipe:
        """Return the plan as a recipe."""
        facts = {"format": FORMAT} | dataclasses.asdict(self)
        del facts["config"]
        facts["layers"] = list(self.layers)
        # JSON has no numbers as keys.
        facts["scores"] = {str(layer): score for layer, score in self.scores.items()}
        return Recipe(
            name,
            self.config,
            description=f"{len(self.layers)} full layers chosen by {self.method} for {self.model}",
            provenance=self.command,
            plan=facts,
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON; a reader finds an old file or the new one, never a part."""
        replace_json(Path(path), self.to_recipe().to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "LayerPlan":
        """Read a layer plan.

        Raises:
            ConfigError: the file cannot be read, or is no layer plan.
        """
        content = read_structured(path)
        facts = content.get("plan") if isinstance(content, Mapping) else None
        names = {field.name for field in dataclasses.fields(cls)} - {"config"}
        if not isinstance(facts, Mapping) or not names <= facts.keys():
            raise ConfigError(f"{path} is no layer plan: let `swaa select` write one")
        if facts.get("format") != FORMAT:
            raise ConfigError(
                f"{path} is a layer plan of format {facts.get('format')}, and this version reads {FORMAT}"
            )
        known = {name: facts[name] for name in names}
        known["layers"] = tuple(known["layers"])
        known["scores"] = {int(layer): score for layer, score in known["scores"].items()}
        plan = cls(SWAAConfig.from_dict(content), **known)
        if plan.config.full_layers != plan.layers:
            shown = json.dumps(list(plan.layers))
            raise ConfigError(f"{path}: config.full_layers is not plan.layers {shown}; one of them was edited by hand")
        return plan
