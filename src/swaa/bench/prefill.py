"""Reading a prompt with the whole model, beside the same model without attention and the floor of the arithmetic."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from swaa.adapting import adapt, plan_layers, restore
from swaa.bench.baselines import NO_ATTENTION, UNADAPTED, attention_left_out, best_full_attention
from swaa.bench.floors import Floors
from swaa.bench.models import random_tokens
from swaa.bench.record import Row
from swaa.bench.timing import Effort, attempt, measure
from swaa.cache.naming import returned_cache
from swaa.compiling import compile_layers
from swaa.config import LayerRule, SWAAConfig
from swaa.cost import active_weights, prefill_flops
from swaa.evaluate import cache_bytes
from swaa.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "recipe",
    "layers",
    "batch",
    "length",
    "seconds",
    "seconds_low",
    "seconds_high",
    "repeats",
    "tokens_per_s",
    "floor_s",
    "ratio",
    "no_attention_ratio",
    "peak_mb",
    "kv_mb",
    "compile_s",
    "note",
)
# Long enough for every kernel of a prompt to be compiled, and over in no time.
_SHORT = 1024


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        recipes: the adaptations.
        lengths: tokens of a prompt.
        batches: sequences.
        compiled: with `swaa.compile_layers` (True), without it (False), or both.
        baselines: of `swaa.bench.baselines.BASELINES`.
    """

    recipes: tuple[Recipe, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    compiled: tuple[bool, ...] = (False, True)
    baselines: tuple[str, ...] = (NO_ATTENTION, UNADAPTED)

    def variants(self) -> list[tuple[str, SWAAConfig | None, bool]]:
        """Return name, adaptation (None: the model as it was) and whether layers are compiled, of all that is timed."""
        found: list[tuple[str, SWAAConfig | None, bool]] = []
        for compiled in self.compiled:
            if NO_ATTENTION in self.baselines:
                # The caches are those of the first recipe that slides.
                sliding = next((x.config for x in self.recipes if x.config.window is not None), SWAAConfig())
                found.append((NO_ATTENTION, sliding.replace(backend=NO_ATTENTION), compiled))
            found += [(recipe.name, recipe.config, compiled) for recipe in self.recipes]
        return found + [(UNADAPTED, None, False)] * (UNADAPTED in self.baselines)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.variants()) * len(self.lengths) * len(self.batches)


def rows(
    model: PreTrainedModel, settings: Settings, floors: Floors, effort: Effort, announce: Callable[[str], None]
) -> Iterator[Row]:
    """Measure row by row; the model is restored afterwards, whatever happens.

    Args:
        model: an unadapted model.
        settings: what.
        floors: of its device.
        effort: how often.
        announce: called with the name of the row that comes.
    """
    without: dict[tuple[bool, int, int], float] = {}
    try:
        for name, config, compiled in settings.variants():
            with ExitStack() as stack:
                if config is None:
                    restore(model)
                    stack.enter_context(best_full_attention(model))
                else:
                    if name == NO_ATTENTION:
                        stack.enter_context(attention_left_out())
                    adapt(model, config)
                layers = "compiled" if compiled else "eager"
                announce(f"{name}, {layers}: first pass")
                prepared = attempt(partial(_prepare, model, compiled, settings))
                for length in settings.lengths:
                    for batch in settings.batches:
                        row: Row = {"recipe": name, "layers": layers, "batch": batch, "length": length} | prepared
                        if not prepared.get("note"):
                            announce(f"{name}, {layers}, {batch} x {length}")
                            row |= attempt(partial(measure_row, model, config, length, batch, floors, effort))
                        if name == NO_ATTENTION and row.get("seconds"):
                            without[compiled, length, batch] = row["seconds"]
                        base = without.get((compiled, length, batch))
                        ratio = row["seconds"] / base if base and row.get("seconds") else None
                        yield row | {"no_attention_ratio": ratio}
                if config is not None:
                    restore(model)
    finally:
        restore(model)


