"""Which rows of a step need the mask: requests are cut into pieces by position, never by the number of rows.

A piece is a run of rows of one request that either all see everything or all slide. Keys carry their rotary positions
already, so a piece may be handed to a kernel as a *virtual request*: its block table holds only the blocks of the sinks
and of the window, which leaves every distance within the window as it is. Its cost then does not grow with the context.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swaa.config import LayerRule

Numbers = NDArray[np.int64]
# Rows of a sliding piece: few enough to waste little (a piece sees up to PIECE - 1 keys beyond its window).
PIECE = 256


@dataclass(frozen=True, eq=False)
class Pieces:
    """Runs of rows, in the order of the step's rows, which they cover without gaps.

    Args:
        request: `[pieces]` int64, index of the request.
        first: `[pieces]` int64, position of the first row.
        rows: `[pieces]` int64, number of rows, 1 or more.
        sliding: `[pieces]` bool, the rows follow window and sinks; otherwise they see everything.
    """

    request: Numbers
    first: Numbers
    rows: Numbers
    sliding: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.request)

    def select(self, chosen: NDArray[np.bool_]) -> "Pieces":
        """Return some of the pieces."""
        return Pieces(self.request[chosen], self.first[chosen], self.rows[chosen], self.sliding[chosen])

    @property
    def starts(self) -> Numbers:
        """Index of each piece's first row among the rows of all pieces, and at the end their number: `[pieces + 1]`."""
        return np.concatenate([[0], np.cumsum(self.rows)])


def cut(rule: LayerRule, past: Numbers, rows: Numbers, prompt: Numbers, piece: int = PIECE) -> Pieces | None:
    """Cut the rows of a step into pieces.

    Args:
        rule: the layer's rule, with a window.
        past: `[requests]` tokens of each request before this step.
        rows: `[requests]` rows of each request in this step, perhaps 0.
        prompt: `[requests]` prompt tokens of each request.
        piece: rows of a sliding piece at most.

    Returns:
        the pieces; None where every row sees everything, so that the step needs no mask at all.
    """
    assert rule.window is not None
    stop = past + rows
    # Below this position, window and sinks leave nothing out.
    begin = np.maximum(past, rule.window + rule.sinks)
    prompt_stop = np.minimum(stop, prompt - rule.dense_tail)
    answer_begin = np.maximum(begin, prompt)
    answer_stop = answer_begin if rule.fa_decode else stop
    some = (begin < prompt_stop) | (answer_begin < answer_stop)
    if not some.any():
        return None
    found: list[tuple[int, int, int, bool]] = []
    for request in np.flatnonzero(rows).tolist():
        position, end = int(past[request]), int(stop[request])
        spans = [(begin[request], prompt_stop[request]), (answer_begin[request], answer_stop[request])]
        for low, high in ((int(a), int(b)) for a, b in spans if a < b):
            if position < low:
                found.append((request, position, low - position, False))
            found += [(request, first, min(piece, high - first), True) for first in range(low, high, piece)]
            position = high
        if position < end:
            found.append((request, position, end - position, False))
    columns = np.array(found, dtype=np.int64).reshape(-1, 4)
    return Pieces(columns[:, 0], columns[:, 1], columns[:, 2], columns[:, 3].astype(bool))


@dataclass(frozen=True, eq=False)
class Virtual:
    """Pieces as virtual requests over a paged cache.

    The blocks of a virtual request are the first `sink_blocks` of its request's block table and, from there on, those
    `jump` further: entry `j` is the request's block `j`, or `j + jump` for `j >= sink_blocks`.

    Args:
        sink_blocks: blocks that hold sinks.
        jump: `[pieces]` int64, blocks that are left out, 0 for rows that see everything.
        length: `[pieces]` int64, keys up to the last row, what is left out not counted.
        visible: `[pieces]` int64, keys from the start that every row sees: the sinks, or all.
    """

    sink_blocks: int
    jump: Numbers
    length: Numbers
    visible: Numbers

    def columns(self, index: int, block: int) -> Numbers:
        """Return the blocks of a virtual request as columns of its request's block table."""
        column = np.arange(-(-int(self.length[index]) // block))
        return np.where(column < self.sink_blocks, column, column + self.jump[index])


def virtual_requests(rule: LayerRule, pieces: Pieces, block: int) -> Virtual:
    """Say which blocks each piece needs.

    Args:
        rule: the layer's rule, with a window.
        pieces: pieces of a step.
        block: tokens of a block.

    Of what stays in the table beyond sinks and window, nothing comes nearer than `window` to a row: the mask
    `key < sinks or query - key < window` in the virtual request's own positions is the rule's.
    """
    assert rule.window is not None
    sink_blocks = -(-rule.sinks // block)
    stop = pieces.first + pieces.rows
    window_block = (pieces.first - rule.window + 1) // block
    jump = np.where(pieces.sliding, np.maximum(window_block - sink_blocks, 0), 0)
    length = stop - jump * block
    return Virtual(sink_blocks, jump, length, np.where(pieces.sliding, rule.sinks, length))
