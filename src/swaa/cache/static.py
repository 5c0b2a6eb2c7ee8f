"""The cache layer of fixed shape that forgets: sinks and a ring."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer

from swaa.cache.held import KEEP, ReleasedError, check_announced, released_view, select
from swaa.config import LayerRule
from swaa.geometry import Geometry


class StaticSinkWindowLayer(StaticLayer):
    """A cache layer of fixed shape `[batch, kv_heads, sinks + window, head_dim]`: sinks, then a ring of last tokens.

    Nothing is reallocated. A pass of one row writes one slot and sees the whole buffer under `slot_mask`.

    Args:
        max_cache_len: tokens that the cache was made for (what it reports; the buffer is smaller).
        rule: the layer's rule.
    """

    is_croppable = False
    # None until the first update, which the base class's annotation would make every line check.
    keys: Any
    values: Any

    def __init__(self, max_cache_len: int, rule: LayerRule):
        assert rule.window is not None
        super().__init__(max_cache_len=rule.sinks + rule.window)
        self.reported_length = max_cache_len
        self.rule = rule
        self.window = rule.window
        self.seen = 0
        self.released = 0
        self.geometry: Geometry | None = None
        self._handed_out: int | None = None

    def announce(self, geometry: Geometry, *, prompt_complete: bool) -> None:
        """Take note of the pass that comes; see `SinkWindowLayer.announce`.

        Raises:
            ReleasedError: rows of this pass see keys that are gone, or a row has padding elsewhere than at its left.
        """
        # A single row is written before it is read, over the key that leaves the window with it.
        gone = self.released or (geometry.rows == 1 and self.seen == self.window and not self.rule.sinks)
        if gone and bool(geometry.dense_rows(self.rule).any()):
            raise ReleasedError(
                f"a dense tail sees every key, but this cache has released the tokens up to {self.released}: give the "
                f"whole prompt on an empty cache, or {KEEP}"
            )
        # A left-padded row steps from padding (-1) to its tokens (0) and never back.
        if geometry.segments is not None and bool((geometry.segments.diff(dim=-1) < 0).any()):
            raise ReleasedError(f"a static cache that releases takes padding at the left only: pad left, or {KEEP}")
        self.geometry = geometry

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write tokens in place; return what the rows of this pass may see."""
        check_announced(self.geometry, self.seen, key_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, past = key_states.shape[-2], self.seen
        self._handed_out = None if rows == 1 else self.released
        full = None
        if rows > 1:
            full = tuple(
                torch.cat([self._in_order(held), new], dim=-2)
                for held, new in ((self.keys, key_states), (self.values, value_states))
            )
        self._write_sinks(key_states, value_states)
        # Through a tensor, so that a captured graph writes to the right slot when it is replayed.
        last = min(rows, self.window)
        column = self.cumulative_length + rows - last + torch.arange(last, device=self.device)
        slot = self.rule.sinks + column % self.window
        self.keys.index_copy_(2, slot, key_states[:, :, -last:])
        self.values.index_copy_(2, slot, value_states[:, :, -last:])
        self.cumulative_length.add_(rows)
        self.seen = past + rows
        self.released = max(self.seen - self.window, 0)
        if full is None:
            return self.keys, self.values
        return full[0], full[1]

    def view(self, geometry: Geometry) -> Geometry:
        """Describe the keys that `update` returned in this pass."""
        if self._handed_out is not None:
            return released_view(geometry, self._handed_out, self.rule.sinks)
        key = ("slots", self.rule)
        if key not in geometry.memo:
            geometry.memo[key] = replace(geometry, key_mask=self.slot_mask(), memo={})
        return geometry.memo[key]

    def slot_mask(self) -> Tensor:
        """Return the slots that the last token sees: `[batch or 1, sinks + window]` bool on the layer's device."""
        last = self.cumulative_length - 1
        ring = torch.arange(self.window, device=self.device)
        column = last - (last - ring) % self.window
        sinks = torch.arange(self.rule.sinks, device=self.device)
        start = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        if self.geometry is not None and self.geometry.segments is not None:
            start = (self.geometry.segments < 0).sum(-1, keepdim=True).to(self.device)
        # A sink that is still in the ring counts there.
        return torch.cat([start + sinks <= last - self.window, (column >= start).expand(len(start), -1)], dim=-1)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns after the pass, and 0."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, released ones included."""
        return self.seen

    def get_max_length(self) -> int:
        """Return the number of tokens that the cache was made for."""
        return self.reported_length

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.seen = self.released = 0
        self.geometry = None

    def _in_order(self, held: Tensor) -> Tensor:
        """Return sinks (once a token was released) and ring in the order of the columns."""
        column = torch.arange(self.released, self.seen, device=self.device)
        tail = held[:, :, self.rule.sinks + column % self.window]
        return torch.cat([held[:, :, : self.rule.sinks], tail], dim=-2) if self.released else tail

    def _write_sinks(self, key_states: Tensor, value_states: Tensor) -> None:
        assert self.geometry is not None
        sinks = self.geometry.sink_columns(self.rule.sinks)
        fresh = (sinks >= self.seen) & (sinks < self.geometry.columns)
        if self.geometry.positions is not None and self.geometry.segments is not None:
            real = self.geometry.positions.gather(1, sinks) == torch.arange(self.rule.sinks, device="cpu")
            fresh &= real & (self.geometry.segments.gather(1, sinks) >= 0)
        else:
            fresh &= torch.arange(self.rule.sinks, device="cpu") < self.geometry.columns
        if not bool(fresh.any()):
            return
        index = (sinks - self.seen).clamp_(0, key_states.shape[2] - 1)
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            part = held[:, :, : self.rule.sinks]
            part.copy_(torch.where(fresh[:, None, :, None].to(held.device), select(new, index), part))
