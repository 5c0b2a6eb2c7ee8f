"""The forward kernel: one program a query tile and head, online softmax over the tile's ranges.

The order of the computation is FlashAttention-2's (arXiv 2307.08691, algorithm 1).
"""

import triton
import triton.language as tl

from swaa.attention.kernels.common import COUNTS, LOG2E, MASKED, load_keys, load_rows, logits, sees


@triton.jit
def _attend(
    total, norm, top, query, K, V, KEY_RANK, batch, begin, end, limit, rank, start, dense, key_stride, value_stride,
    keys, slots, released, window, sinks, scale, softcap, DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr,
    VPAD: tl.constexpr, KEYS: tl.constexpr, MASK: tl.constexpr, PLAIN: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    offset = tl.arange(0, KEYS)
    dim, value_dim = tl.arange(0, PAD), tl.arange(0, VPAD)
    k_tile = K + begin.to(tl.int64) * key_stride + (offset[None, :] * key_stride + dim[:, None])
    v_tile = V + begin.to(tl.int64) * value_stride + (offset[:, None] * value_stride + value_dim[None, :])
    for at in range(begin, end, KEYS):
        key = at + offset
        if MASK:
            inside = key < limit
            k = tl.load(k_tile, mask=inside[None, :] & (dim < DIM)[:, None], other=0.0)
        elif DIM == PAD:
            k = tl.load(k_tile)
        else:
            k = tl.load(k_tile, mask=(dim < DIM)[:, None], other=0.0)
        score = logits(tl.dot(query, k, input_precision=PRECISION), scale, softcap, SOFTCAP)
        if MASK:
            key_rank = load_keys(KEY_RANK, batch, key, keys, slots, released, PLAIN)
            seen = sees(rank[:, None], start[:, None], dense[:, None], key_rank[None, :], window, sinks)
            score = tl.where(seen & inside[None, :], score, MASKED)
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        norm = norm * shrink + tl.sum(weight, 1)
        total = total * shrink[:, None]
        if MASK:
            v = tl.load(v_tile, mask=inside[:, None] & (value_dim < VDIM)[None, :], other=0.0)
        elif VDIM == VPAD:
            v = tl.load(v_tile)
        else:
            v = tl.load(v_tile, mask=(value_dim < VDIM)[None, :], other=0.0)
        total = tl.dot(weight.to(v.dtype), v, total, input_precision=PRECISION)
        top = new_top
        k_tile += KEYS * key_stride
        v_tile += KEYS * value_stride
    return total, norm, top


@triton.jit(do_not_specialize=COUNTS)
def forward(
    Q, K, V, OUT, LSE, RANGES, QUERY_RANK, START_RANK, DENSE, KEY_RANK, AUX,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, ranges_batch,
    heads, groups, rows, keys, past, slots, released, dense_start, dense_stop, window, sinks, scale, softcap,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SINKS: tl.constexpr, PLAIN: tl.constexpr, SOFTCAP: tl.constexpr, HAS_AUX: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid `(batch * heads, tiles)`. Q, K, V `[batch, heads, rows, dim]` with unit last stride.

    OUT contiguous `[batch, rows, heads, value_dim]`, LSE `[batch, heads, rows]` float32 in base 2: -MASKED
    for a row that sees nothing, whose weights are then 0 in the backward pass.
    """
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    # Dense tiles are the longest and mostly the last: begin with them, so that none is left over at the end.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    wide = batch.to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)
    rank, start, dense = load_rows(
        QUERY_RANK, START_RANK, DENSE, batch, row, rows, past, dense_start, dense_stop, PLAIN
    )
    dim, value_dim = tl.arange(0, PAD), tl.arange(0, VPAD)
    q_tile = Q + wide * q_batch + head.to(tl.int64) * q_head + row.to(tl.int64)[:, None] * q_row + dim[None, :]
    query = tl.load(q_tile, mask=(row < rows)[:, None] & (dim < DIM)[None, :], other=0.0)
    kv_head = (head // groups).to(tl.int64)
    K += wide * k_batch + kv_head * k_head
    V += wide * v_batch + kv_head * v_head
    limits = RANGES + batch * ranges_batch + tile * 6
    sink_start, sink_stop = tl.load(limits), tl.load(limits + 1)
    low, full_start, full_stop, high = (
        tl.load(limits + 2), tl.load(limits + 3), tl.load(limits + 4), tl.load(limits + 5)
    )  # fmt: skip
    full_start = low + tl.cdiv(full_start - low, KEYS) * KEYS
    full_stop = full_start + tl.maximum(full_stop - full_start, 0) // KEYS * KEYS
    total = tl.zeros([ROWS, VPAD], tl.float32)
    norm = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], MASKED, tl.float32)
    if HAS_AUX:
        top = tl.zeros([ROWS], tl.float32) + tl.load(AUX + head).to(tl.float32) * LOG2E
        norm += 1.0
    total, norm, top = _attend(
        total, norm, top, query, K, V, KEY_RANK, batch, sink_start, sink_stop, sink_stop, rank, start, dense, k_row,
        v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, SINKS, True, PLAIN, SOFTCAP,
        PRECISION,
    )  # fmt: skip
    total, norm, top = _attend(
        total, norm, top, query, K, V, KEY_RANK, batch, low, tl.minimum(full_start, high), high, rank, start, dense,
        k_row, v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, True, PLAIN,
        SOFTCAP, PRECISION,
    )  # fmt: skip
    total, norm, top = _attend(
        total, norm, top, query, K, V, KEY_RANK, batch, full_start, full_stop, high, rank, start, dense, k_row, v_row,
        keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, False, PLAIN, SOFTCAP,
        PRECISION,
    )  # fmt: skip
    total, norm, top = _attend(
        total, norm, top, query, K, V, KEY_RANK, batch, full_stop, high, high, rank, start, dense, k_row, v_row, keys,
        slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, True, PLAIN, SOFTCAP, PRECISION,
    )  # fmt: skip
    nothing = top <= MASKED
    norm = tl.where(nothing, 1.0, norm)
    output = tl.where(nothing[:, None], 0.0, total / norm[:, None])
    lse = tl.where(nothing, -MASKED, top + tl.log2(norm))
    out_tile = OUT + ((wide * rows + row)[:, None] * heads + head) * VDIM + value_dim[None, :]
    tl.store(out_tile, output.to(OUT.dtype.element_ty), mask=(row < rows)[:, None] & (value_dim < VDIM)[None, :])
    tl.store(LSE + (wide * heads + head) * rows + row, lse, mask=row < rows)
