"""The backward kernels: one for the queries' gradients over their ranges, one for keys' and values' over block lists.

A block of keys that many tiles see (sinks, or keys before dense rows) is split over several programs, whose parts are
added up in a fixed order: no atomics, so gradients are the same in every run.
"""

import triton
import triton.language as tl

from swaa.attention.kernels.common import COUNTS, LOG2E, MASKED, load_keys, load_rows, logits, sees


@triton.jit(do_not_specialize=COUNTS)
def output_products(
    OUT, OUT_GRAD, DELTA, rows, heads, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """Sum output x gradient over the head dim. Grid `(row blocks, batch * heads)`; layouts as in `query_gradient`."""
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row, value_dim = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, VPAD)
    at = ((batch * rows + row)[:, None] * heads + head) * VDIM + value_dim[None, :]
    inside = (row < rows)[:, None] & (value_dim < VDIM)[None, :]
    output = tl.load(OUT + at, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(OUT_GRAD + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(DELTA + (batch * heads + head) * rows + row, tl.sum(output * grad, 1), mask=row < rows)


@triton.jit
def _weights(products, lse, seen, scale, softcap, MASK: tl.constexpr, SOFTCAP: tl.constexpr):
    """Return attention weights, and the factor that the soft cap's derivative puts on their gradient."""
    score = logits(products, scale, softcap, SOFTCAP)
    if MASK:
        weight = tl.exp2(tl.where(seen, score - lse, MASKED))
    else:
        weight = tl.exp2(score - lse)
    if SOFTCAP:
        ratio = score / (softcap * LOG2E)
        return weight, 1 - ratio * ratio
    else:
        return weight, 1.0


@triton.jit
def _query_part(
    gradient, query, out_grad, lse, delta, K, V, KEY_RANK, batch, begin, end, limit, rank, start, dense, key_stride,
    value_stride, keys, slots, released, window, sinks, scale, softcap, DIM: tl.constexpr, PAD: tl.constexpr,
    VDIM: tl.constexpr, VPAD: tl.constexpr, KEYS: tl.constexpr, MASK: tl.constexpr, PLAIN: tl.constexpr,
    SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    offset = tl.arange(0, KEYS)
    dim, value_dim = tl.arange(0, PAD), tl.arange(0, VPAD)
    k_tile = K + begin.to(tl.int64) * key_stride + (offset[:, None] * key_stride + dim[None, :])
    v_tile = V + begin.to(tl.int64) * value_stride + (offset[None, :] * value_stride + value_dim[:, None])
    for at in range(begin, end, KEYS):
        key = at + offset
        inside = key < limit
        if MASK:
            k = tl.load(k_tile, mask=inside[:, None] & (dim < DIM)[None, :], other=0.0)
            v = tl.load(v_tile, mask=inside[None, :] & (value_dim < VDIM)[:, None], other=0.0)
            key_rank = load_keys(KEY_RANK, batch, key, keys, slots, released, PLAIN)
            seen = sees(rank[:, None], start[:, None], dense[:, None], key_rank[None, :], window, sinks)
            seen = seen & inside[None, :]
        else:
            k = tl.load(k_tile, mask=(dim < DIM)[None, :], other=0.0) if DIM != PAD else tl.load(k_tile)
            v = tl.load(v_tile, mask=(value_dim < VDIM)[:, None], other=0.0) if VDIM != VPAD else tl.load(v_tile)
            seen = inside
        products = tl.dot(query, tl.trans(k), input_precision=PRECISION)
        weight, factor = _weights(products, lse[:, None], seen, scale, softcap, MASK, SOFTCAP)
        inner = tl.dot(out_grad, v, input_precision=PRECISION)
        change = weight * (inner - delta[:, None]) * factor
        gradient = tl.dot(change.to(k.dtype), k, gradient, input_precision=PRECISION)
        k_tile += KEYS * key_stride
        v_tile += KEYS * value_stride
    return gradient


@triton.jit(do_not_specialize=COUNTS)
def query_gradient(
    Q, K, V, OUT_GRAD, LSE, DELTA, GRAD, RANGES, QUERY_RANK, START_RANK, DENSE, KEY_RANK,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, ranges_batch,
    heads, groups, rows, keys, past, slots, released, dense_start, dense_stop, window, sinks, scale, softcap,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, SINKS: tl.constexpr, PLAIN: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid `(batch * heads, tiles)`. OUT_GRAD contiguous `[batch, rows, heads, value_dim]`, LSE and DELTA `[batch,
    heads, rows]`, GRAD contiguous `[batch, heads, rows, dim]`; the rest as in `forward`.
    """
    batch, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    wide = batch.to(tl.int64)
    row = tile * ROWS + tl.arange(0, ROWS)
    rank, start, dense = load_rows(
        QUERY_RANK, START_RANK, DENSE, batch, row, rows, past, dense_start, dense_stop, PLAIN
    )
    dim, value_dim = tl.arange(0, PAD), tl.arange(0, VPAD)
    inside = row < rows
    q_tile = Q + wide * q_batch + head.to(tl.int64) * q_head + row.to(tl.int64)[:, None] * q_row + dim[None, :]
    query = tl.load(q_tile, mask=inside[:, None] & (dim < DIM)[None, :], other=0.0)
    out_tile = OUT_GRAD + ((wide * rows + row)[:, None] * heads + head) * VDIM + value_dim[None, :]
    out_grad = tl.load(out_tile, mask=inside[:, None] & (value_dim < VDIM)[None, :], other=0.0)
    line = (wide * heads + head) * rows
    lse = tl.load(LSE + line + row, mask=inside, other=0.0)
    delta = tl.load(DELTA + line + row, mask=inside, other=0.0)
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
    grad = tl.zeros([ROWS, PAD], tl.float32)
    grad = _query_part(
        grad, query, out_grad, lse, delta, K, V, KEY_RANK, batch, sink_start, sink_stop, sink_stop, rank, start, dense,
        k_row, v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, SINKS, True, PLAIN,
        SOFTCAP, PRECISION,
    )  # fmt: skip
    grad = _query_part(
        grad, query, out_grad, lse, delta, K, V, KEY_RANK, batch, low, tl.minimum(full_start, high), high, rank, start,
        dense, k_row, v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, True,
        PLAIN, SOFTCAP, PRECISION,
    )  # fmt: skip
    grad = _query_part(
        grad, query, out_grad, lse, delta, K, V, KEY_RANK, batch, full_start, full_stop, high, rank, start, dense,
        k_row, v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, False, PLAIN,
        SOFTCAP, PRECISION,
    )  # fmt: skip
    grad = _query_part(
        grad, query, out_grad, lse, delta, K, V, KEY_RANK, batch, full_stop, high, high, rank, start, dense, k_row,
        v_row, keys, slots, released, window, sinks, scale, softcap, DIM, PAD, VDIM, VPAD, KEYS, True, PLAIN, SOFTCAP,
        PRECISION,
    )  # fmt: skip
    grad_tile = GRAD + (line + row)[:, None] * DIM + dim[None, :]
    tl.store(grad_tile, (grad * scale).to(GRAD.dtype.element_ty), mask=inside[:, None] & (dim < DIM)[None, :])


@triton.jit
def _key_part(
    key_grad, value_grad, k, v, Q, OUT_GRAD, LSE, DELTA, TILES, QUERY_RANK, START_RANK, DENSE, batch, begin, end,
    key_rank, q_row, rows, heads, past, dense_start, dense_stop, window, sinks, scale, softcap, DIM: tl.constexpr,
    PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr, MASK: tl.constexpr,
    PLAIN: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    dim, value_dim, offset = tl.arange(0, PAD), tl.arange(0, VPAD), tl.arange(0, ROWS)
    for at in range(begin, end):
        row = tl.load(TILES + at) * ROWS + offset
        inside = row < rows
        wide = row.to(tl.int64)
        query = tl.load(
            Q + wide[None, :] * q_row + dim[:, None], mask=inside[None, :] & (dim < DIM)[:, None], other=0.0
        )
        out_grad = tl.load(
            OUT_GRAD + wide[:, None] * (heads * VDIM) + value_dim[None, :],
            mask=inside[:, None] & (value_dim < VDIM)[None, :],
            other=0.0,
        )
        lse = tl.load(LSE + row, mask=inside, other=0.0)
        delta = tl.load(DELTA + row, mask=inside, other=0.0)
        if MASK:
            rank, start, dense = load_rows(
                QUERY_RANK, START_RANK, DENSE, batch, row, rows, past, dense_start, dense_stop, PLAIN
            )
            seen = sees(rank[None, :], start[None, :], dense[None, :], key_rank[:, None], window, sinks)
            seen = seen & inside[None, :]
        else:
            # Rows past the end have zero queries and gradients, and add nothing.
            seen = inside
        products = tl.dot(k, query, input_precision=PRECISION)
        weight, factor = _weights(products, lse[None, :], seen, scale, softcap, MASK, SOFTCAP)
        value_grad = tl.dot(weight.to(k.dtype), out_grad, value_grad, input_precision=PRECISION)
        inner = tl.dot(v, tl.trans(out_grad), input_precision=PRECISION)
        change = weight * (inner - delta[None, :]) * factor
        key_grad = tl.dot(change.to(k.dtype), tl.trans(query), key_grad, input_precision=PRECISION)
    return key_grad, value_grad


@triton.jit(do_not_specialize=COUNTS)
def key_gradient(
    Q, K, V, OUT_GRAD, LSE, DELTA, KEY_GRAD, VALUE_GRAD, PARTS, VALUE_PARTS, ITEMS, TILES, QUERY_RANK, START_RANK,
    DENSE, KEY_RANK, q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
    heads, groups, rows, keys, past, slots, released, dense_start, dense_stop, window, sinks, scale, softcap,
    DIM: tl.constexpr, PAD: tl.constexpr, VDIM: tl.constexpr, VPAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PLAIN: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid `(items, kv_heads)`. ITEMS `[items, 6]` int32: row of the batch, key block, TILES [2, 3) without a mask and
    [3, 4) with one, and the slot in PARTS for a split block (-1: the block is not split).

    KEY_GRAD and VALUE_GRAD contiguous `[batch, kv_heads, keys, dim]`; PARTS `[slots, kv_heads, KEYS, dim]` float32.
    """
    item = ITEMS + tl.program_id(0) * 6
    kv_head, kv_heads = tl.program_id(1), tl.num_programs(1)
    batch, block = tl.load(item), tl.load(item + 1)
    full_begin, full_end, end, slot = (
        tl.load(item + 2), tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)
    )  # fmt: skip
    wide, wide_head = batch.to(tl.int64), kv_head.to(tl.int64)
    offset, dim, value_dim = tl.arange(0, KEYS), tl.arange(0, PAD), tl.arange(0, VPAD)
    key = block * KEYS + offset
    inside = key < keys
    key_rank = tl.where(inside, load_keys(KEY_RANK, batch, key, keys, slots, released, PLAIN), -1)
    dims, value_dims = (dim < DIM)[None, :], (value_dim < VDIM)[None, :]
    k_tile = K + wide * k_batch + wide_head * k_head + key.to(tl.int64)[:, None] * k_row + dim[None, :]
    v_tile = V + wide * v_batch + wide_head * v_head + key.to(tl.int64)[:, None] * v_row + value_dim[None, :]
    k = tl.load(k_tile, mask=inside[:, None] & dims, other=0.0)
    v = tl.load(v_tile, mask=inside[:, None] & value_dims, other=0.0)
    key_grad = tl.zeros([KEYS, PAD], tl.float32)
    value_grad = tl.zeros([KEYS, VPAD], tl.float32)
    for group in range(groups):
        head = wide_head * groups + group
        q = Q + wide * q_batch + head * q_head
        out_grad = OUT_GRAD + wide * rows * heads * VDIM + head * VDIM
        line = (wide * heads + head) * rows
        key_grad, value_grad = _key_part(
            key_grad, value_grad, k, v, q, out_grad, LSE + line, DELTA + line, TILES, QUERY_RANK, START_RANK, DENSE,
            batch, full_begin, full_end, key_rank, q_row, rows, heads, past, dense_start, dense_stop, window, sinks,
            scale, softcap, DIM, PAD, VDIM, VPAD, ROWS, False, PLAIN, SOFTCAP, PRECISION,
        )  # fmt: skip
        key_grad, value_grad = _key_part(
            key_grad, value_grad, k, v, q, out_grad, LSE + line, DELTA + line, TILES, QUERY_RANK, START_RANK, DENSE,
            batch, full_end, end, key_rank, q_row, rows, heads, past, dense_start, dense_stop, window, sinks, scale,
            softcap, DIM, PAD, VDIM, VPAD, ROWS, True, PLAIN, SOFTCAP, PRECISION,
        )  # fmt: skip
    key_grad *= scale
    if slot < 0:
        at = ((wide * kv_heads + kv_head) * keys + key)[:, None]
        tl.store(
            KEY_GRAD + at * DIM + dim[None, :], key_grad.to(KEY_GRAD.dtype.element_ty), mask=inside[:, None] & dims
        )
        tl.store(
            VALUE_GRAD + at * VDIM + value_dim[None, :],
            value_grad.to(VALUE_GRAD.dtype.element_ty),
            mask=inside[:, None] & value_dims,
        )
    else:
        at = ((slot.to(tl.int64) * kv_heads + kv_head) * KEYS + offset)[:, None]
        tl.store(PARTS + at * DIM + dim[None, :], key_grad, mask=dims)
        tl.store(VALUE_PARTS + at * VDIM + value_dim[None, :], value_grad, mask=value_dims)
