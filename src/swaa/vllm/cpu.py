"""The CPU backend: vLLM's own kernel for rows that see everything, PyTorch for those that slide."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from vllm import _custom_ops as ops
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadataBuilder,
)

from swaa.config import ConfigError, LayerRule
from swaa.mask import visible
from swaa.vllm.builder import RuleBuilder
from swaa.vllm.plan import Pieces, Virtual, virtual_requests

# The layout of blocks that we can read: keys transposed within a block, values row by row.
_LAYOUT = "vec"


class SWAACPUBackend(CPUAttentionBackend):
    """vLLM's CPU backend, with our builder and implementation."""

    forward_includes_kv_cache_update = False

    @staticmethod
    def get_impl_cls() -> type["SWAACPUImpl"]:
        """Return the implementation."""
        return SWAACPUImpl

    @staticmethod
    def get_builder_cls() -> type["SWAACPUMetadataBuilder"]:
        """Return the metadata builder."""
        return SWAACPUMetadataBuilder


class _Part:
    """What layers of one rule do in a step.

    Args:
        pieces: the rows.
        virtual: the blocks that they need.
        dense: vLLM's metadata of the rows that see everything; None if there are none.
        dense_rows: `[rows]` which rows of the step these are.
        block_table: `[requests, blocks]`.
    """

    def __init__(self, pieces: Pieces, virtual: Virtual, dense: Any, dense_rows: Tensor, block_table: Tensor):
        self.pieces, self.virtual, self.dense, self.dense_rows = pieces, virtual, dense, dense_rows
        self.block_table = block_table


