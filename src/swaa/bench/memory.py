"""Memory by length: the peak of a prefill, the keys and values held after it, and where memory ends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from swaa.adapting import adapt, plan_layers, restore
from swaa.bench.models import random_tokens
from swaa.bench.prefill import read_prompt
from swaa.bench.record import Row
from swaa.bench.timing import attempt, synchronize
from swaa.cache.naming import returned_cache
from swaa.cost import kv_bytes
from swaa.evaluate import cache_bytes
from swaa.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "recipe",
    "batch",
    "length",
    "peak_mb",
    "above_weights_mb",
    "kv_mb",
    "kv_computed_mb",
    "fits",
    "note",
)


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        recipes: the adaptations.
        lengths: tokens of a prompt.
        batches: sequences.
    """

    recipes: tuple[Recipe, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.recipes) * len(self.lengths) * len(self.batches)


def rows(model: PreTrainedModel, settings: Settings, announce: Callable[[str], None]) -> Iterator[Row]:
    """Measure row by row, one pass each; the model is restored afterwards, whatever happens.

    Args:
        model: an unadapted model.
        settings: what.
        announce: called with the name of the row that comes.
    """
    try:
        for recipe in settings.recipes:
            adapt(model, recipe.config)
            for batch in settings.batches:
                seen: list[tuple[int, float]] = []
                for length in sorted(settings.lengths):
                    announce(f"{recipe.name}, {batch} x {length}")
                    row: Row = {"recipe": recipe.name, "batch": batch, "length": length}
                    row |= attempt(partial(_row, model, recipe, batch, length))
                    if row.get("peak_mb"):
                        seen.append((length, row["peak_mb"]))
                        row["fits"] = fits(seen, torch.cuda.get_device_properties(model.device).total_memory / 1e6)
                    yield row
            restore(model)
    finally:
        restore(model)


@torch.no_grad()
def _row(model: Any, recipe: Recipe, batch: int, length: int) -> Row:
    device, config = model.device, recipe.config
    rules = plan_layers(model.config.get_text_config(), config)
    computed = kv_bytes(model.config, rules, length, dtype_bytes=model.dtype.itemsize, release_kv=config.release_kv)
    ids = random_tokens(model, batch, length)
    before = 0
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    held = cache_bytes(returned_cache(read_prompt(model, ids)))
    synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "peak_mb": None if peak is None else peak / 1e6,
        "above_weights_mb": None if peak is None else (peak - before) / 1e6,
        "kv_mb": held / 1e6,
        "kv_computed_mb": None if computed is None else batch * computed / 1e6,
        "note": None if peak is not None else "the peak is measured on CUDA devices only",
    }


def fits(peaks: Sequence[tuple[int, float]], memory: float) -> int | None:
    """Extrapolate the longest prompt that fits, on the line through the last two peaks; None with fewer.

    Args:
        peaks: (length, peak), ascending.
        memory: of the device, in the unit of the peaks.
    """
    if len(peaks) < 2:
        return None
    (short, low), (long, high) = peaks[-2:]
    slope = (high - low) / (long - short)
    return int(long + (memory - high) / slope) if slope > 0 else None


def figures(rows: Sequence[Row], title: str) -> Mapping[str, "Figure"]:
    """Draw peak, and keys and values held, against the length; one figure each a batch size."""
    from swaa.report.scaling import against_length, lines

    found = {}
    for batch in dict.fromkeys(row["batch"] for row in rows):
        chosen = [row for row in rows if row["batch"] == batch]
        head: dict[str, Any] = {"title": "Memory of a prefill", "subtitle": f"{title}, batch {batch}"}
        for value, label in (("peak_mb", "MB held at the peak"), ("kv_mb", "MB of keys and values held after it")):
            if sizes := lines(chosen, "recipe", value):
                found[f"{value.removesuffix('_mb')}-{batch}"] = against_length(sizes, label=label, **head)
    return found
