"""Cutting a pass into tiles of query rows, each with the ranges of keys it can see: the block lists of GPU kernels.

Built in time and memory linear in the columns, without evaluating the mask. A tile sees a range of sinks and a range
that ends at its own rows; within the second lies a part that every row of the tile sees, where no mask is needed.

Kernels compare ranks: the rank of a column counts the real tokens of its row before it, so that sinks, window and
segment all become comparisons of three integers (`visible_ranks`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.config import LayerRule
from swaa.geometry import Geometry

# Stands for "no window": larger than any position, and far from overflow.
NO_WINDOW = 1 << 30


@dataclass(frozen=True, eq=False)
class Ranks:
    """Who sees whom in a pass with padding or packed segments; all int32.

    Args:
        query: `[batch, rows]`, rank of each query row, -1 for padding.
        start: `[batch, rows]`, rank of the first token of the row's segment.
        dense: `[batch, rows]`, 1 where the row sees its whole segment so far.
        key: `[batch, keys]`, rank of each key that the layer holds, -1 for one that nobody sees.
    """

    query: Tensor
    start: Tensor
    dense: Tensor
    key: Tensor

    def to(self, device: torch.device) -> "Ranks":
        """Return a copy on a device."""
        return Ranks(*(tensor.to(device) for tensor in (self.query, self.start, self.dense, self.key)))


def visible_ranks(query: Tensor, start: Tensor, dense: Tensor, key: Tensor, rule: LayerRule) -> Tensor:
    """Tell which keys are visible, in ranks: what every kernel computes. Arguments broadcast; see `Ranks`."""
    window = NO_WINDOW if rule.window is None else rule.window
    same_segment = (key <= query) & (key >= start)
    return same_segment & ((query - key < window) | (key - start < rule.sinks) | (dense > 0))


def plain_ranks(geometry: Geometry, rule: LayerRule) -> Ranks:
    """Write out the ranks of a pass without padding or segments, where kernels compute them: rank is column."""
    column = torch.arange(geometry.past, geometry.columns, device="cpu")[None]
    keys = torch.arange(geometry.keys, device="cpu")
    key = torch.where(keys < geometry.slots, keys, keys - geometry.slots + geometry.released)[None]
    first, stop = dense_columns(geometry, rule)
    dense = (column >= first) & (column < stop)
    return Ranks(*(x.int() for x in (column, torch.zeros_like(column), dense, key)))


def dense_columns(geometry: Geometry, rule: LayerRule) -> tuple[int, int]:
    """Return the columns [start, stop) of dense rows of a pass without padding; all of them on a full layer."""
    return (0, geometry.columns) if rule.window is None else geometry.dense_interval(rule)


def padded_ranks(geometry: Geometry, rule: LayerRule) -> Ranks | None:
    """Work out the ranks of a pass with padding or segments, None for one without."""
    if geometry.positions is None or geometry.segments is None:
        return None
    real = geometry.segments >= 0
    rank = real.long().cumsum(-1) - 1
    real_rows = real[:, geometry.past :]
    query = torch.where(real_rows, rank[:, geometry.past :], -1)
    start = torch.where(real_rows, query - geometry.positions[:, geometry.past :], 0)
    dense = real_rows & (torch.ones_like(real_rows) if rule.window is None else geometry.dense_rows(rule))
    key = torch.where(real, rank, -1)
    if geometry.released:
        sinks = geometry.sink_columns(geometry.slots).expand(geometry.batch, -1)
        slots = torch.where(sinks < geometry.released, key.gather(1, sinks), -1)
        key = torch.cat([slots, key[:, geometry.released :]], dim=1)
    return Ranks(*(x.int() for x in (query, start, dense, key)))


def tile_ranges(geometry: Geometry, rule: LayerRule, ranks: Ranks | None, size: int) -> Tensor:
    """Find the keys that each tile of `size` query rows sees.

    Args:
        geometry: the pass.
        rule: the layer's rule.
        ranks: what `padded_ranks` returned.
        size: rows of a tile.

    Returns:
        `[batch or 1, tiles, 6]` int32 on the CPU, indices of held keys: sinks [0, 1), all other keys [2, 5), and the
        part [3, 4) of these that every row sees.
    """
    columns = _plain_ranges(geometry, rule, size) if ranks is None else _padded_ranges(geometry, rule, ranks, size)
    sink_start, sink_stop, start, full_start, full_stop, stop = columns
    empty = full_start >= full_stop
    full_start, full_stop = torch.where(empty, start, full_start), torch.where(empty, start, full_stop)
    if geometry.released:
        shift = geometry.slots - geometry.released
        start, full_start, full_stop, stop = (
            torch.where(stop > 0, x + shift, x) for x in (start, full_start, full_stop, stop)
        )
        if ranks is not None:
            # Sinks lie in the slots, and further ones perhaps among the columns that follow.
            sink_stop = torch.where((sink_stop > sink_start) & (stop > 0), start, 0)
            sink_start = torch.zeros_like(sink_start)
    return torch.stack([sink_start, sink_stop, start, full_start, full_stop, stop], dim=-1).int()


def _plain_ranges(geometry: Geometry, rule: LayerRule, size: int) -> tuple[Tensor, ...]:
    first = torch.arange(geometry.past, geometry.columns, size, device="cpu")
    last = (first + size).clamp_(max=geometry.columns) - 1
    dense_start, dense_stop = dense_columns(geometry, rule)
    some_dense = (last >= dense_start) & (first < dense_stop)
    all_dense = (first >= dense_start) & (last < dense_stop)
    window = NO_WINDOW if rule.window is None else rule.window
    start = torch.where(some_dense, 0, (first - window + 1).clamp_(min=0))
    full_start = torch.where(all_dense, 0, (last - window + 1).clamp_(min=0))
    ranges = torch.zeros_like(start), start.clamp(max=rule.sinks), start, full_start, first + 1, last + 1
    return tuple(x[None] for x in ranges)


def _padded_ranges(geometry: Geometry, rule: LayerRule, ranks: Ranks, size: int) -> tuple[Tensor, ...]:
    assert geometry.segments is not None
    batch, columns = geometry.batch, geometry.columns
    real = geometry.segments >= 0
    before = torch.nn.functional.pad(real.long().cumsum(-1), (1, 0))
    # Column of each rank; ranks that do not exist point at the last column.
    column_of = torch.full((batch, columns + 1), columns - 1, device="cpu")
    own = torch.arange(columns, device="cpu").expand(batch, -1)
    column_of.scatter_(1, torch.where(real, before[:, :-1], columns), own)
    query, start = ranks.query.long(), ranks.start.long()
    window = NO_WINDOW if rule.window is None else rule.window
    needed = torch.where(ranks.dense > 0, start, torch.maximum(query - window + 1, start))
    is_real = query >= 0

    def tiles(x: Tensor, fill: int) -> Tensor:
        filled = torch.where(is_real, x, fill)
        return torch.nn.functional.pad(filled, (0, -geometry.rows % size), value=fill).reshape(batch, -1, size)

    own_column = own[:, geometry.past :]
    first, last = tiles(own_column, columns).amin(-1), tiles(own_column, -1).amax(-1)
    some = last >= 0
    low = tiles(needed, columns).amin(-1).clamp_(max=columns - 1)
    low_column = column_of.gather(1, low)
    # Only the segment of a tile's first token can begin before `low`: the sinks of later ones lie in the other range.
    start_of_first = tiles(start, columns).amin(-1).clamp_(max=columns - 1)
    sink_start = column_of.gather(1, start_of_first)
    sink_last = column_of.gather(1, (start_of_first + rule.sinks - 1).clamp_(0, columns - 1))
    sink_stop = torch.minimum(sink_last + 1, low_column) if rule.sinks else sink_start
    high = tiles(needed, -1).amax(-1).clamp_(min=0)
    full_start, full_stop = column_of.gather(1, high), first + 1
    one_segment = tiles(start, columns).amin(-1) == tiles(start, -1).amax(-1)
    # Padding rows of a tile count as well: their output is not used.
    gapless = before.gather(1, full_stop.clamp(max=columns)) - before.gather(1, full_start) == full_stop - full_start
    full_stop = torch.where(one_segment & gapless & some, full_stop, full_start)
    zero = torch.zeros_like(first)
    sink_stop = torch.maximum(sink_stop, sink_start)
    found = sink_start, sink_stop, low_column, full_start, full_stop, last + 1
    return tuple(torch.where(some, x, zero) for x in found)


@dataclass(frozen=True, eq=False)
class BlockLists:
    """Pairs of query tiles and key blocks with anything to see, in order of the query tiles. All int64 `[pairs]`.

    Args:
        batch: the row of the batch.
        tile: the query tile.
        block: the key block.
        full: bool, all rows of the tile see all keys of the block.
    """

    batch: Tensor
    tile: Tensor
    block: Tensor
    full: Tensor


def block_lists(ranges: Tensor, size: int, *, full_sinks: bool) -> BlockLists:
    """Cut the ranges of `tile_ranges` into blocks of `size` keys, in time linear in the pairs.

    Args:
        ranges: what `tile_ranges` returned.
        size: keys of a block; block `n` begins at key `n * size`.
        full_sinks: every row of a tile sees all sinks of its range: so without padding and segments.
    """
    sink_start, sink_stop, start, full_start, full_stop, stop = ranges.long().unbind(-1)
    has_sinks = sink_stop > sink_start
    first = torch.where(has_sinks, sink_start // size, 0)
    sinks = torch.where(has_sinks, (sink_stop - 1) // size + 1 - first, 0)
    begin = torch.where(stop > start, start // size, 0)
    rest = torch.where(stop > start, (stop - 1) // size + 1 - begin, 0)
    # A block that both ranges touch counts once.
    overlap = torch.where(has_sinks & (rest > 0), (first + sinks - begin).clamp(min=0), 0)
    begin, rest = begin + overlap, rest - overlap
    count = (sinks + rest).flatten()
    owner = torch.repeat_interleave(torch.arange(len(count), device="cpu"), count)
    step = torch.arange(len(owner), device="cpu") - (count.cumsum(0) - count)[owner]

    def of(x: Tensor) -> Tensor:
        return x.flatten()[owner]

    block = torch.where(step < of(sinks), of(first) + step, of(begin) + step - of(sinks))
    full = (block * size >= of(full_start)) & ((block + 1) * size <= of(full_stop))
    if full_sinks:
        full |= (block + 1) * size <= of(sink_stop)
    tiles = ranges.shape[1]
    return BlockLists(owner // tiles, owner % tiles, block, full)
