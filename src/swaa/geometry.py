"""Where the rows and keys of one forward pass sit: padding, packed segments, prompt and generated rows.

Columns count every slot of a row, padding included. Positions count the real tokens of a segment from 0, so sinks and
window start at a row's first real token (left padding) and at each segment's start (packed rows). All tensors here are
small, `[batch, columns]` at most, and live on the CPU: a backend moves what it needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from swaa.config import LayerRule


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the query rows and the keys of one forward pass sit. Shared by all layers, free of any model.

    The query rows are the last `rows` of the columns 0 to `past + rows - 1`. The keys are these columns in order,
    unless a cache layer has released some (`swaa.cache`): then they are `slots` sinks and the columns from `released`
    on, or, for a single query row, whatever `key_mask` says.

    Args:
        batch: rows of the batch.
        past: columns in the cache before this pass.
        rows: query rows of this pass.
        prompt_end: first column of a generated token; `past + rows` or more: the pass is all prompt.
        positions: `[batch, past + rows]` int64, position of each column in its segment (padding: that of the real token
            before it). None: there is no padding and one segment, so position equals column.
        segments: `[batch, past + rows]` int64, the segment of each column, -1 for padding. None with `positions`.
        generated: `[batch, rows]` bool, rows of generated tokens; with `positions` this counts, not `prompt_end`.
        to_prompt_end: `[batch, rows]` int64, tokens from this row to the end of the prompt that it belongs to (1: the
            last prompt row).
        released: columns below this one are gone, but for the sinks.
        slots: number of sinks that lie in front of the columns from `released` on; slot `s` holds the sink `s` of a
            row, and counts only while that sink's column is below `released`.
        key_mask: `[batch or 1, keys]` bool, for one query row over keys in any order: the visible ones.
        key_stop: with `key_mask`: `[1]` integer on the keys' device, the keys from this one on are unused room.
        memo: what was worked out for this pass, so that the layers share it.
    """

    batch: int
    past: int
    rows: int
    prompt_end: int
    positions: Tensor | None = None
    segments: Tensor | None = None
    generated: Tensor | None = None
    to_prompt_end: Tensor | None = None
    released: int = 0
    slots: int = 0
    key_mask: Tensor | None = None
    key_stop: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def columns(self) -> int:
        """Number of key columns."""
        return self.past + self.rows

    @property
    def keys(self) -> int:
        """Number of keys that a layer holds, for a geometry without `key_mask`."""
        return self.columns - self.released + self.slots

    def take_rows(self, index: Tensor) -> "Geometry":
        """Return the geometry of other rows of the batch: `index` as in `tensor[index]`, integers or a mask."""
        if self.positions is None and index.dtype != torch.bool:
            return replace(self, batch=len(index), memo={})  # without waiting for a device: beams move in every step
        index = index.cpu()
        names = ("positions", "segments", "generated", "to_prompt_end")
        taken = {name: held[index] for name in names if (held := getattr(self, name)) is not None}
        return replace(self, batch=len(torch.arange(self.batch, device="cpu")[index]), memo={}, **taken)

    def sink_columns(self, sinks: int, segments: Sequence[int] | None = None) -> Tensor:
        """Find the columns of the first tokens of each row: `[batch or 1, sinks]` int64.

        Args:
            sinks: how many.
            segments: segment of each row; None: the first one.

        A row with fewer tokens is filled up with the last column.
        """
        if self.positions is None or self.segments is None:
            return torch.arange(sinks, device="cpu").clamp_(max=self.columns - 1)[None]
        key = ("sinks", sinks, segments and tuple(segments))
        if key in self.memo:
            return self.memo[key]
        found = self.memo[key] = torch.full((self.batch, sinks), self.columns - 1, device="cpu")
        for row in range(self.batch):
            segment = 0 if segments is None else segments[row]
            if segment >= 0:
                of_row = (self.segments[row] == segment) & (self.positions[row] < sinks)
                columns = of_row.nonzero()[:, 0]
                found[row, : len(columns)] = columns
        return found

    def first_needed(self, window: int, columns: int | None = None) -> int:
        """Return the first column that a sliding row after the first `columns` columns (None: all) can still see.

        Sinks apart, that is the first of the last `window - 1` tokens of the row that reaches back furthest.
        """
        columns = self.columns if columns is None else columns
        if self.positions is None or self.segments is None:
            return max(columns - window + 1, 0)
        key = ("first needed", window, columns)
        if key in self.memo:
            return self.memo[key]
        first = columns
        for positions, segments in zip(self.positions[:, :columns], self.segments[:, :columns], strict=True):
            real = (segments >= 0).nonzero()[:, 0]
            if len(real):
                last = real[-1]
                seen = (segments == segments[last]) & (positions > positions[last] + 1 - window)
                first = min(first, int(seen.int().argmax()) if bool(seen.any()) else columns)
        self.memo[key] = first
        return first

    def dense_interval(self, rule: LayerRule) -> tuple[int, int]:
        """Return the columns [start, stop) whose rows are dense, for a geometry without `positions`."""
        start = max(self.prompt_end - rule.dense_tail, 0)
        return start, self.columns if rule.fa_decode else min(self.prompt_end, self.columns)

    def dense_rows(self, rule: LayerRule) -> Tensor:
        """Return which query rows see everything on a layer: bool, `[rows]` or `[batch, rows]`."""
        if self.generated is None or self.to_prompt_end is None:
            start, stop = self.dense_interval(rule)
            column = torch.arange(self.past, self.columns, device="cpu")
            return (column >= start) & (column < stop)
        tail = ~self.generated & (self.to_prompt_end <= rule.dense_tail)
        return tail | self.generated if rule.fa_decode else tail


