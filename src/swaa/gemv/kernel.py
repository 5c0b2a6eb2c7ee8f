"""Products of matrices with one vector, which take as long as reading the matrices."""

import triton
import triton.language as tl

from swaa.attention.kernels.common import after_previous


@triton.jit
def gemv(
    X, W0, W1, W2, OUT, rows0, rows1, rows2, stride0, stride1, stride2, columns,
    COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Up to three matrices `[rows, columns]` of unit last stride, times X `[columns]`, one after the other in OUT.

    Grid: all rows, one a program.
    """
    row = tl.program_id(0)
    if row < rows0:
        _row(X, W0 + row.to(tl.int64) * stride0, OUT + row, columns, COLUMNS, CHUNKS, PDL)
    elif row < rows0 + rows1:
        _row(X, W1 + (row - rows0).to(tl.int64) * stride1, OUT + row, columns, COLUMNS, CHUNKS, PDL)
    else:
        _row(X, W2 + (row - rows0 - rows1).to(tl.int64) * stride2, OUT + row, columns, COLUMNS, CHUNKS, PDL)


@triton.jit
def _row(X, W, OUT, columns, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr, PDL: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    # Weights do not depend on the kernel before this one: their first part is on its way while that one ends.
    weight = tl.load(W + column, mask=column < columns, other=0.0)
    after_previous(PDL)
    total = tl.zeros([COLUMNS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        here = chunk * COLUMNS + column
        x = tl.load(X + here, mask=here < columns, other=0.0).to(tl.float32)
        total += weight.to(tl.float32) * x
        if chunk + 1 < CHUNKS:
            ahead = here + COLUMNS
            weight = tl.load(W + ahead, mask=ahead < columns, other=0.0)
    tl.store(OUT, tl.sum(total, 0).to(OUT.dtype.element_ty))
