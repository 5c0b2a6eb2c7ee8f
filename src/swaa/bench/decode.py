"""One token at a time through `generate`: the recorded step and the plain loop, beside the floor of the memory."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from swaa.adapting import adapt, plan_layers, restore
from swaa.attaching import adaptation
from swaa.bench.floors import Floors
from swaa.bench.models import random_tokens
from swaa.bench.record import Row
from swaa.bench.timing import FAILED, attempt, percentile
from swaa.cost import active_weights, kv_bytes
from swaa.decoding import why_not
from swaa.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "recipe",
    "cache",
    "batch",
    "length",
    "ms",
    "ms_low",
    "ms_high",
    "tokens",
    "floor_ms",
    "ratio",
    "prefill_s",
    "first_step_s",
    "kv_mb",
    "peak_mb",
    "note",
)
CACHES = {"static": {"cache_implementation": "static"}, "dynamic": {}}
# The first step compiles and records; a few more until clocks and caches have settled.
_SETTLING = 4


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        recipes: the adaptations.
        lengths: tokens of context.
        batches: sequences.
        new_tokens: generated ones, whose steps are the repeats.
        caches: "static" (the recorded step) and "dynamic" (plain `generate`).
        prefill_chunk: the prompt is read in pieces of so many tokens, which needs less memory; None: in one.
        check: compare the tokens of both caches in float32 first.
    """

    recipes: tuple[Recipe, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    new_tokens: int = 64
    caches: tuple[str, ...] = tuple(CACHES)
    prefill_chunk: int | None = None
    check: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if self.new_tokens < _SETTLING + 4:
            raise ValueError(f"new_tokens={self.new_tokens}: use {_SETTLING + 4} or more, the first steps do not count")
        if unknown := [name for name in self.caches if name not in CACHES]:
            raise ValueError(f"unknown cache {unknown[0]!r}; known: {', '.join(CACHES)}")

    @property
    def count(self) -> int:
        """Number of rows."""
        rows = len(self.lengths) * len(self.batches) * len(self.caches)
        return len(self.recipes) * (rows + self.check)


def rows(model: PreTrainedModel, settings: Settings, floors: Floors, announce: Callable[[str], None]) -> Iterator[Row]:
    """Measure row by row; the model is restored afterwards, whatever happens.

    Args:
        model: an unadapted model.
        settings: what.
        floors: of its device.
        announce: called with the name of the row that comes.
    """
    try:
        for recipe in settings.recipes:
            if settings.check:
                announce(f"{recipe.name}: same tokens in float32")
                row: Row = {"recipe": recipe.name, "cache": "both, float32"}
                row |= {"batch": min(settings.batches), "length": min(settings.lengths)}
                yield row | attempt(partial(_check, model, recipe, settings))
            adapt(model, recipe.config)
            for length in settings.lengths:
                for batch in settings.batches:
                    for cache in settings.caches:
                        announce(f"{recipe.name}, {cache}, {batch} x {length}")
                        row = {"recipe": recipe.name, "cache": cache, "batch": batch, "length": length}
                        yield row | attempt(partial(_row, model, row, recipe, settings, floors))
            restore(model)
    finally:
        restore(model)


class _Clock:
    """A streamer that remembers when each token came: handing it over waits for the device."""

    def __init__(self) -> None:
        # The first entry stands for the prompt.
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Take the prompt first, then one token of each sequence after the other."""
        self.times.append(perf_counter())

    def end(self) -> None:
        """Take the end."""


def _row(model: Any, row: Row, recipe: Recipe, settings: Settings, floors: Floors) -> Row:
    length, batch, cache = row["length"], row["batch"], row["cache"]
    config, device = recipe.config, model.device
    rules = plan_layers(model.config.get_text_config(), config)
    kept = kv_bytes(model.config, rules, length, dtype_bytes=model.dtype.itemsize, release_kv=config.release_kv)
    moved = None if kept is None else weight_bytes(model) + batch * kept
    if moved and device.type == "cuda" and moved > (memory := torch.cuda.mem_get_info(device)[1]):
        return {"note": f"out of memory: weights and KV are {moved / 1e9:.0f} GB, the device has {memory / 1e9:.0f}"}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock = _Clock()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _generate(model, random_tokens(model, batch, length), settings, cache, streamer=clock)
    notes = [str(w.message) for w in caught if "cannot be recorded" in str(w.message)]
    if cache == "static" and (reason := _not_recorded(model)):
        notes.append(f"plain generate, no recorded step: {reason}")
    steps = [stop - start for start, stop in zip(clock.times[1:], clock.times[2:], strict=False)]
    steady = steps[_SETTLING:]
    median = percentile(steady, 0.5)
    floor = None if moved is None else moved / floors.bandwidth
    return {
        "ms": 1e3 * median,
        "ms_low": 1e3 * percentile(steady, 0.2),
        "ms_high": 1e3 * percentile(steady, 0.8),
        "tokens": len(steady),
        "floor_ms": None if floor is None else 1e3 * floor,
        "ratio": None if floor is None else median / floor,
        "prefill_s": clock.times[1] - clock.times[0],
        "first_step_s": steps[0],
        "kv_mb": None if kept is None else batch * kept / 1e6,
        "peak_mb": torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None,
        "note": "; ".join(notes) or None,
    }


def weight_bytes(model: Any) -> int:
    """Return the bytes of weights that one token's step reads: all but an embedding that is not the head as well."""
    return sum(active_weights(model)) * model.dtype.itemsize


def _generate(model: Any, ids: torch.Tensor, settings: Settings, cache: str, **options: Any) -> torch.Tensor:
    if settings.prefill_chunk is not None:
        options["prefill_chunk_size"] = settings.prefill_chunk
    with _endless(model):
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.new_tokens,
            do_sample=False,
            **CACHES[cache],
            **options,
        )


