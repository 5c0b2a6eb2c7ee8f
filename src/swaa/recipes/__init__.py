"""Recipes: named adaptations, one file each in this folder, with generation settings and their source.

Layer plans of `swaa select` for one model are recipes too (JSON, as it writes them); they refuse other models.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swaa.config import ConfigError, SWAAConfig, read_structured
from swaa.registry import suggestion

FOLDER = Path(__file__).parent
_FILES = (".yaml", ".json")
# What tells models from others for which layers were not chosen.
_SHAPE = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
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
        plan: how the full layers were chosen, for a layer plan (`swaa.select.plan`): `method`, `scores`, .., and for
            which model: its name in `model`, and in `shape` what `model_shape` says about it.
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
        shape = self.plan.get("shape")
        if shape is not None and not isinstance(shape, Mapping):
            raise ConfigError(
                f"recipe {self.name!r}: the plan's shape is {shape!r}, and not a mapping such as "
                "{model_type: llama, num_hidden_layers: 30}; leave it out, or let `swaa select` write it"
            )
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
        """Return the recipe with fields of its configuration changed; with other layers it is no plan any more."""
        plan = {} if {"full_layers", "full_heads"} & changes.keys() else self.plan
        return dataclasses.replace(self, config=self.config.replace(**changes), plan=plan)

    def check_model(self, model_config: Any) -> None:
        """Refuse a model for which the layers were not chosen; recipes that are no layer plans fit any.

        Args:
            model_config: the model's configuration of transformers, a composite one too.

        Raises:
            ConfigError: the recipe is a layer plan for a model of another shape.
        """
        chosen = self.plan.get("shape")
        if chosen and chosen != (found := model_shape(model_config)):
            raise ConfigError(
                f"recipe {self.name!r} has layers chosen for {self.plan.get('model')} ({_words(chosen)}), and this is "
                f"another model ({_words(found)}): let `swaa select` choose its layers, or name them by full_layers "
                "(--full-layers) if you mean them all the same"
            )

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


def recipes_to_yaml(recipes: Sequence[Recipe]) -> str:
    """Return recipes as one YAML file that `load_recipes` reads: of several a list, with a `name` in each."""
    if len(recipes) == 1:
        return recipes[0].to_yaml()
    named = [{"name": recipe.name, **recipe.to_dict()} for recipe in recipes]
    return yaml.safe_dump(named, sort_keys=False, width=120)


def model_shape(model_config: Any) -> dict[str, Any]:
    """Return what a layer plan remembers of its model: family and sizes, None where a family has no such size."""
    text = model_config.get_text_config()
    return {name: getattr(text, name, None) for name in _SHAPE}


def _words(shape: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(_shipped())


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in FOLDER.iterdir() if path.suffix in _FILES}


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
        try:
            if isinstance(content, list):
                return [_from_list(path.stem, index, item) for index, item in enumerate(content)]
            return [Recipe.from_dict(path.stem, content)]
        except ConfigError as error:
            # A recipe's name may be that of several files, or of none.
            raise ConfigError(f"{path}: {error}") from error
    shipped = _shipped()
    if str(name) not in shipped:
        raise ConfigError(
            f"unknown recipe {str(name)!r}.{suggestion(name, recipe_names())} Known: {', '.join(recipe_names())}; "
            "or give a .yaml or .json file"
        )
    return [Recipe.from_dict(str(name), read_structured(shipped[str(name)]))]


def _from_list(stem: str, index: int, item: Any) -> Recipe:
    if isinstance(item, Mapping) and "config" in item:
        item = dict(item)
        return Recipe.from_dict(item.pop("name", f"{stem}[{index}]"), item)
    return Recipe.from_dict(f"{stem}[{index}]", item)
