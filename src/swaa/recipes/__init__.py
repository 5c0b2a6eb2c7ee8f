"""Recipes: named adaptations, one YAML file each in this folder, with generation settings and their source."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swaa.config import ConfigError, SWAAConfig, read_structured
from swaa.registry import suggestion

FOLDER = Path(__file__).parent
CHAIN_OF_THOUGHT = ("none", "prompt", "thinking")


@dataclass(frozen=True)
class Recipe:
    """A named adaptation.

    Args:
        name: what it is called in tables.
        config: the adaptation.
        description: one line.
        generation: generation settings: `chain_of_thought`: "none", "prompt" (an instruction to reason first) or
            "thinking" (the chat template's thinking switch) (arXiv 2512.10411, method 4).
        provenance: where it comes from.
        plan: how the full layers were chosen, for a layer plan (`swaa.select.plan`): `method`, `scores`, .. .
    """

    name: str
    config: SWAAConfig
    description: str = ""
    generation: dict[str, Any] = field(default_factory=dict, hash=False)
    provenance: str = ""
    plan: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the generation settings."""
        if not isinstance(self.plan, Mapping):
            raise ConfigError(f"recipe {self.name!r}: plan is no mapping; leave it out, or let `swaa select` write it")
        if not isinstance(self.name, str) or not isinstance(self.generation, Mapping):
            raise ConfigError(
                f"recipe {self.name!r}: the name must be text, and generation a mapping such as "
                "{chain_of_thought: thinking}"
            )
        for key, value in self.generation.items():
            if key != "chain_of_thought":
                raise ConfigError(f"recipe {self.name}: unknown generation setting {key!r}; known: chain_of_thought")
            if value not in CHAIN_OF_THOUGHT:
                raise ConfigError(f"recipe {self.name}: chain_of_thought={value!r}; use one of {CHAIN_OF_THOUGHT}")

    @property
    def chain_of_thought(self) -> str:
        """How the model is made to reason: "none", "prompt" or "thinking"."""
        return self.generation.get("chain_of_thought", "none")

    def replace(self, **changes: Any) -> "Recipe":
        """Return the recipe with fields of its configuration changed."""
        return dataclasses.replace(self, config=self.config.replace(**changes))

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the recipe's file."""
        content = {"description": self.description, "config": self.config.to_dict()}
        content |= {"generation": dict(self.generation), "provenance": self.provenance}
        return content | ({"plan": dict(self.plan)} if self.plan else {})

    def to_yaml(self) -> str:
        """Return the recipe as its YAML file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=120)

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from the content of its file; a bare configuration is a recipe too.

        Raises:
            ConfigError: an unknown key or a wrong value.
        """
        if not isinstance(values, Mapping) or "config" not in values:
            return cls(name, SWAAConfig.from_dict(values))
        known = [f.name for f in dataclasses.fields(cls) if f.name != "name"]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"recipe {name}: unknown key {key!r}.{suggestion(key, known)} Known: {', '.join(known)}"
                )
        return cls(name, **{**values, "config": SWAAConfig.from_dict(values["config"])})


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str | Path) -> Recipe:
    """Load a shipped recipe by name, or a recipe, layer plan or configuration file (YAML or JSON) by path.

    Raises:
        ConfigError: there is no such recipe, or its content is wrong.
    """
    recipes = load_recipes(name)
    if len(recipes) != 1:
        raise ConfigError(f"{name} holds {len(recipes)} configurations where one recipe is needed")
    return recipes[0]


def load_recipes(name: str | Path) -> list[Recipe]:
    """Load a recipe as `load_recipe` does; a file with a list gives several.

    The list holds recipes with a `name` each, configurations, or settings of the reference project.

    Raises:
        ConfigError: there is no such recipe, or its content is wrong.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        content = read_structured(path)
        if isinstance(content, list):
            return [_from_list(path.stem, index, item) for index, item in enumerate(content)]
        return [Recipe.from_dict(path.stem, content)]
    if str(name) not in recipe_names():
        raise ConfigError(
            f"unknown recipe {str(name)!r}.{suggestion(name, recipe_names())} Known: {', '.join(recipe_names())}; "
            "or give a .yaml or .json file"
        )
    return [Recipe.from_dict(str(name), read_structured(FOLDER / f"{name}.yaml"))]


def _from_list(stem: str, index: int, item: Any) -> Recipe:
    if isinstance(item, Mapping) and "config" in item:
        item = dict(item)
        return Recipe.from_dict(item.pop("name", f"{stem}[{index}]"), item)
    return Recipe.from_dict(f"{stem}[{index}]", item)