@contextmanager
def _endless(model: Any) -> Iterator[None]:
    """Let the model generate as many tokens as it is asked for, whatever they are, and greedily."""
    before = model.generation_config
    model.generation_config = type(before)(pad_token_id=0)
    try:
        yield
    finally:
        model.generation_config = before


def _not_recorded(model: Any) -> str | None:
    state = adaptation(model)
    assert state is not None
    config = type(model.generation_config)(cache_implementation="static")
    return why_not(model, state, config, {})


def _check(model: Any, recipe: Recipe, settings: Settings) -> Row:
    """Compare the greedy tokens of both caches in float32, at the smallest length and batch."""
    exact = adapt(copy.deepcopy(model).float(), recipe.config)
    ids = random_tokens(model, min(settings.batches), min(settings.lengths))
    static, dynamic = (_generate(exact, ids, settings, cache)[:, ids.shape[1] :] for cache in CACHES)
    same = (static == dynamic).all(0)
    count = int(same.long().cumprod(0).sum())
    if count < settings.new_tokens:
        return {"note": f"{FAILED}the caches part at token {count + 1} of {settings.new_tokens}"}
    reason = _not_recorded(exact)
    return {"tokens": count, "note": f"the same tokens{f' (no recorded step: {reason})' if reason else ''}"}


def figures(rows: Sequence[Row], title: str) -> Mapping[str, "Figure"]:
    """Draw time a token and KV against the context, one figure each a batch size."""
    from swaa.report.scaling import against_length, lines

    found = {}
    named = [row | {"name": f"{row['recipe']}, {row['cache']}"} for row in rows]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        chosen = [row for row in named if row["batch"] == batch]
        head: dict[str, Any] = {"title": "Decode", "subtitle": f"{title}, batch {batch}"}
        if times := lines(chosen, "name", "ms"):
            floors = lines([row for row in chosen if row["cache"] == chosen[-1]["cache"]], "name", "floor_ms")
            found[f"time-{batch}"] = against_length(times, label="ms a token", floors=floors, **head)
        if sizes := lines(chosen, "recipe", "kv_mb"):
            found[f"kv-{batch}"] = against_length(sizes, label="MB of keys and values", **head)
    return found