def _prepare(model: PreTrainedModel, compiled: bool, settings: Settings) -> Row:
    """Compile what this variant needs, and say how long it took."""
    if compiled:
        compile_layers(model)
    length = min(_SHORT, *settings.lengths)
    seconds = [_seconds(model, random_tokens(model, batch, length)) for batch in settings.batches for _ in range(2)]
    # The second pass of each batch size is what the first would have taken.
    return {"compile_s": sum(seconds[::2]) - sum(seconds[1::2]) if compiled else None}


@torch.no_grad()
def _seconds(model: PreTrainedModel, ids: torch.Tensor) -> float:
    return measure(lambda: read_prompt(model, ids), model.device, Effort(repeats=1, seconds=0, warmup=0)).median


def read_prompt(model: Any, ids: torch.Tensor) -> Any:
    """Run the prompt through the model as `generate` does: logits of the last token only, and a fresh cache."""
    return model(ids, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def measure_row(model: Any, config: SWAAConfig | None, length: int, batch: int, floors: Floors, effort: Effort) -> Row:
    """Time the prefill of random prompts; the columns of a row.

    Args:
        model: the model, adapted as `config` says.
        config: the adaptation; None: there is none.
        length: tokens of a prompt.
        batch: prompts.
        floors: of the device.
        effort: how often.
    """
    ids = random_tokens(model, batch, length)
    held = cache_bytes(returned_cache(read_prompt(model, ids)))
    # That was the first of the warm-up.
    effort = replace(effort, warmup=max(effort.warmup - 1, 0))
    timing = measure(lambda: read_prompt(model, ids), model.device, effort)
    left_out = config is not None and config.backend == NO_ATTENTION
    operations = flops(model, config or SWAAConfig(), length, attention=not left_out)
    floor = None if operations is None else batch * operations / floors.flops
    return {
        "seconds": timing.median,
        "seconds_low": timing.low,
        "seconds_high": timing.high,
        "repeats": timing.repeats,
        "tokens_per_s": batch * length / timing.median,
        "floor_s": floor,
        "ratio": None if floor is None else timing.median / floor,
        "peak_mb": None if timing.peak is None else timing.peak / 1e6,
        "kv_mb": held / 1e6,
    }


def flops(model: Any, config: SWAAConfig, length: int, *, attention: bool = True) -> float | None:
    """Count the operations of reading a prompt that ends in one row of logits; None for a family of unknown sizes.

    Args:
        model: the model.
        config: the adaptation.
        length: tokens of the prompt.
        attention: count the visible pairs too.
    """
    text = model.config.get_text_config()
    rules: Sequence[LayerRule | None] = plan_layers(text, config.replace(backend="auto"))
    linear, pairs = prefill_flops(model.config, rules, length, active_weights(model))
    if pairs is None:
        return None
    return linear + (pairs if attention else 0.0)


def figures(rows: Sequence[Row], title: str) -> Mapping[str, "Figure"]:
    """Draw time and memory against the length, one figure each a batch size."""
    from swaa.report.scaling import against_length, lines

    found = {}
    named = [row | {"name": f"{row['recipe']}, {row['layers']}"} for row in rows]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        chosen = [row for row in named if row["batch"] == batch]
        head: dict[str, Any] = {"title": "Prefill", "subtitle": f"{title}, batch {batch}"}
        if times := lines(chosen, "name", "seconds"):
            # Compiled or not, the arithmetic is the same.
            floors = lines([row for row in chosen if row["layers"] == chosen[0]["layers"]], "name", "floor_s")
            found[f"time-{batch}"] = against_length(times, label="seconds", floors=floors, **head)
        for value, label in (("peak_mb", "MB held at the peak"), ("kv_mb", "MB of keys and values")):
            if sizes := lines(chosen, "recipe" if value == "kv_mb" else "name", value):
                found[f"{value.removesuffix('_mb')}-{batch}"] = against_length(sizes, label=label, **head)
    return found
