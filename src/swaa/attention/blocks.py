"""Cutting a pass into blocks of query rows, each with the few key columns it can see: the linear-time plan."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.config import LayerRule
from swaa.geometry import Geometry
from swaa.mask import visible


@dataclass(eq=False)
class Block:
    """Query rows [start, stop) and their keys: sink columns, then the columns [low, high).

    Args:
        start: first query row.
        stop: one past the last query row.
        low: first column of the window part.
        high: one past the last column of the window part.
        causal: the rows are plain causal over [0, high): no mask is needed.
        sinks: number of leading columns, or `[batch, sinks]` columns of each row's sinks (from `low` on: masked).
    """

    start: int
    stop: int
    low: int
    high: int
    causal: bool = False
    sinks: int | Tensor = 0


def plan_blocks(geometry: Geometry, rule: LayerRule, size: int, *, causal_blocks: bool) -> list[Block]:
    """Cut the rows of a pass into blocks of at most `size` rows, in order; dense and sliding rows never share one.

    Args:
        geometry: the pass.
        rule: the layer's rule.
        size: most rows of a block.
        causal_blocks: allow one larger block for the leading rows that are plain causal.
    """
    plain = 0
    if geometry.positions is None and geometry.past == 0 and causal_blocks:
        plain = geometry.rows if rule.window is None else min(geometry.rows, rule.window + rule.sinks)
    blocks = [Block(0, plain, 0, plain, causal=True)] if plain else []
    for start, stop, dense in _runs(geometry, rule, plain, size):
        high = geometry.past + stop
        if dense:
            blocks.append(Block(start, stop, 0, high))
        elif geometry.positions is None:
            assert rule.window is not None
            low = max(geometry.past + start - rule.window + 1, 0)
            blocks.append(Block(start, stop, low, high, sinks=min(rule.sinks, low)))
        else:
            blocks.append(_padded_block(geometry, rule, start, stop))
    return blocks


def block_mask(geometry: Geometry, rule: LayerRule, block: Block) -> Tensor | None:
    """Build the mask of a block: `[batch or 1, 1, rows, sinks + window columns]` bool on the CPU; None: all visible.

    Every row sees at least one key; what rows of padding see is meaningless but keeps their output finite.
    """
    if block.causal:
        return None
    window = torch.arange(block.low, block.high, device="cpu")
    if geometry.positions is None or geometry.segments is None:
        if block.stop - block.start == 1:
            return None
        start, stop = geometry.dense_interval(rule)
        query = torch.arange(geometry.past + block.start, geometry.past + block.stop, device="cpu")[:, None]
        assert isinstance(block.sinks, int)
        key = torch.cat([torch.arange(block.sinks, device="cpu"), window])
        dense = (query >= start) & (query < stop)
        return visible(query, key, dense, window=rule.window, sinks=rule.sinks)[None, None]
    dense = geometry.dense_rows(rule)[:, block.start : block.stop, None]
    columns = window.expand(geometry.batch, -1)
    fresh = torch.ones_like(columns, dtype=torch.bool)
    if isinstance(block.sinks, Tensor):
        columns = torch.cat([block.sinks, columns], dim=1)
        fresh = torch.cat([block.sinks < block.low, fresh], dim=1)
    query_columns = slice(geometry.past + block.start, geometry.past + block.stop)
    query, query_segment = geometry.positions[:, query_columns, None], geometry.segments[:, query_columns, None]
    key, key_segment = geometry.positions.gather(1, columns)[:, None], geometry.segments.gather(1, columns)[:, None]
    mask = visible(query, key, dense, window=rule.window, sinks=rule.sinks)
    mask = mask & (query_segment == key_segment) & (key_segment >= 0) & fresh[:, None]
    return (mask | ~mask.any(-1, keepdim=True))[:, None]


def _runs(geometry: Geometry, rule: LayerRule, first: int, size: int) -> list[tuple[int, int, bool]]:
    """Cut the rows from `first` on into (start, stop, dense) runs of at most `size` rows."""
    flags = geometry.dense_rows(rule)
    flags = flags.any(0) if flags.ndim == 2 else flags
    if rule.window is None:
        flags = torch.ones_like(flags)
    changes = (flags[1:] != flags[:-1]).nonzero()[:, 0].add(1).tolist()
    edges = sorted({first, geometry.rows, *(edge for edge in changes if edge > first)})
    return [
        (start, min(start + size, stop), bool(flags[start]))
        for begin, stop in itertools.pairwise(edges)
        for start in range(begin, stop, size)
    ]


def _padded_block(geometry: Geometry, rule: LayerRule, start: int, stop: int) -> Block:
    """Plan a sliding block of a pass with padding or segments: its range must suit every row of the batch."""
    assert geometry.positions is not None
    assert geometry.segments is not None
    assert rule.window is not None
    high = geometry.past + stop
    positions, segments = geometry.positions[:, :high], geometry.segments[:, :high]
    low, first_segments = geometry.past + start, []
    for row in range(geometry.batch):
        real = (segments[row, geometry.past + start :] >= 0).nonzero()[:, 0]
        if not len(real):
            first_segments.append(-1)
            continue
        column = geometry.past + start + int(real[0])
        segment, position = int(segments[row, column]), int(positions[row, column])
        seen = (segments[row] == segment) & (positions[row] > position - rule.window)
        low = min(low, int(seen.int().argmax()))
        first_segments.append(segment)
    # Only the segment of a row's first token can begin before `low`: the sinks of later ones lie in [low, high).
    sinks = geometry.sink_columns(rule.sinks, first_segments) if rule.sinks else 0
    return Block(start, stop, low, high, sinks=sinks)
