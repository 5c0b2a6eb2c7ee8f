"""Blocks of query rows over PyTorch's `scaled_dot_product_attention`: linear time and memory on any device.

Each block of rows attends to the sinks and its slice of the window in one call (a joint softmax, so nothing has to be
merged); dense rows attend to everything. Forward and backward.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from swaa.attention.blocks import Block, block_mask, plan_blocks
from swaa.attention.eager import masked_softmax_attention
from swaa.config import LayerRule
from swaa.geometry import Geometry

T = TypeVar("T")

# Masks of a pass up to this many elements in all are shared by its layers; beyond, each layer builds its own.
_SHARED_MASK_ELEMENTS = 1 << 26


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    geometry: Geometry,
    rule: LayerRule,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend block by block; see `swaa.attention.Backend`. Never returns weights."""
    groups = query.shape[1] // key.shape[1]
    if geometry.key_mask is not None:
        visible = geometry.key_mask[:, None, None].to(query.device)
        if softcap is not None or s_aux is not None:
            output, _ = masked_softmax_attention(
                query, key, value, visible, scaling=scaling, dropout=dropout, softcap=softcap, s_aux=s_aux
            )
        else:
            output = _grouped_attention(query, key, value, visible, groups, scaling=scaling, dropout=dropout)
        return output.transpose(1, 2), None
    size = _block_size(rule, query.device)
    # PyTorch's kernels know neither a soft cap nor a learned sink: then the blocks are computed in plain operations.
    plain_operations = softcap is not None or s_aux is not None
    plan = _shared(
        geometry,
        ("blocks", rule, plain_operations),
        lambda: plan_blocks(geometry, rule, size, causal_blocks=not plain_operations),
    )
    keys, values = _Columns(key, size, geometry), _Columns(value, size, geometry)
    outputs = []
    for index, block in enumerate(plan):
        rows, k, v = query[:, :, block.start : block.stop], keys.of(block), values.of(block)
        if block.causal:
            output = scaled_dot_product_attention(
                rows, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=groups > 1
            )
            outputs.append(output.transpose(1, 2))
            continue
        mask = _mask(geometry, rule, block, (index, plain_operations), query.device)
        if plain_operations:
            output, _ = masked_softmax_attention(
                rows, k, v, mask, scaling=scaling, dropout=dropout, softcap=softcap, s_aux=s_aux
            )
        else:
            output = _grouped_attention(rows, k, v, mask, groups, scaling=scaling, dropout=dropout)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, *, scaling: float, dropout: float
) -> Tensor:
    """Attend with the query heads of a KV head folded into the rows: keys are never repeated (6x on CPU decode)."""
    batch, heads, rows, _ = query.shape
    query = query.reshape(batch, heads // groups, groups * rows, query.shape[-1])
    if mask is not None and groups > 1:
        mask = mask.repeat(1, 1, groups, 1)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return output.reshape(batch, heads, rows, value.shape[-1])


class _Columns:
    """Ranges of a tensor's columns (dim 2) whose backward costs what the range holds, not what the tensor holds."""

    def __init__(self, tensor: Tensor, size: int, geometry: Geometry):
        self.tensor = tensor
        self.size = size
        self.geometry = geometry
        # The backward of a slice writes a whole zero tensor: one a block would be quadratic. That of a split does not.
        self.chunks = tensor.split(size, dim=2) if tensor.requires_grad else None
        self._gathered: dict[int, Tensor] = {}

    def of(self, block: Block) -> Tensor:
        """Return the keys of a block, `[batch, kv_heads, sinks + window columns, dim]`."""
        shift = self.geometry.slots - self.geometry.released
        window = self._range(block.low + shift, block.high + shift)
        if isinstance(block.sinks, Tensor):
            return torch.cat([*self._gather(block.sinks), *window], dim=2)
        window = self._range(0, block.sinks) + window if block.sinks else window
        return window[0] if len(window) == 1 else torch.cat(window, dim=2)

    def _range(self, low: int, high: int) -> list[Tensor]:
        if self.chunks is None:
            return [self.tensor[:, :, low:high]]
        pieces = []
        for index in range(low // self.size, (high - 1) // self.size + 1):
            begin, end = index * self.size, (index + 1) * self.size
            pieces.append(self.chunks[index][:, :, max(low - begin, 0) : min(high, end) - begin])
        return pieces

    def _gather(self, columns: Tensor) -> list[Tensor]:
        if id(columns) not in self._gathered:
            if released := self.geometry.released:
                held = columns - released + self.geometry.slots
                columns_held = torch.where(columns < released, torch.arange(columns.shape[1], device="cpu"), held)
            else:
                columns_held = columns
            index = columns_held.to(self.tensor.device)[:, None, :, None]
            index = index.expand(-1, self.tensor.shape[1], -1, self.tensor.shape[3])
            self._gathered[id(columns)] = self.tensor.gather(2, index)
        return [self._gathered[id(columns)]]


def _block_size(rule: LayerRule, device: torch.device) -> int:
    """Rows of a block: a power of two near a quarter of the window, where the masked-out part costs little."""
    if rule.window is None:
        return 256
    # On a GPU the launches of small blocks cost more than their masked-out part.
    least = 64 if device.type == "cpu" else 512
    return max(least, min(512, 1 << max((rule.window // 4).bit_length() - 1, 0)))


def _mask(
    geometry: Geometry, rule: LayerRule, block: Block, index: tuple[int, bool], device: torch.device
) -> Tensor | None:
    """Build a block's mask, or take it from the pass, where sliding blocks of one shape share theirs."""
    start, stop = geometry.dense_interval(rule)
    dense = rule.window is None or start <= geometry.past + block.start < stop
    alike = geometry.positions is None and not dense
    # `low - start` tells rows before the window is full, `sinks` whether sinks reach into the window.
    shape = (block.stop - block.start, block.high - block.low, block.sinks, block.low - block.start)

    def build() -> Tensor | None:
        mask = block_mask(geometry, rule, block)
        return None if mask is None else mask.to(device)

    if not alike and geometry.batch * geometry.rows * (block.high - block.low) > _SHARED_MASK_ELEMENTS:
        return build()
    return _shared(geometry, ("mask", rule, shape if alike else index, device), build)


def _shared(geometry: Geometry, key: Hashable, build: Callable[[], T]) -> T:
    if key not in geometry.memo:
        geometry.memo[key] = build()
    return geometry.memo[key]