def build_geometry(
    *,
    batch: int,
    past: int,
    rows: int,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    prompt_end: int | None = None,
    prompt_length: int | Tensor | None = None,
    dense_rows: Tensor | None = None,
) -> Geometry:
    """Describe one forward pass.

    At most one of `prompt_end`, `prompt_length` and `dense_rows` says which rows are generated; without any, all rows
    belong to the prompt.

    Args:
        batch: rows of the batch.
        past: columns in the cache before this pass.
        rows: query rows of this pass.
        attention_mask: `[batch, >= past + rows]`, nonzero for real tokens; None: no padding.
        position_ids: `[batch or 1, rows]`; where they restart among the real tokens of a pass without a past, a new
            packed segment begins. None: one segment.
        prompt_end: first generated column, the same for all rows.
        prompt_length: prompt tokens of each row, padding excluded; an int or `[batch]` integers.
        dense_rows: `[batch, rows]` bool, rows of generated tokens.

    Raises:
        ValueError: a shape does not fit.
    """
    columns = past + rows
    real = None
    if attention_mask is not None:
        if attention_mask.ndim != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < columns:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}: an adapted model needs a 2-D mask that "
                f"covers the cached and the new tokens, here [{batch}, {columns}]"
            )
        real = attention_mask[:, :columns].bool().cpu()
        real = None if bool(real.all()) else real
    starts = _segment_starts(real, position_ids, batch, columns) if past == 0 else None
    lengths = None
    if prompt_length is not None:
        lengths = torch.as_tensor(prompt_length, device="cpu").reshape(-1, 1)
        if lengths.is_floating_point() or lengths.shape[0] not in (1, batch) or bool((lengths < 0).any()):
            raise ValueError(f"prompt_length: give one length, or {batch} (one a row), 0 or more; got {prompt_length}")
    if real is None and starts is None and dense_rows is None and (lengths is None or len(lengths.unique()) == 1):
        if lengths is not None:
            prompt_end = int(lengths[0])
        return Geometry(batch, past, rows, columns if prompt_end is None else prompt_end)
    if prompt_end is None:
        prompt_end = columns
    if real is None:
        real = torch.ones(batch, columns, dtype=torch.bool, device="cpu")
    if starts is None:
        starts = torch.zeros_like(real)

    # A column of padding takes the rank of the real token before it: harmless, its output is never used.
    rank = (real.long().cumsum(-1) - 1).clamp_(min=0)
    segment = (starts & real).long().cumsum(-1)
    first = torch.where(starts & real, rank, 0).cummax(-1).values
    position = rank - first
    segment_or_padding = torch.where(real, segment, -1)

    if dense_rows is not None:
        if dense_rows.shape != (batch, rows):
            raise ValueError(f"dense_rows has shape {tuple(dense_rows.shape)}, not [batch, rows] = [{batch}, {rows}]")
        generated = torch.zeros_like(real)
        generated[:, past:] = dense_rows.bool().cpu()
    elif lengths is not None:
        generated = position >= lengths
    else:
        generated = (torch.arange(columns, device="cpu") >= prompt_end).expand(batch, -1)
    generated = generated & real

    if lengths is not None:
        to_prompt_end = lengths - position
    else:
        beyond = max(prompt_end - columns, 0)
        to_prompt_end = _prompt_end_rank(rank, segment, real, generated, beyond) - rank
    return Geometry(
        batch,
        past,
        rows,
        prompt_end,
        position,
        segment_or_padding,
        generated[:, past:],
        to_prompt_end[:, past:],
    )


def _segment_starts(real: Tensor | None, position_ids: Tensor | None, batch: int, columns: int) -> Tensor | None:
    """Find where packed segments begin: `[batch, columns]` bool, None when there is one segment a row."""
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[-1] != columns:
        return None
    positions = position_ids.cpu().expand(batch, -1)
    if real is None:
        restart = positions.diff(dim=-1) != 1
        if not bool(restart.any()):
            return None
        return torch.cat([torch.zeros(batch, 1, dtype=torch.bool, device="cpu"), restart], dim=-1)
    # Compare each real token with the real token before it, whatever padding lies between.
    starts = torch.zeros(batch, columns, dtype=torch.bool, device="cpu")
    for row in range(batch):
        column = real[row].nonzero()[:, 0]
        restart = positions[row, column].diff() != 1
        starts[row, column[1:][restart]] = True
    return starts if bool(starts.any()) else None


def _prompt_end_rank(rank: Tensor, segment: Tensor, real: Tensor, generated: Tensor, beyond: int) -> Tensor:
    """Rank at which the prompt run of each column ends: the next generated token, or the segment's end.

    Args:
        rank: `[batch, columns]` rank of each column among the real tokens of its row.
        segment: `[batch, columns]` segment of each column.
        real: `[batch, columns]` bool.
        generated: `[batch, columns]` bool.
        beyond: prompt tokens after the last column that are still to come (chunked prefill).
    """
    never = torch.full((len(rank), 1), torch.iinfo(torch.long).max, device="cpu")
    next_segment = torch.zeros_like(real)
    next_segment[:, 1:] = real[:, 1:] & (segment.diff(dim=-1) != 0)
    ends = torch.where((generated | next_segment) & real, rank, never)
    last = torch.where(real, rank, -1).amax(-1, keepdim=True) + 1 + beyond
    # The end belongs to the columns before it, so look from the next column on.
    ends = torch.cat([ends[:, 1:], last], dim=-1)
    return ends.flip(-1).cummin(-1).values.flip(-1)
