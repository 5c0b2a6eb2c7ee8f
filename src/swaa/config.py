"""What an adaptation is: one frozen configuration, resolved against a model's depth into one rule a layer."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swaa.layers import ConfigError, check_depth, heads_of_layers, is_int, numbers, pattern
from swaa.registry import suggestion

__all__ = ["ConfigError", "LayerRule", "SWAAConfig", "load_settings", "read_structured"]

# The same things in the setting files of github.com/yuyijiong/sliding-window-attention-adaptation, the reference.
REFERENCE_NAMES = {
    "sliding_window_size": "window",
    "keep_first": "sinks",
    "force_fa_decode": "fa_decode",
    "non_sliding_layers": "full_layers",
}
_FILES = (".json", ".yaml", ".yml")


@dataclass(frozen=True)
class LayerRule:
    """The visibility rule of one layer; `swaa.mask.visible` is its meaning.

    Args:
        window: tokens a sliding row sees, itself included; None: plain causal, the other fields have no effect.
        sinks: first tokens that every row sees.
        fa_decode: rows of generated tokens are dense (see everything).
        dense_tail: the last prompt rows that are dense.
        full_heads: KV heads, with their query heads, that are plain causal all the same.
    """

    window: int | None = None
    sinks: int = 0
    fa_decode: bool = False
    dense_tail: int = 0
    full_heads: tuple[int, ...] = ()

    def parts(self, kv_heads: int) -> tuple[tuple[tuple[int, ...], "LayerRule"], ...]:
        """Divide a layer's KV heads by the rule they follow: pairs of heads and a rule without `full_heads`.

        Args:
            kv_heads: KV heads of the layer.

        Raises:
            ConfigError: `full_heads` names a head that the layer does not have, or all of them.
        """
        if not self.full_heads:
            return ((tuple(range(kv_heads)), self),)
        if missing := [head for head in self.full_heads if head >= kv_heads]:
            raise ConfigError(f"the layer has KV heads 0 to {kv_heads - 1}, not {missing}")
        sliding = tuple(head for head in range(kv_heads) if head not in self.full_heads)
        if not sliding:
            raise ConfigError(f"these are all {kv_heads} KV heads of the layer: name it in full_layers instead")
        return (sliding, dataclasses.replace(self, full_heads=())), (self.full_heads, LayerRule())


@dataclass(frozen=True)
class SWAAConfig:
    """A sliding window attention adaptation (arXiv 2512.10411, section 3, and our dense tail).

    Values are checked when the object is made, layer numbers when it meets a model (`resolve`). Compares by value.

    Args:
        window: tokens that a sliding row sees, itself included. None: full attention, nothing else may be set.
        sinks: the first tokens of a row ("keep first"), visible to every later row.
        full_layers: layers that keep full attention: a list of layer numbers from 0, or a pattern: `"none"`, `"odd"`
            (1, 3, 5, ..), `"even"`, `"all"`, `"1/4"` (every fourth, from layer 1 as in the paper), `"1/4@3"` (every
            fourth, from layer 3); or the path of a layer plan of `swaa select` (`"plan.json"`), whose layers are read.
        fa_decode: rows of generated tokens see everything: True, False, or a list of the layers where they do.
        dense_tail: the last prompt rows that see everything (the question, say).
        release_kv: layers without FA decode release the keys and values that no later row can see.
        backend: the attention implementation, by its name in `swaa.attention.BACKENDS`; `"auto"` picks one.
        full_heads: KV heads that keep full attention in layers that slide, each with its query heads: a mapping from
            layers to lists of heads, `{3: [0, 2], 7: [1]}`. Held as pairs, `dict(config.full_heads)` is the mapping.

    Raises:
        ConfigError: a value is wrong; the message names the field, the value and the fix.
    """

    window: int | None = None
    sinks: int = 0
    full_layers: tuple[int, ...] | str = ()
    fa_decode: bool | tuple[int, ...] = False
    dense_tail: int = 0
    release_kv: bool = True
    backend: str = "auto"
    full_heads: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        """Normalise lists to tuples and check every value."""
        if isinstance(self.full_layers, str | Path) and Path(self.full_layers).suffix in _FILES:
            object.__setattr__(self, "full_layers", _layers_of_file(Path(self.full_layers)))
        for name in ("full_layers", "fa_decode"):
            value = getattr(self, name)
            if isinstance(value, Iterable) and not isinstance(value, str):
                object.__setattr__(self, name, numbers(name, value))
        object.__setattr__(self, "full_heads", heads_of_layers("full_heads", self.full_heads))
        if self.fa_decode == ():
            object.__setattr__(self, "fa_decode", False)
        self._check()

    def _check(self) -> None:
        if self.window is not None and (not is_int(self.window) or self.window < 1):
            raise ConfigError(
                f"window={self.window!r}: give the number of visible tokens, 1 or more (the token itself counts), "
                "or None for full attention"
            )
        for name in ("sinks", "dense_tail"):
            value = getattr(self, name)
            if not is_int(value) or value < 0:
                raise ConfigError(f"{name}={value!r}: give a number of tokens, 0 or more")
        if isinstance(self.full_layers, str):
            pattern(self.full_layers)
        elif not isinstance(self.full_layers, tuple):
            raise ConfigError(f"full_layers={self.full_layers!r}: give a list of layer numbers or a pattern like 'odd'")
        if not isinstance(self.fa_decode, bool | tuple):
            raise ConfigError(f"fa_decode={self.fa_decode!r}: give true, false or a list of layer numbers")
        if not isinstance(self.release_kv, bool):
            raise ConfigError(f"release_kv={self.release_kv!r}: give true or false")
        if not isinstance(self.backend, str):
            raise ConfigError(f"backend={self.backend!r}: give a backend's name, or 'auto'")
        if self.window is None:
            for name in ("sinks", "full_layers", "full_heads", "fa_decode", "dense_tail"):
                if getattr(self, name) not in (0, (), "none", False):
                    raise ConfigError(
                        f"{name}={self.to_dict()[name]!r} has no effect without a window (window=None is full "
                        f"attention): set window, or leave {name} out"
                    )

    def resolve(self, num_layers: int) -> tuple[LayerRule, ...]:
        """Give the rule of every layer of a model with `num_layers` layers.

        Raises:
            ConfigError: a layer is named that the model does not have, or for two things that exclude each other.
        """
        full = set(self.full_layer_numbers(num_layers))
        if isinstance(self.fa_decode, tuple):
            check_depth("fa_decode", self.fa_decode, num_layers)
            if useless := sorted(full & set(self.fa_decode)):
                raise ConfigError(
                    f"fa_decode={list(self.fa_decode)}: layers {useless} are in full_layers and see everything "
                    "anyway: take them out of one of the two"
                )
        heads = dict(self.full_heads)
        check_depth("full_heads", heads, num_layers)
        if useless := sorted(full & heads.keys()):
            raise ConfigError(
                f"full_heads={self.to_dict()['full_heads']}: layers {useless} are in full_layers, where every head is "
                "full: take them out of one of the two"
            )
        rules = []
        for layer in range(num_layers):
            if self.window is None or layer in full:
                rules.append(LayerRule())
            else:
                fa_decode = self.fa_decode if isinstance(self.fa_decode, bool) else layer in self.fa_decode
                rules.append(LayerRule(self.window, self.sinks, fa_decode, self.dense_tail, heads.get(layer, ())))
        return tuple(rules)

    def full_layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """Resolve `full_layers` against a model's depth.

        A list in even steps of two and more, as the reference project's settings have it for every model (1, 3, .. 47),
        may run past the depth: of it those layers count that there are.

        Raises:
            ConfigError: a layer is named that the model does not have.
        """
        if isinstance(self.full_layers, str):
            found = pattern(self.full_layers)
            if found and found[1] >= num_layers:
                raise ConfigError(
                    f"full_layers={self.full_layers!r} starts at layer {found[1]}, but the model has layers "
                    f"0 to {num_layers - 1}"
                )
            return tuple(range(found[1], num_layers, found[0])) if found else ()
        layers = self.full_layers
        step = layers[1] - layers[0] if len(layers) > 2 else 0
        if step > 1 and layers == tuple(range(layers[0], layers[-1] + 1, step)) and layers[0] < num_layers:
            return tuple(layer for layer in layers if layer < num_layers)
        check_depth("full_layers", layers, num_layers)
        return layers

    def replace(self, **changes: Any) -> "SWAAConfig":
        """Return a copy with some fields changed (checked again)."""
        _check_keys(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dict (lists, no tuples) that `from_dict` and JSON or YAML take back to an equal object."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        # Text, so that the dict itself is the same after a trip through JSON.
        return plain | {"full_heads": {str(layer): list(heads) for layer, heads in self.full_heads}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SWAAConfig":
        """Build a configuration from a plain dict, ours, a recipe's or layer plan's, or the reference project's.

        Of the reference's settings a null window means full attention whatever else is set.

        Raises:
            ConfigError: not a mapping, an unknown key, or a wrong value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a configuration is a mapping of fields, not {type(values).__name__}")
        if "swaa_config" in values:
            return cls.from_dict(values["swaa_config"])
        if "config" in values:  # a recipe, or a layer plan
            return cls.from_dict(values["config"])
        if REFERENCE_NAMES.keys() & values.keys():
            return cls._from_reference(values)
        _check_keys(values)
        return cls(**values)

    @classmethod
    def _from_reference(cls, values: Mapping[str, Any]) -> "SWAAConfig":
        if mixed := sorted(values.keys() - REFERENCE_NAMES.keys()):
            hint = ", ".join(f"{old} -> {new}" for old, new in REFERENCE_NAMES.items())
            raise ConfigError(f"{mixed} beside the reference project's names: use one set of names ({hint})")
        renamed = {REFERENCE_NAMES[key]: value for key, value in values.items()}
        if renamed.get("window") is None:
            return cls()
        return cls(**renamed | {"full_layers": renamed.get("full_layers") or ()})

    def save(self, path: str | Path) -> None:
        """Write the configuration to a `.json`, `.yaml` or `.yml` file."""
        path = Path(path)
        dump = (
            yaml.safe_dump(self.to_dict(), sort_keys=False) if _is_yaml(path) else json.dumps(self.to_dict(), indent=2)
        )
        path.write_text(dump.rstrip("\n") + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "SWAAConfig":
        """Read one configuration from a JSON or YAML file.

        Raises:
            ConfigError: the file holds no configuration, or several (`load_settings` reads those).
        """
        settings = load_settings(path)
        if len(settings) != 1:
            raise ConfigError(f"{path} holds {len(settings)} configurations: read it with swaa.config.load_settings")
        return settings[0]


def load_settings(path: str | Path) -> list[SWAAConfig]:
    """Read all configurations of a JSON or YAML file: one mapping, or a list as in the reference's setting files.

    Raises:
        ConfigError: the file does not exist, is neither JSON nor YAML, or a configuration in it is wrong.
    """
    content = read_structured(path)
    return [SWAAConfig.from_dict(item) for item in (content if isinstance(content, list) else [content])]


def read_structured(path: str | Path) -> Any:
    """Read a JSON or YAML file.

    Raises:
        ConfigError: the file does not exist or does not parse.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return yaml.safe_load(text) if _is_yaml(path) else json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid {'YAML' if _is_yaml(path) else 'JSON'}: {error}") from error


def _is_yaml(path: Path) -> bool:
    return path.suffix in (".yaml", ".yml")


def _layers_of_file(path: Path) -> tuple[int, ...] | str:
    """Return the full layers of a layer plan, a recipe or a configuration file."""
    content = read_structured(path)
    if not isinstance(content, Mapping):
        raise ConfigError(f"full_layers={str(path)!r} holds no layer plan: name a file that `swaa select` wrote")
    return SWAAConfig.from_dict(content).full_layers


def _check_keys(values: Mapping[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(SWAAConfig)]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown field {key!r}.{suggestion(key, known)} Known: {', '.join(known)}")