class SWAACPUMetadataBuilder(RuleBuilder, CPUAttentionMetadataBuilder):
    """Makes a `_Part` of each rule's part of a step."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if not self.swaa.distinct:
            return
        layers = [vllm_config.compilation_config.static_forward_context[name] for name in layer_names]
        if any(layer.impl.is_fp8_kv_cache or layer.impl.alibi_slopes is not None for layer in layers):
            raise ConfigError("on CPUs, SWAA reads neither an fp8 cache (use --kv-cache-dtype auto) nor ALiBi's biases")
        # A spec that releases blocks calls itself a sliding window; vLLM's kernel is to apply none.
        self.window_size = -1
        self.isa = _LAYOUT
        for layer in layers:
            layer.isa = layer.impl.isa = _LAYOUT
        _check_layout(kv_cache_spec)

    def _part(self, rule: LayerRule, pieces: Pieces, common: Any) -> _Part:
        dense_pieces = pieces.select(~pieces.sliding)
        dense_rows = torch.from_numpy((~pieces.sliding).repeat(pieces.rows)).nonzero()[:, 0]
        virtual = virtual_requests(rule, pieces, self.block_size)
        if not len(dense_pieces):
            return _Part(pieces, virtual, None, dense_rows, common.block_table_tensor)
        starts = torch.from_numpy(dense_pieces.starts).int()
        lengths = torch.from_numpy(dense_pieces.first + dense_pieces.rows).int()
        dense = CPUAttentionMetadataBuilder.build(
            self,
            0,
            common.replace(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=lengths,
                num_reqs=len(dense_pieces),
                num_actual_tokens=len(dense_rows),
                max_query_len=int(dense_pieces.rows.max()),
                max_seq_len=int(lengths.max()),
                block_table_tensor=common.block_table_tensor[torch.from_numpy(dense_pieces.request)],
            ),
        )
        return _Part(pieces, virtual, dense, dense_rows, common.block_table_tensor)


class SWAACPUImpl(CPUAttentionBackendImpl):
    """vLLM's CPU attention; rows that slide are computed here."""

    follows_swaa = True

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Store the keys and values of a step; older versions of vLLM do this in `forward`."""
        key_cache, value_cache = _key_and_value(kv_cache)
        ops.cpu_attn_reshape_and_cache(
            key,
            value,
            key_cache,
            value_cache,
            slot_mapping,
            getattr(layer, "isa", None) or self.isa,
            k_scale=layer._k_scale_float,
            v_scale=layer._v_scale_float,
            kv_cache_dtype=self.kv_cache_dtype,
        )

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attend; shapes as in vLLM's `forward`."""
        scales = (output_scale, output_block_scale)
        found = None if attn_metadata is None else attn_metadata.swaa.get(layer.layer_name)
        if found is None:
            # The keys are in the cache already: no key, so that no version stores them again.
            return super().forward(layer, query, None, None, kv_cache, attn_metadata, output, *scales)
        rule, part = found
        if part.dense is not None:
            dense = torch.empty_like(output[: len(part.dense_rows)])
            super().forward(layer, query[part.dense_rows], None, None, kv_cache, part.dense, dense, *scales)
            output[part.dense_rows] = dense
        key_cache, value_cache = _key_and_value(kv_cache)
        block = key_cache.shape[2]
        starts = part.pieces.starts
        for index in part.pieces.sliding.nonzero()[0]:
            columns = torch.from_numpy(part.virtual.columns(index, block))
            blocks = part.block_table[int(part.pieces.request[index]), columns]
            positions = (columns[:, None] * block + torch.arange(block)).reshape(-1)
            first, rows = int(part.pieces.first[index]), int(part.pieces.rows[index])
            mask = visible(
                torch.arange(first, first + rows)[:, None], positions, False, window=rule.window, sinks=rule.sinks
            )
            start = int(starts[index])
            seen = self._attend(query[start : start + rows], *_gather(key_cache, value_cache, blocks), mask)
            output[start : start + rows] = seen
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Attend with one piece's rows.

        Args:
            query: `[rows, heads, head_dim]`.
            key: `[kv_heads, keys, head_dim]`, as `value`.
            mask: `[rows, keys]` bool.

        Returns:
            `[rows, heads, head_dim]`.
        """
        query = query.transpose(0, 1)
        if not self.logits_soft_cap and self.sinks is None:
            out = scaled_dot_product_attention(
                query[None], key[None], value[None], attn_mask=mask, scale=self.scale, enable_gqa=True
            )[0]
            return out.transpose(0, 1)
        groups = self.num_heads // self.num_kv_heads
        key, value = (x.float().repeat_interleave(groups, dim=0) for x in (key, value))
        scores = query.float() @ key.transpose(1, 2) * self.scale
        if self.logits_soft_cap:
            scores = self.logits_soft_cap * torch.tanh(scores / self.logits_soft_cap)
        scores = scores.masked_fill(~mask, float("-inf"))
        if self.sinks is not None:
            learned = self.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
            scores = torch.cat([scores, learned], dim=-1)
        weights = scores.softmax(dim=-1)[..., : key.shape[1]]
        return (weights @ value).transpose(0, 1).to(query.dtype)


def _key_and_value(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Return the halves of a cache: `[blocks, kv_heads, block, head_dim]` each."""
    blocks, heads, block, _ = kv_cache.shape
    key, value = kv_cache.view(blocks, heads, block * 2, -1).chunk(2, dim=2)
    return key, value


def _gather(key_cache: Tensor, value_cache: Tensor, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of some blocks in order: `[kv_heads, keys, head_dim]` each."""
    key, value = key_cache[blocks], value_cache[blocks]
    count, heads, block, dim = key.shape
    key = key.reshape(count, heads, dim, block).permute(1, 0, 3, 2)
    return key.reshape(heads, count * block, dim), value.transpose(0, 1).reshape(heads, count * block, dim)


def _check_layout(spec: Any) -> None:
    """Store numbers as vLLM does and read them as we do.

    Raises:
        ConfigError: they are not the same, so this version or this processor has another layout.
    """
    heads, block, dim = spec.num_kv_heads, spec.block_size, spec.head_size
    cache = torch.zeros(2, heads, block, 2 * dim, dtype=spec.dtype)
    stored = torch.randn(2, block, heads, dim, generator=torch.Generator().manual_seed(0)).to(spec.dtype)
    key_cache, value_cache = _key_and_value(cache)
    slots = torch.arange(block, 2 * block)
    ops.cpu_attn_reshape_and_cache(stored[0], stored[1], key_cache, value_cache, slots, _LAYOUT)
    read = _gather(key_cache, value_cache, torch.tensor([1]))
    if not all(torch.equal(mine.transpose(0, 1), theirs) for mine, theirs in zip(read, stored, strict=True)):
        raise ConfigError(
            "this vLLM stores the CPU cache in a layout that swaa cannot read: use a vLLM from 0.26 to 0.32 on x86"
        )
