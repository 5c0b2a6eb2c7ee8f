"""Kernels of passes with few rows: the keys are split over many programs, each reads its part once (Flash-Decoding).

All query heads of a KV head sit in one tile, so a key is read once for all of them.
"""

import triton
import triton.language as tl

from swaa.attention.kernels.common import COUNTS, LOG2E, MASKED, after_previous, load_keys, load_rows, logits, sees


@triton.jit(do_not_specialize=COUNTS)
def split(
    Q, K, V, PART, PART_TOP, PART_NORM, RANGES, QUERY_RANK, START_RANK, DENSE, KEY_RANK,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, ranges_batch,
    kv_heads, groups, rows, keys, past, slots, released, dense_start, dense_stop, window, sinks, scale, softcap,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PLAIN: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Grid `(splits, batch * kv_heads)`. Line `row * groups + g` of a tile is head `kv_head * groups + g` of a row.

    PART `[batch * kv_heads, splits, ROWS, VDIM]`, PART_TOP and PART_NORM `[batch * kv_heads, splits, ROWS]`, float32.
    """
    after_previous(PDL)
    part, splits = tl.program_id(0), tl.num_programs(0)
    batch, kv_head = tl.program_id(1) // kv_heads, tl.program_id(1) % kv_heads
    wide, head = batch.to(tl.int64), kv_head.to(tl.int64)
    line = tl.arange(0, ROWS)
    row = line // groups
    rank, start, dense = load_rows(
        QUERY_RANK, START_RANK, DENSE, batch, row, rows, past, dense_start, dense_stop, PLAIN
    )
    dim, value_dim, offset = tl.arange(0, PAD), tl.arange(0, VPAD), tl.arange(0, KEYS)
    q_tile = Q + wide * q_batch + (head * groups + line % groups)[:, None] * q_head + row[:, None] * q_row
    query = tl.load(q_tile + dim[None, :], mask=(row < rows)[:, None] & (dim < DIM)[None, :], other=0.0)
    K += wide * k_batch + head * k_head
    V += wide * v_batch + head * v_head
    limits = RANGES + batch * ranges_batch
    sink_start, sink_stop = tl.load(limits), tl.load(limits + 1)
    low, high = tl.load(limits + 2), tl.load(limits + 5)
    sink_tiles = tl.cdiv(tl.maximum(sink_stop - sink_start, 0), KEYS)
    tiles = sink_tiles + tl.cdiv(tl.maximum(high - low, 0), KEYS)
    each = tl.cdiv(tiles, splits)
    total = tl.zeros([ROWS, VPAD], tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], MASKED, tl.float32)
    for tile in range(part * each, tl.minimum((part + 1) * each, tiles)):
        at = tl.where(tile < sink_tiles, sink_start + tile * KEYS, low + (tile - sink_tiles) * KEYS)
        limit = tl.where(tile < sink_tiles, sink_stop, high)
        key = at + offset
        inside = key < limit
        k_tile = K + at.to(tl.int64) * k_row + (offset[None, :] * k_row + dim[:, None])
        v_tile = V + at.to(tl.int64) * v_row + (offset[:, None] * v_row + value_dim[None, :])
        k = tl.load(k_tile, mask=inside[None, :] & (dim < DIM)[:, None], other=0.0)
        v = tl.load(v_tile, mask=inside[:, None] & (value_dim < VDIM)[None, :], other=0.0)
        score = logits(tl.dot(query, k, input_precision=PRECISION), scale, softcap, SOFTCAP)
        key_rank = load_keys(KEY_RANK, batch, key, keys, slots, released, PLAIN)
        seen = sees(rank[:, None], start[:, None], dense[:, None], key_rank[None, :], window, sinks)
        score = tl.where(seen & inside[None, :], score, MASKED)
        new_top = tl.maximum(top, tl.max(score, 1))
        # Without this, lines that have seen nothing yet would count masked keys.
        weight = tl.where(score > MASKED, tl.exp2(score - new_top[:, None]), 0.0)
        shrink = tl.exp2(top - new_top)
        norm = norm * shrink + tl.sum(weight, 1)
        total = tl.dot(weight.to(v.dtype), v, total * shrink[:, None], input_precision=PRECISION)
        top = new_top
    at_part = (tl.program_id(1).to(tl.int64) * splits + part) * ROWS + line
    tl.store(PART_TOP + at_part, top)
    tl.store(PART_NORM + at_part, norm)
    tl.store(PART + at_part[:, None] * VDIM + value_dim[None, :], total, mask=(value_dim < VDIM)[None, :])


@triton.jit(do_not_specialize=COUNTS)
def merge(
    PART, PART_TOP, PART_NORM, OUT, AUX, kv_heads, groups, rows, splits, LINES: tl.constexpr, VDIM: tl.constexpr,
    VPAD: tl.constexpr, SPLITS: tl.constexpr, HAS_AUX: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the parts by their log-sum-exp. Grid `(batch * kv_heads, rows * groups)`; OUT as in `forward`."""
    after_previous(PDL)
    which, line = tl.program_id(0), tl.program_id(1)
    batch, head = which // kv_heads, which % kv_heads * groups + line % groups
    part, value_dim = tl.arange(0, SPLITS), tl.arange(0, VPAD)
    there = part < splits
    at = (which.to(tl.int64) * splits + part) * LINES + line
    top = tl.load(PART_TOP + at, mask=there, other=MASKED)
    norm = tl.load(PART_NORM + at, mask=there, other=0.0)
    best = tl.max(top, 0)
    if HAS_AUX:
        aux = tl.load(AUX + head).to(tl.float32) * LOG2E
        best = tl.maximum(best, aux)
    scale = tl.exp2(top - best)
    whole = tl.sum(norm * scale, 0)
    if HAS_AUX:
        whole += tl.exp2(aux - best)
    values = tl.load(
        PART + at[:, None] * VDIM + value_dim[None, :], mask=there[:, None] & (value_dim < VDIM)[None, :], other=0.0
    )
    output = tl.sum(values * scale[:, None], 0) / tl.where(whole > 0, whole, 1.0)
    out_row = (batch.to(tl.int64) * rows + line // groups) * (kv_heads * groups) + head
    tl.store(OUT + out_row * VDIM + value_dim, output.to(OUT.dtype.element_ty), mask=value_dim < VDIM)


@triton.jit(do_not_specialize=COUNTS)
def write_slot(
    NEW_KEY, NEW_VALUE, KEYS, VALUES, SLOT, COLUMN, PADDING, new_batch, new_head, new_value_batch, new_value_head,
    batch_stride, head_stride, value_batch_stride, value_head_stride, kv_heads, sinks, DIM: tl.constexpr,
    PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write one token's keys and values into the slot that SLOT holds, a sink into its own slot too.

    Grid `(batch * kv_heads,)`. SLOT and COLUMN hold one number, PADDING `[batch]` the columns before the first token.
    """
    after_previous(PDL)
    which, head = tl.program_id(0) // kv_heads, tl.program_id(0) % kv_heads
    batch = which.to(tl.int64)
    slot = tl.load(SLOT).to(tl.int64)
    sink = tl.load(COLUMN) - tl.load(PADDING + which)
    dim, value_dim = tl.arange(0, PAD), tl.arange(0, VPAD)
    key = tl.load(NEW_KEY + batch * new_batch + head * new_head + dim, mask=dim < DIM)
    value = tl.load(NEW_VALUE + batch * new_value_batch + head * new_value_head + value_dim, mask=value_dim < VDIM)
    KEYS += batch * batch_stride + head * head_stride
    VALUES += batch * value_batch_stride + head * value_head_stride
    tl.store(KEYS + slot * DIM + dim, key, mask=dim < DIM)
    tl.store(VALUES + slot * VDIM + value_dim, value, mask=value_dim < VDIM)
    if sink < sinks:
        tl.store(KEYS + sink * DIM + dim, key, mask=dim < DIM)
        tl.store(VALUES + sink * VDIM + value_dim, value, mask=value_dim < VDIM)


@triton.jit(do_not_specialize=COUNTS)
def describe_slots(
    COLUMN, PADDING, MASK, SLOT, STOP, slots, window, sinks, RING: tl.constexpr, DENSE: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Tell which slots the token in column COLUMN sees, where it goes, and how many slots are in use by then.

    Grid `(slot blocks, batch)`. MASK `[batch, slots]` bool; SLOT and STOP hold one number. A ring has `sinks` slots of
    sinks and then `window` slots of last tokens; otherwise slot is column.
    """
    column, first = tl.load(COLUMN), tl.load(PADDING + tl.program_id(1))
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    if RING:
        # Column of each slot of the ring; a sink that is still in the ring counts there. A remainder has the sign of
        # what is divided, which must not be negative.
        held = column - (column - slot + sinks + window) % window
        seen = tl.where(slot < sinks, first + slot <= column - window, held >= first)
        place = sinks + column % window
        stop = slots
    else:
        near = (column - slot < window) | (slot - first < sinks)
        seen = (slot >= first) & (slot <= column) & (near | DENSE)
        place = column
        stop = column + 1
    tl.store(MASK + tl.program_id(1).to(tl.int64) * slots + slot, seen, mask=slot < slots)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(SLOT, place)
        tl.store(STOP, stop)
