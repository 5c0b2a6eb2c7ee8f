"""The growing cache layer that forgets."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from swaa.cache.held import KEEP, ReleasedError, check_announced, released_view, select
from swaa.config import LayerRule
from swaa.geometry import Geometry


class SinkWindowLayer(DynamicLayer):
    """A growing cache layer that holds `[batch, kv_heads, kept, head_dim]`: sinks, then the last `window - 1` tokens.

    Until a token is really released it holds all tokens in order.

    Args:
        rule: the layer's rule.
        record_past: keep everything until the next `crop`.
    """

    is_croppable = True
    # None until the first update, which the base class's annotation would make every line check.
    keys: Any
    values: Any

    def __init__(self, rule: LayerRule, *, record_past: bool = False):
        super().__init__()
        self.rule = rule
        self.record_past = record_past
        self.seen = 0
        self.released = 0
        self.geometry: Geometry | None = None
        self._handed_out = 0
        self._keep_all = False

    @property
    def slots(self) -> int:
        """Sinks that lie in front of the kept columns."""
        return self.rule.sinks if self.released else 0

    def announce(self, geometry: Geometry, *, prompt_complete: bool) -> None:
        """Take note of the pass that comes.

        Args:
            geometry: the pass; it is kept, and whatever is noted in it.
            prompt_complete: the prompt ends in this pass or before; a dense tail needs every key until then.

        Raises:
            ReleasedError: rows of this pass see keys that are gone.
        """
        if self.released and bool(geometry.dense_rows(self.rule).any()):
            raise ReleasedError(
                f"a dense tail sees every key, but this cache has released the tokens up to {self.released}: give the "
                f"whole prompt on an empty cache, or {KEEP}"
            )
        if self.released and self._lacks_keys_of(geometry):
            raise ReleasedError(
                "this pass takes other tokens of the cache for padding than those before it did, and so sees tokens "
                f"that were released: pass the attention_mask of before, with ones for what came since, or {KEEP}"
            )
        self.geometry = geometry
        self._keep_all = bool(self.rule.dense_tail) and not prompt_complete

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens and release old ones; return what the rows of this pass may see."""
        check_announced(self.geometry, self.seen, key_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            keys, values = key_states, value_states
        else:
            keys = torch.cat([self.keys, key_states], dim=-2)
            values = torch.cat([self.values, value_states], dim=-2)
        self.seen += key_states.shape[-2]
        self.keys, self.values = keys, values
        self._handed_out = self.released
        if not self.record_past and not self._keep_all:
            self._release()
        return keys, values

    def view(self, geometry: Geometry) -> Geometry:
        """Describe the keys that `update` returned in this pass."""
        return released_view(geometry, self._handed_out, self.rule.sinks)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens (rejected drafts), then release as after a pass.

        Raises:
            ReleasedError: a row that comes after would see a released token.
        """
        tokens_to_remove = int(tokens_to_remove)  # a tensor, on some paths of `generate`
        # Up to transformers 5.17 a positive number was the length to keep.
        most = self.seen
        count = most - min(tokens_to_remove, most) if tokens_to_remove > 0 else min(-tokens_to_remove, most)
        if not self.is_initialized:
            return
        assert self.geometry is not None
        assert self.rule.window is not None
        length = self.seen - count
        if self.released and (
            length < self.released or self.geometry.first_needed(self.rule.window, length) < self.released
        ):
            raise ReleasedError(
                f"cannot crop {count} tokens: the window before them reaches tokens that were released; call "
                f"cache.activate_past_recording() before the tokens that may be cropped, or {KEEP}"
            )
        if count:
            self.keys, self.values = self.keys[:, :, :-count], self.values[:, :, :-count]
            self.seen = length
        if self.record_past:
            self._release()

    def activate_past_recording(self) -> None:
        """Keep everything that comes until the next `crop`."""
        self.record_past = True

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Take other rows of the batch: beam search."""
        super().reorder_cache(beam_idx)
        self._take_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.geometry is not None:
            self._take_rows(torch.arange(self.geometry.batch, device="cpu").repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        super().batch_select_indices(indices)
        self._take_rows(indices)

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.seen = self.released = 0
        self.geometry = None

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, released ones included."""
        return self.seen

    def _lacks_keys_of(self, geometry: Geometry) -> bool:
        """Tell whether a pass that finds other padding in the cache sees what was released."""
        assert self.geometry is not None
        assert self.rule.window is not None
        passes = (self.geometry, geometry)
        if all(x.segments is None for x in passes):
            return False
        real = [
            torch.ones(x.batch, self.seen, dtype=torch.bool, device="cpu")
            if x.segments is None
            else x.segments[:, : self.seen] >= 0
            for x in passes
        ]
        if torch.equal(*real):
            return False
        held, wanted = (x.sink_columns(self.rule.sinks) for x in passes)
        moved = (wanted != held) & (wanted < self.released)
        return bool(moved.any()) or geometry.first_needed(self.rule.window, self.seen) < self.released

    def _take_rows(self, index: Tensor) -> None:
        # Where the padding of these rows lies decides what a `crop` that follows may release.
        if self.geometry is not None:
            self.geometry = self.geometry.take_rows(index)

    def _release(self) -> None:
        assert self.geometry is not None
        assert self.rule.window is not None
        start = min(self.geometry.first_needed(self.rule.window, self.seen), self.seen)
        # As long as sinks and window touch, there is nothing to release.
        if start <= max(self.released, self.rule.sinks):
            return
        if self.rule.sinks:
            sinks = self.geometry.sink_columns(self.rule.sinks)
            # Slots filled before stay; a sink among the columns that go now moves to its slot.
            held = sinks - self.released + self.slots
            index = torch.where(sinks < self.released, torch.arange(self.rule.sinks, device="cpu"), held).clamp_(
                max=self.keys.shape[2] - 1
            )
            self.keys = _sinks_and_tail(self.keys, index, start - self.released + self.slots)
            self.values = _sinks_and_tail(self.values, index, start - self.released + self.slots)
        else:
            # A copy: a view would keep the released tokens alive.
            self.keys = self.keys[:, :, start - self.released :].clone()
            self.values = self.values[:, :, start - self.released :].clone()
        self.released = start


def _sinks_and_tail(held: Tensor, index: Tensor, start: int) -> Tensor:
    return torch.cat([select(held, index), held[:, :, start:]], dim=2)
