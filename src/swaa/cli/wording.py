"""How adaptations, layers and numbers are written in the output."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from swaa.config import SWAAConfig

_MOST_HEADS = 8
_UNITS = ("", "k", "M", "G", "T", "P", "E")


def short_form(config: SWAAConfig) -> str:
    """Describe an adaptation in a few words, such as `window 2048, 10 sinks, odd layers full, FA decode`."""
    if config.window is None:
        parts = ["full attention"]
    else:
        parts = [f"window {config.window}"]
        parts += [f"{config.sinks} sink{'s' * (config.sinks != 1)}"] if config.sinks else []
        if config.full_layers not in ((), "none"):
            which = config.full_layers
            parts.append(f"{which} layers full" if isinstance(which, str) else f"layers {_join(which)} full")
        parts += [f"{_heads(config)} full"] if config.full_heads else []
        if config.fa_decode:
            some = isinstance(config.fa_decode, tuple)
            parts.append(f"FA decode on layers {_join(config.fa_decode)}" if some else "FA decode")
        parts += [f"dense tail {config.dense_tail}"] if config.dense_tail else []
    return ", ".join(parts + ([f"backend {config.backend}"] if config.backend != "auto" else []))


def _heads(config: SWAAConfig) -> str:
    """Name the full heads, or count them where they are many."""
    count = sum(len(heads) for _, heads in config.full_heads)
    return f"KV heads {head_list(config)}" if count <= _MOST_HEADS else f"{count} KV heads"


def head_list(config: SWAAConfig) -> str:
    """Write the full heads of a configuration as `--full-heads` takes them: `3:0,2,7:1`."""
    return ",".join(f"{layer}:{_join(heads)}" for layer, heads in config.full_heads)


def _join(layers: Any) -> str:
    return ",".join(map(str, layers))


def layer_ranges(numbers: Sequence[int]) -> str:
    """Write ascending layer numbers in short: `0-6, 8`, or `1, 3, ..., 29` for an even step."""
    steps = {b - a for a, b in pairwise(numbers)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def quantity(value: float | None, unit: str = "") -> str:
    """Write a number with three digits and a decimal prefix, such as `189 MB`; None is unknown."""
    if value is None:
        return "unknown"
    power = 0
    while value >= 999.5 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}{unit}".rstrip()


def billions(parameters: int) -> str:
    """Write a number of parameters as the field does, in billions: `4.02B`."""
    return quantity(parameters).replace(" ", "").replace("G", "B")
