"""What all kernels share: the mask of a tile, in ranks (`swaa.attention.tiles.visible_ranks`), and its softmax."""

import triton
import triton.language as tl

# A masked score in base 2: far below any real one, and finite, so that no row of a tile becomes NaN.
MASKED = tl.constexpr(-1.0e30)
LOG2E = tl.constexpr(1.4426950408889634)
# Arguments that change from pass to pass. Triton would build a kernel again, which takes seconds, for each of them that
# becomes, or ceases to be, 1 or a multiple of 16; the loads are as wide without it.
COUNTS = (
    *("rows", "keys", "past", "slots", "released", "dense_start", "dense_stop", "window", "sinks", "splits"),
    "ranges_batch",
)


@triton.jit
def after_previous(PDL: tl.constexpr):
    """Wait for the kernel before this one, which started early (programmatic dependent launch), and let the next start.

    The next one waits in its turn, so results pass on in order: what is saved is the time of the launches.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def load_rows(QUERY_RANK, START_RANK, DENSE, batch, row, rows, past, dense_start, dense_stop, PLAIN: tl.constexpr):
    """Return rank, first rank of the segment and dense flag of query rows: computed, or read under padding."""
    if PLAIN:
        rank = past + row
        return rank, tl.zeros_like(rank), (rank >= dense_start) & (rank < dense_stop)
    else:
        at = batch * rows + row
        inside = row < rows
        rank = tl.load(QUERY_RANK + at, mask=inside, other=-1)
        start = tl.load(START_RANK + at, mask=inside, other=0)
        dense = tl.load(DENSE + at, mask=inside, other=0) != 0
        return rank, start, dense


@triton.jit
def load_keys(KEY_RANK, batch, key, keys, slots, released, PLAIN: tl.constexpr):
    """Return the rank of keys, -1 for one that nobody sees."""
    if PLAIN:
        return tl.where(key < slots, key, key - slots + released)
    else:
        return tl.load(KEY_RANK + batch * keys + key, mask=key < keys, other=-1)


@triton.jit
def sees(rank, start, dense, key_rank, window, sinks):
    """Return which keys are visible; arguments broadcast."""
    same_segment = (key_rank <= rank) & (key_rank >= start)
    return same_segment & ((rank - key_rank < window) | (key_rank - start < sinks) | dense)


@triton.jit
def logits(products, scale, softcap, SOFTCAP: tl.constexpr):
    """Return scores in base 2 from the products of queries and keys. tanh by exp2, which Triton has everywhere."""
    if SOFTCAP:
        half = tl.exp2(products * (scale / softcap) * (2 * LOG2E))
        return softcap * (1 - 2 / (half + 1)) * LOG2E
    else:
        return products * (scale * LOG2E)
