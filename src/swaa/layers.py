"""How a configuration names layers and heads: numbers from 0, layer patterns, and KV heads of layers."""

import re
from collections.abc import Iterable
from typing import Any

from swaa.registry import suggestion

_PATTERN = re.compile(r"1/(\d+)(?:@(\d+))?")
# Step and first layer.
_NAMED_PATTERNS = {"none": None, "odd": (2, 1), "even": (2, 0), "all": (1, 0)}


class ConfigError(ValueError):
    """A wrong configuration value; the message names the field, the value and the fix."""


def is_int(value: object) -> bool:
    """Tell whether a value is a number and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def numbers(name: str, values: Iterable[Any], kind: str = "layer") -> tuple[int, ...]:
    """Check numbers of layers (or of another `kind` of thing) and return them ascending.

    Raises:
        ConfigError: one is no number from 0 on, or comes twice.
    """
    found = tuple(values)
    for number in found:
        if not is_int(number) or number < 0:
            raise ConfigError(f"{name}: {number!r} is no {kind} number; {kind}s count from 0")
    if len(set(found)) != len(found):
        raise ConfigError(f"{name}={list(found)} names a {kind} twice")
    return tuple(sorted(found))


def heads_of_layers(name: str, values: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Read a mapping from layers to lists of KV heads, and return its pairs in order; layers without heads drop out.

    A layer may be text, since the keys of JSON are.

    Raises:
        ConfigError: it is no such mapping, or names a layer or a head twice.
    """
    try:
        named = dict(values)
    except (TypeError, ValueError):
        named = {0: None}
    if not all(isinstance(heads, Iterable) and not isinstance(heads, str) for heads in named.values()):
        raise ConfigError(f"{name}={values!r}: give a mapping from layers to lists of KV heads, such as {{3: [0, 2]}}")
    layers = [int(layer) if isinstance(layer, str) and layer.isdecimal() else layer for layer in named]
    numbers(name, layers)
    heads = [numbers(f"{name}, layer {layer}", of, "head") for layer, of in zip(layers, named.values(), strict=True)]
    return tuple(sorted((layer, of) for layer, of in zip(layers, heads, strict=True) if of))


def pattern(text: str) -> tuple[int, int] | None:
    """Return (step, first layer) of a layer pattern, None for "none".

    Raises:
        ConfigError: there is no such pattern.
    """
    if text in _NAMED_PATTERNS:
        return _NAMED_PATTERNS[text]
    match = _PATTERN.fullmatch(text)
    if not match or int(match[1]) < 1:
        raise ConfigError(
            f"full_layers={text!r}: no such pattern.{suggestion(text, _NAMED_PATTERNS)} Use 'none', 'odd', 'even', "
            "'all', '1/4' (every fourth layer, from 1), '1/4@3' (every fourth, from 3) or a list of layer numbers"
        )
    step = int(match[1])
    first = int(match[2]) if match[2] else min(1, step - 1)
    if first >= step:
        raise ConfigError(f"full_layers={text!r}: the first layer of '1/{step}@..' must be below {step}")
    return step, first


def check_depth(name: str, layers: Iterable[int], num_layers: int) -> None:
    """Check that a model has the layers.

    Raises:
        ConfigError: it lacks one.
    """
    if missing := [layer for layer in layers if layer >= num_layers]:
        raise ConfigError(f"{name}: the model has layers 0 to {num_layers - 1}, not {missing}")
