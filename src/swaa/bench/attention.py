"""One layer's attention by length: our backends beside the peers, and the floor of the same arithmetic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from swaa.bench.floors import Floors
from swaa.bench.implementations import IMPLEMENTATIONS, Call, Case, Implementation
from swaa.bench.record import Row
from swaa.bench.timing import FAILED, Effort, attempt, measure, release
from swaa.config import LayerRule
from swaa.cost import attention_heads, visible_pairs
from swaa.errors import ModelError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "implementation",
    "mask",
    "pass",
    "batch",
    "length",
    "ms",
    "ms_low",
    "ms_high",
    "repeats",
    "tflops",
    "floor_ms",
    "ratio",
    "peak_mb",
    "first_s",
    "note",
)
# Products of a forward pass, and with the backward pass: two, and five more.
PASSES = {"forward": 1.0, "forward+backward": 3.5}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        device: where.
        dtype: of the inputs.
        heads: query heads, KV heads and head dim.
        rule: what a sliding row sees.
        lengths: tokens.
        batches: sequences.
        implementations: names in `IMPLEMENTATIONS`.
        passes: names in `PASSES`.
    """

    device: torch.device
    dtype: torch.dtype
    heads: tuple[int, int, int]
    rule: LayerRule
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    implementations: tuple[str, ...] = tuple(IMPLEMENTATIONS)
    passes: tuple[str, ...] = tuple(PASSES)

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.implementations:
            IMPLEMENTATIONS[name]
        if unknown := [name for name in self.passes if name not in PASSES]:
            raise ValueError(f"unknown pass {unknown[0]!r}; known: {', '.join(PASSES)}")

    def missing(self) -> dict[str, str]:
        """Return why implementations cannot run here, by name."""
        reasons = {
            n: IMPLEMENTATIONS[n].unavailable(self.device, self.dtype, self.heads[2]) for n in self.implementations
        }
        return {name: reason for name, reason in reasons.items() if reason}

    @property
    def count(self) -> int:
        """Number of rows: one for each missing implementation."""
        missing = len(self.missing())
        return missing + len(self.lengths) * len(self.batches) * len(self.passes) * (
            len(self.implementations) - missing
        )


def heads_of(model_config: Any) -> tuple[int, int, int]:
    """Return query heads, KV heads and head dim of a model.

    Raises:
        ModelError: its attention is no plain one.
    """
    text = model_config.get_text_config()
    if (heads := attention_heads(text)) is None:
        raise ModelError(f"{text.model_type}: the heads are not all alike, or no plain ones; give another --config")
    return heads


def rows(settings: Settings, floors: Floors, effort: Effort, announce: Callable[[str], None]) -> Iterator[Row]:
    """Measure row by row.

    Args:
        settings: what.
        floors: of the device.
        effort: how often.
        announce: called with the name of the row that comes.
    """
    missing = settings.missing()
    for name, reason in missing.items():
        yield {"implementation": name, "mask": IMPLEMENTATIONS[name].mask, "note": reason}
    names = [name for name in settings.implementations if name not in missing]
    for length, batch, which, name in product(settings.lengths, settings.batches, settings.passes, names):
        announce(f"{name}, {which}, {batch} x {length}")
        found = IMPLEMENTATIONS[name]
        row: Row = {"implementation": name, "mask": found.mask, "pass": which, "batch": batch, "length": length}
        blame = "it fails here: " if found.peer else FAILED
        yield row | attempt(partial(_row, row, found, settings, floors, effort), blame=blame)


def _row(row: Row, found: Implementation, settings: Settings, floors: Floors, effort: Effort) -> Row:
    batch, length, which, device, dtype = row["batch"], row["length"], row["pass"], settings.device, settings.dtype
    heads, kv_heads, dim = settings.heads
    trains = which != "forward"
    shapes = [(batch, length, count, dim) for count in (heads, kv_heads, kv_heads)]
    tensors = [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for shape in shapes]
    inputs = [tensor.requires_grad_(trains) for tensor in tensors]
    with torch.set_grad_enabled(trains):
        call = found.prepare(Case(settings.rule, *inputs))
        timing = measure(_trained(call, inputs) if trains else call, device, effort, cold=True)
    pairs = visible_pairs(found.rule(settings.rule), length)
    flops = PASSES[which] * 4.0 * batch * heads * dim * pairs
    floor = flops / floors.flops
    measured = timing.milliseconds() | {"tflops": flops / timing.median / 1e12, "floor_ms": 1e3 * floor}
    measured |= {"ratio": timing.median / floor, "first_s": timing.first}
    return measured | {"peak_mb": None if timing.above is None else timing.above / 1e6}


def _trained(call: Call, inputs: Sequence[torch.Tensor]) -> Callable[[], Any]:
    # With gradients: without, a compiled implementation would be compiled once more.
    gradient = torch.randn_like(call().detach())
    release()
    return lambda: torch.autograd.grad(call(), inputs, gradient)


def figures(rows: Sequence[Row], title: str) -> Mapping[str, "Figure"]:
    """Draw time (one figure a pass and batch size) and memory against the length."""
    from swaa.report.scaling import against_length, lines

    found = {}
    for which, batch in dict.fromkeys((row["pass"], row["batch"]) for row in rows if row["pass"]):
        chosen = [row for row in rows if (row["pass"], row["batch"]) == (which, batch)]
        head: dict[str, Any] = {"title": f"Attention, {which}", "subtitle": f"{title}, batch {batch}"}
        stem = f"{which.replace('+', '-')}-{batch}"
        if times := lines(chosen, "implementation", "ms"):
            floors = {f"{mask} mask": points for mask, points in lines(chosen, "mask", "floor_ms").items()}
            found[f"time-{stem}"] = against_length(times, label="ms", floors=floors, **head)
        if peaks := lines(chosen, "implementation", "peak_mb"):
            found[f"memory-{stem}"] = against_length(peaks, label="MB above the inputs", **head)
    return found
