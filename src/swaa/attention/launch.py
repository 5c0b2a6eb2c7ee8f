"""A pass as the Triton kernels take it: ranks and ranges on the device, and the work items of the backward pass."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from swaa.attention.tiles import NO_WINDOW, Ranks, block_lists, dense_columns, padded_ranks, tile_ranges
from swaa.config import LayerRule
from swaa.geometry import Geometry

# A block of keys that more query tiles see than these, and than twice the median, is split over programs.
_LONG_ITEM = 64


@dataclass(frozen=True, eq=False)
class Launch:
    """A pass and a layer's rule, as the kernels take them."""

    geometry: Geometry
    rule: LayerRule
    device: torch.device
    scaling: float
    softcap: float

    def ranks(self) -> Ranks | None:
        """Return the ranks on the device, None for a pass where rank is column."""
        return self._memo("ranks", self._ranks)

    def _ranks(self) -> Ranks | None:
        if (mask := self.geometry.key_mask) is not None:
            key = torch.where(mask, 0, -1).int().to(self.device)
            zero = torch.zeros(len(key), 1, dtype=torch.int32, device=self.device)
            # Kernels step through the batch: nothing may be broadcast.
            return Ranks(*(x.expand(self.geometry.batch, -1).contiguous() for x in (zero, zero, zero + 1, key)))
        ranks = self._memo("ranks on the CPU", lambda: padded_ranks(self.geometry, self.rule))
        return None if ranks is None else ranks.to(self.device)

    def ranges(self, size: int) -> Tensor:
        """Return `tile_ranges` on the device."""
        if self.geometry.key_mask is not None:
            return self._memo("ranges", self._ranges_of_slots)
        return self._memo(("ranges", size), lambda: self.host_ranges(size).to(self.device, non_blocking=True))

    def host_ranges(self, size: int) -> Tensor:
        """Return `tile_ranges`."""
        ranks = self._memo("ranks on the CPU", lambda: padded_ranks(self.geometry, self.rule))
        return self._memo(("host ranges", size), lambda: tile_ranges(self.geometry, self.rule, ranks, size))

    def _ranges_of_slots(self) -> Tensor:
        assert self.geometry.key_mask is not None
        ranges = torch.zeros(1, 1, 6, dtype=torch.int32, device=self.device)
        stop = self.geometry.key_stop
        ranges[..., 5] = self.geometry.key_mask.shape[-1] if stop is None else stop
        return ranges

    def items(self, rows: int, keys: int) -> "Items":
        """Return the work of the backward pass over blocks of keys."""
        return self._memo(("items", rows, keys), lambda: Items.build(self, rows, keys))

    def row_arguments(self) -> tuple[Any, ...]:
        """Return the tensors of ranks, of which the kernels read none where rank is column."""
        ranks = self.ranks()
        if ranks is None:
            nothing = self._memo("nothing", lambda: torch.empty(0, dtype=torch.int32, device=self.device))
            return (nothing,) * 4
        return ranks.query, ranks.start, ranks.dense, ranks.key

    def numbers(self) -> tuple[Any, ...]:
        """Return the scalar arguments that all kernels share."""
        start, stop = dense_columns(self.geometry, self.rule)
        window = NO_WINDOW if self.rule.window is None else self.rule.window
        slots, released = self.geometry.slots, self.geometry.released
        scale = (slots, released, start, stop, window, self.rule.sinks, self.scaling, self.softcap)
        return self.geometry.past, *scale

    def _memo(self, name: Any, build: Any) -> Any:
        key = ("triton", name, self.rule, self.device)
        if key not in self.geometry.memo:
            self.geometry.memo[key] = build()
        return self.geometry.memo[key]


@dataclass(frozen=True, eq=False)
class Items:
    """Work items of `kernels.backward.key_gradient`, and the blocks of keys that several of them share.

    Args:
        items: `[items, 6]` int32 on the device.
        tiles: query tiles that the items point at, int32 on the device.
        split: (row of the batch, key block, first slot, slots) of each split block.
        slots: number of parts in all.
    """

    items: Tensor
    tiles: Tensor
    split: list[tuple[int, int, int, int]]
    slots: int

    @classmethod
    def build(cls, launch: Launch, rows: int, keys: int) -> "Items":
        """Turn the lists of query tiles round: for each block of keys the tiles that see it, full ones first."""
        geometry = launch.geometry
        ranges = launch.host_ranges(rows).expand(geometry.batch, -1, -1)
        lists = block_lists(ranges, keys, full_sinks=geometry.positions is None)
        blocks = math.ceil(geometry.keys / keys)
        owner = lists.batch * blocks + lists.block
        # Stable, so that full tiles come first and each kind in order.
        order = (owner * 2 + ~lists.full).argsort(stable=True)
        counts = torch.bincount(owner, minlength=geometry.batch * blocks)
        full = torch.bincount(owner[lists.full], minlength=geometry.batch * blocks)
        most = max(_LONG_ITEM, 2 * int(counts.median()))
        pieces = torch.clamp((counts + most - 1) // most, min=1)
        which = torch.repeat_interleave(torch.arange(len(counts), device="cpu"), pieces)
        piece = torch.arange(len(which), device="cpu") - (pieces.cumsum(0) - pieces)[which]
        begin = (counts.cumsum(0) - counts)[which]
        first = begin + piece * most
        end = torch.minimum(first + most, begin + counts[which])
        full_end = (begin + full[which]).clamp(first, end)
        shared = pieces[which] > 1
        slot = torch.where(shared, shared.long().cumsum(0) - 1, -1)
        items = torch.stack([which // blocks, which % blocks, first, full_end, end, slot], dim=1).int()
        starts = (slot >= 0) & (piece == 0)
        split = [
            (int(i) // blocks, int(i) % blocks, int(s), int(pieces[i]))
            for i, s in zip(which[starts], slot[starts], strict=True)
        ]
        # Long items first, so that none is left over at the end.
        items = items[(end - first).argsort(descending=True, stable=True)]
        device = launch.device
        return cls(items.to(device), lists.tile[order].int().to(device), split, int(shared.sum()))


@lru_cache
def early_start(device: torch.device) -> dict[str, Any]:
    """Return the launch options of kernels that start while the one before them ends, where the device can."""
    able = device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"PDL": True, "launch_pdl": True} if able else {"PDL": False}
