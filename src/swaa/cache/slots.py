"""A static cache as one token's recorded step sees it: the same tensors, written in the slot that a tensor names."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from swaa.cache.static import StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.geometry import Geometry


class SlotLayer(CacheLayerMixin):
    """Stands in for one static layer while a step runs.

    Args:
        layer: the layer, whose tensors are used.
        cache: what all layers share.
        rule: the layer's rule.
    """

    is_compileable = True
    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, cache: "DecodeCache", rule: LayerRule):
        super().__init__()
        self.keys, self.values = layer.keys, layer.values
        self.is_initialized = True
        self.cache = cache
        self.ring = isinstance(layer, StaticSinkWindowLayer)
        # Layers of one kind share slot, mask and geometry.
        self.kind = (rule, self.ring, self.keys.shape[2])

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the tensors are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token in place; return all slots."""
        from swaa.attention.kernels.decode import write_slot
        from swaa.attention.launch import early_start

        rule = self.kind[0]
        slot, _ = self.cache.described[self.kind]
        batch, kv_heads, _, dim = self.keys.shape
        value_dim = self.values.shape[-1]
        write_slot[(batch * kv_heads,)](
            key_states, value_states, self.keys, self.values, slot, self.cache.column, self.cache.padding,
            *key_states.stride()[:2], *value_states.stride()[:2], *self.keys.stride()[:2], *self.values.stride()[:2],
            kv_heads, rule.sinks if self.ring else 0,
            DIM=dim, PAD=1 << (dim - 1).bit_length(), VDIM=value_dim, VPAD=1 << (value_dim - 1).bit_length(),
            **early_start(key_states.device),
        )  # fmt: skip
        return self.keys, self.values

    def view(self, geometry: Geometry) -> Geometry:
        """Describe the slots that `update` returned."""
        return self.cache.described[self.kind][1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of slots, and 0: no mask is built from them."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> int:
        """Return a number of tokens; which one does not matter, positions are given."""
        return self.cache.start

    def get_max_length(self) -> int:
        """Return the number of slots."""
        return self.keys.shape[2]


class DecodeCache(Cache):
    """A static cache for steps of one token whose column is a tensor, so that a step can be recorded and replayed.

    Args:
        cache: the static cache with the prompt in it; `finish` brings it up to date.
        padding: `[batch]` int64, columns of left padding.
        start: columns in the cache.
    """

    def __init__(self, cache: Any, padding: Tensor, start: int):
        self.cache = cache
        self.padding = padding
        self.start = start
        self.count = 0
        self.column = torch.full((1,), start, dtype=torch.long, device=padding.device)
        self.described: dict[Any, tuple[Tensor, Geometry]] = {}
        super().__init__(layers=[])
        self.layers: list[Any]

    @property
    def capacity(self) -> int:
        """Number of tokens that the static cache was made for."""
        return min(layer.get_max_length() for layer in self.cache.layers)

    def begin(self, rules: Any) -> None:
        """Work out slots and masks for the column that comes, on the device; `rules` has one rule a layer."""
        if not self.layers:
            self.layers = [SlotLayer(layer, self, rule) for layer, rule in zip(self.cache.layers, rules, strict=True)]
        self.described = {}
        for layer in self.layers:
            if layer.kind not in self.described:
                self.described[layer.kind] = self._describe(*layer.kind)

    def positions(self) -> Tensor:
        """Return the position of the token that comes, `[batch, 1]`."""
        return (self.column - self.padding)[:, None]

    def finish(self) -> None:
        """Count the decoded tokens in the static cache; no step may follow."""
        # Each layer knows this cache: in a circle, keys and values would stay until Python looks for circles.
        self.layers, self.described = [], {}
        for layer in self.cache.layers:
            layer.cumulative_length.add_(self.count)
            if isinstance(layer, StaticSinkWindowLayer):
                layer.seen += self.count
                layer.released = max(layer.seen - layer.window, 0)

    def _describe(self, rule: LayerRule, ring: bool, slots: int) -> tuple[Tensor, Geometry]:
        from swaa.attention.kernels.decode import describe_slots

        device, batch = self.padding.device, len(self.padding)
        mask = torch.empty(batch, slots, dtype=torch.bool, device=device)
        slot = torch.empty(1, dtype=torch.long, device=device)
        stop = torch.empty(1, dtype=torch.int32, device=device)
        block = min(1024, 1 << (slots - 1).bit_length())
        describe_slots[(-(-slots // block), batch)](
            self.column, self.padding, mask, slot, stop, slots, rule.window or 0, rule.sinks,
            RING=ring, DENSE=rule.window is None or rule.fa_decode, SLOTS=block,
        )  # fmt: skip
        return slot, Geometry(batch, self.start, 1, 0, key_mask=mask, key_stop=stop)
