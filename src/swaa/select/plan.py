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
from swaa.select.problem import Unit, unit_name, unit_of

FORMAT = 1


@dataclass(frozen=True)
class LayerPlan:
    """Chosen full layers or KV heads, and all that is needed to choose them again.

    The file is a recipe (`config` holds the recipe with `full_layers` and `full_heads`), so `--recipe plan.json`,
    `load_recipe` and `SWAAConfig.load` take it, and `full_layers="plan.json"` its layers.

    Attributes:
        config: the recipe with the chosen layers or heads full.
        layers: the layers that are full as a whole, ascending.
        scores: of every layer, or layer and KV head, that can slide; what they are depends on the method
            (`swaa.select`).
        method: name of the selector in `swaa.select.SELECTORS`.
        budget: how many layers, or heads, might stay full.
        recipe: name of the recipe under which the layers were chosen.
        calibration: source, length, samples, seed and fingerprint of the data.
        model: name of the model.
        model_revision: what tells its weights from others (`swaa.results.model_revision`).
        measured: NLL and accuracy on the calibration data and on held-out samples (`curve.csv`'s columns).
        passes: prompts that were scored.
        seconds: that the choice took.
        environment: versions and hardware.
        command: that wrote it.
        unit: "layers" or "heads", what was chosen.
    """

    config: SWAAConfig
    layers: tuple[int, ...]
    scores: dict[Unit, float]
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
    unit: str = "layers"

    def to_recipe(self, name: str = "plan") -> Recipe:
        """Return the plan as a recipe."""
        facts = {"format": FORMAT} | dataclasses.asdict(self)
        del facts["config"]
        facts["layers"] = list(self.layers)
        # JSON has no numbers as keys.
        facts["scores"] = {unit_name(unit): score for unit, score in self.scores.items()}
        what = f"full {'KV heads' if self.unit == 'heads' else 'layers'}"
        return Recipe(
            name,
            self.config,
            description=f"{self.budget} {what} chosen by {self.method} for {self.model}",
            provenance=self.command,
            plan=facts,
        )

    @property
    def chosen(self) -> tuple[Unit, ...]:
        """What was chosen: layers, or pairs of a layer and a KV head."""
        if self.unit == "layers":
            return self.layers
        return tuple(
            unit
            for unit in self.scores
            if not isinstance(unit, int) and (unit[0] in self.layers or unit[1] in self.full_heads.get(unit[0], ()))
        )

    @property
    def full_heads(self) -> dict[int, tuple[int, ...]]:
        """The full KV heads of layers that slide."""
        return dict(self.config.full_heads)

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
        names = {field.name for field in dataclasses.fields(cls)} - {"config", "unit"}
        if not isinstance(facts, Mapping) or not names <= facts.keys():
            raise ConfigError(f"{path} is no layer plan: let `swaa select` write one")
        if facts.get("format") != FORMAT:
            raise ConfigError(
                f"{path} is a layer plan of format {facts.get('format')}, and this version reads {FORMAT}"
            )
        known = {name: facts[name] for name in names} | {"unit": facts.get("unit", "layers")}
        known["layers"] = tuple(known["layers"])
        known["scores"] = {unit_of(name): score for name, score in known["scores"].items()}
        plan = cls(SWAAConfig.from_dict(content), **known)
        if plan.config.full_layers != plan.layers:
            shown = json.dumps(list(plan.layers))
            raise ConfigError(f"{path}: config.full_layers is not plan.layers {shown}; one of them was edited by hand")
        return plan
