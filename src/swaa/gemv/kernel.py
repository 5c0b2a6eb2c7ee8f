"""Products of matrices with one vector, which take as long as reading the matrices."""

import triton
import triton.language as tl

from swaa.attention.kernels.common import after_previous


@triton.jit
def gemv(
    X, W0, W1, W2, OUT, rows0, rows1, rows2, stride0, stride1, stride2, columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Up to three matrices `[rows, columns]` of unit last stride, times X `[columns]`, one after the other in OUT.

    A program has ROWS rows of one matrix. Grid: blocks of the first, then of the second, then of the third.
    """
    block = tl.program_id(0)
    first, second = tl.cdiv(rows0, ROWS), tl.cdiv(rows1, ROWS)
    if block < first:
        _block(X, W0, OUT, block, rows0, stride0, columns, ROWS, COLUMNS, CHUNKS, PDL)
    elif block < first + second:
        _block(X, W1, OUT + rows0, block - first, rows1, stride1, columns, ROWS, COLUMNS, CHUNKS, PDL)
    else:
        at = block - first - second
        _block(X, W2, OUT + rows0 + rows1, at, rows2, stride2, columns, ROWS, COLUMNS, CHUNKS, PDL)


@triton.jit
def _block(
    X, W, OUT, block, rows, stride, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    row, column = block * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = row < rows
    tile = W + row.to(tl.int64)[:, None] * stride + column[None, :]
    # Weights do not depend on the kernel before this one: their first part is on its way while that one ends.
    weight = tl.load(tile, mask=inside[:, None] & (column < columns)[None, :], other=0.0)
    after_previous(PDL)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        here = chunk * COLUMNS + column
        x = tl.load(X + here, mask=here < columns, other=0.0).to(tl.float32)
        total += weight.to(tl.float32) * x[None, :]
        if chunk + 1 < CHUNKS:
            ahead = here + COLUMNS
            weight = tl.load(tile + (chunk + 1) * COLUMNS, mask=inside[:, None] & (ahead < columns)[None, :], other=0.0)
    tl.store(OUT + row, tl.sum(total, 1).to(OUT.dtype.element_ty), mask=inside)
