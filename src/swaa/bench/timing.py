"""Timing a call, and turning what goes wrong into a row's note. Seconds and bytes throughout."""

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# More than the level-2 cache of any GPU: overwritten between repeats, so that none finds its inputs there.
_CACHE_BYTES = 256 << 20
_MOST_REPEATS = 1000
FAILED = "failed: "


@dataclass(frozen=True)
class Effort:
    """How long a row is measured.

    Args:
        repeats: timed repeats at least.
        seconds: repeated until these have passed.
        warmup: calls before.
    """

    repeats: int = 3
    seconds: float = 0.3
    warmup: int = 1

    def __post_init__(self) -> None:
        """Check every value."""
        if self.repeats < 1 or self.warmup < 0 or self.seconds < 0:
            raise ValueError(
                f"repeats={self.repeats}, warmup={self.warmup}, seconds={self.seconds}: use 1 or more repeats, "
                "and 0 or more of the others"
            )


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Args:
        median: seconds of a call.
        low: 20th percentile.
        high: 80th percentile.
        repeats: timed calls.
        first: seconds of the first warm-up call, compilation included; None without warm-up.
        peak: most bytes held on the GPU during the timed calls; None on the CPU.
        above: `peak` without what was held before.
    """

    median: float
    low: float
    high: float
    repeats: int
    first: float | None
    peak: int | None
    above: int | None

    def milliseconds(self) -> dict[str, Any]:
        """Return the columns of a table in milliseconds."""
        return {"ms": 1e3 * self.median, "ms_low": 1e3 * self.low, "ms_high": 1e3 * self.high, "repeats": self.repeats}


def measure(call: Callable[[], Any], device: torch.device, effort: Effort, *, cold: bool = False) -> Timing:
    """Time a call: on CUDA the time of the device, from events; on the CPU that of the clock.

    Args:
        call: what is timed; its result is dropped.
        device: where it computes.
        effort: how often.
        cold: empty the GPU's level-2 cache before each repeat: for calls that are shorter than what they read.
    """
    begin = time.perf_counter()
    first = None
    for index in range(effort.warmup):
        call()
        if not index:
            synchronize(device)
            first = time.perf_counter() - begin
    synchronize(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    scratch = torch.empty(_CACHE_BYTES, dtype=torch.int8, device=device) if cold and device.type == "cuda" else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _repeat(call, device, effort.repeats, scratch)
    missing = effort.seconds - sum(seconds)
    if missing > 0:
        more = math.ceil(missing / max(percentile(seconds, 0.5), 1e-6))
        seconds += _repeat(call, device, min(more, _MOST_REPEATS), scratch)
    peak = above = None
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) - (0 if scratch is None else _CACHE_BYTES)
        above = peak - before
    low, median, high = (percentile(seconds, share) for share in (0.2, 0.5, 0.8))
    return Timing(median, low, high, len(seconds), first, peak, above)


def _repeat(call: Callable[[], Any], device: torch.device, repeats: int, scratch: Tensor | None) -> list[float]:
    if device.type != "cuda":
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        return seconds
    # Queued without waiting, so that launching a call hides behind the one before it.
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    with torch.cuda.device(device):
        for start, stop in events:
            if scratch is not None:
                scratch.zero_()
            start.record()
            call()
            stop.record()
        torch.cuda.synchronize(device)
    return [start.elapsed_time(stop) / 1e3 for start, stop in events]


def percentile(values: list[float], share: float) -> float:
    """Return a percentile (0..1), interpolated."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def release() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(row: Callable[[], Mapping[str, Any]], *, blame: str = FAILED) -> dict[str, Any]:
    """Return a row, or one with nothing but a note that says why it could not be measured; memory is free again.

    Args:
        row: makes the row.
        blame: begins the note of an error that is not about memory.
    """
    try:
        found = dict(row())
    except torch.OutOfMemoryError as error:
        found = {"note": f"out of memory: {_first_line(error)}"}
    except Exception as error:
        # Whatever a peer's kernel raises: the rows after this one are still worth having.
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        found = {"note": f"{'out of memory: ' if memory else blame}{type(error).__name__}: {_first_line(error)}"}
    release()
    return found


def failed(row: Mapping[str, Any]) -> bool:
    """Tell whether a row stands for a mistake, rather than for missing memory or a missing package."""
    return str(row.get("note") or "").startswith(FAILED)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
