"""The cache layer whose KV heads keep different tokens: sliding heads forget, full heads do not."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, StaticLayer

from swaa.attention.heads import HeadGroup, take_heads
from swaa.cache.dynamic import SinkWindowLayer
from swaa.cache.held import KEEP, ReleasedError
from swaa.cache.static import StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.geometry import Geometry


class HeadsLayer(CacheLayerMixin):
    """Two cache layers in one, for the sliding and for the full KV heads of a layer.

    Their keys differ in length, so `update` cannot return them: the attention takes them by `groups`.

    Args:
        rule: the layer's rule.
        sliding: an empty layer for the heads that slide.
        full: an empty layer of the same kind for the others.
    """

    is_sliding = False
    supports_early_init = False

    def __init__(
        self, rule: LayerRule, sliding: SinkWindowLayer | StaticSinkWindowLayer, full: DynamicLayer | StaticLayer
    ):
        super().__init__()
        self.rule = rule
        self.sliding, self.full = sliding, full
        self.layers: tuple[Any, Any] = (sliding, full)
        self._kv_heads = 0
        self._handed_out: tuple[Tensor, list[tuple[Tensor, Tensor]]] | None = None

    def announce(self, geometry: Geometry, *, prompt_complete: bool) -> None:
        """Take note of the pass that comes; see `SinkWindowLayer.announce`."""
        self.sliding.announce(geometry, prompt_complete=prompt_complete)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the two layers see to it."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append tokens to both layers; return the new ones alone, which `groups` exchanges for the right ones."""
        self._kv_heads = key_states.shape[1]
        found = [
            layer.update(take_heads(key_states, heads), take_heads(value_states, heads), *args, **kwargs)
            for layer, (heads, _) in zip(self.layers, self.rule.parts(self._kv_heads), strict=True)
        ]
        self.is_initialized = True
        self._handed_out = (key_states, found)
        return key_states, value_states

    def groups(self, key: Tensor, geometry: Geometry) -> list[HeadGroup]:
        """Return what the rows of this pass may see, once a pass.

        Args:
            key: the keys that reached the attention: those that `update` has returned.
            geometry: the pass.

        Raises:
            ReleasedError: they are others.
        """
        handed_out, self._handed_out = self._handed_out, None
        if handed_out is None or handed_out[0].data_ptr() != key.data_ptr() or handed_out[0].shape != key.shape:
            raise ReleasedError(
                "this model does not hand the keys of its cache to its attention as they are, so a layer with "
                f"full_heads cannot release those of its sliding heads: {KEEP}"
            )
        (sliding, sliding_rule), (full, full_rule) = self.rule.parts(self._kv_heads)
        keys, values = handed_out[1][1]
        # A static layer hands out its unused slots too.
        keys, values = keys[:, :, : geometry.columns], values[:, :, : geometry.columns]
        return [
            HeadGroup(sliding, sliding_rule, *handed_out[1][0], self.sliding.view(geometry)),
            HeadGroup(full, full_rule, keys, values, geometry),
        ]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove tokens at the end; see `SinkWindowLayer.crop`, which may refuse."""
        for layer in self.layers:
            layer.crop(tokens_to_remove)

    @property
    def record_past(self) -> bool:
        """Whether everything is kept until the next `crop`."""
        return getattr(self.sliding, "record_past", False)

    @record_past.setter
    def record_past(self, value: bool) -> None:
        if isinstance(self.sliding, SinkWindowLayer):
            self.sliding.record_past = value

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]  # a constant of its class in transformers
        """Whether `crop` can take drafts back."""
        return self.sliding.is_croppable

    def activate_past_recording(self) -> None:
        """Keep everything that comes until the next `crop`."""
        self.record_past = True

    def reset(self) -> None:
        """Forget all tokens."""
        for layer in self.layers:
            layer.reset()
        self.is_initialized = self.full.is_initialized
        self._handed_out = None

    def offload(self) -> None:
        """Move what is held to the host."""
        for layer in self.layers:
            layer.offload()

    def prefetch(self) -> None:
        """Move what is held back to its device."""
        for layer in self.layers:
            layer.prefetch()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other rows of the batch: beam search."""
        for layer in self.layers:
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        for layer in self.layers:
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        for layer in self.layers:
            layer.batch_select_indices(indices)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns after the pass, and 0."""
        return self.sliding.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Return the number of tokens seen, released ones included."""
        return self.sliding.get_seq_length()

    def get_max_length(self) -> int:
        """Return the number of tokens that the cache was made for, -1 if it grows."""
        return self.sliding.get_max_length()
