"""The FlashAttention backend, the fastest on GPUs that have it: sliding rows are two calls and a merge.

Beyond position `window + sinks`, window and sinks share no key. So one call attends to the window, which the kernel
does at the window's cost, another to the sinks, and `merge_attn_states` puts them together by their log-sum-exp,
exactly. Rows that see everything, and layers that are full, are vLLM's own call.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func
from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)
from vllm.v1.attention.ops.merge_attn_states import merge_attn_states

from swaa.config import ConfigError, LayerRule
from swaa.vllm.builder import RecordingBuilder
from swaa.vllm.plan import Numbers, Pieces
from swaa.vllm.step import Step, single_rows, to_device

# As many rows as there are: the kernel itself skips what lies outside a window.
_UNCUT = 1 << 40


class SWAAFlashBackend(FlashAttentionBackend):
    """vLLM's FlashAttention backend, with our builder and implementation."""

    @staticmethod
    def get_impl_cls() -> type["SWAAFlashImpl"]:
        """Return the implementation."""
        return SWAAFlashImpl

    @staticmethod
    def get_builder_cls() -> type["SWAAFlashMetadataBuilder"]:
        """Return the metadata builder."""
        return SWAAFlashMetadataBuilder


@dataclass(frozen=True, eq=False)
class _Span:
    """Consecutive rows of one kind.

    Args:
        first: index of the first row in the step.
        stop: index after the last one.
        starts: `[pieces + 1]` int32, first row of each piece, counted from `first`.
        table: `[pieces, blocks]` int32, their requests' block tables.
        rows: the most rows that a piece has.
        longest: the most keys that a piece sees.
        dense: `[pieces]` int32, keys up to the last row of rows that see everything; None: there are none.
        window: `[pieces]` int32, the same for sliding rows.
        sinks: `[pieces]` int32, sinks that sliding rows see; None: there are none.
        sliding: `[rows, 1, 1]` int32, 1 for sliding rows, where a span may have rows of both kinds (in a step that is
            recorded). Both are computed then; a row has one key in what is not for it, since what FlashAttention makes
            of no keys is undefined.
        near_only: `[1, rows]` int32, 1 for rows whose window holds all sinks; None: there are none. Their one key among
            the sinks counts for nothing.
    """

    first: int
    stop: int
    starts: Tensor
    table: Tensor
    rows: int
    longest: int
    dense: Tensor | None = None
    window: Tensor | None = None
    sinks: Tensor | None = None
    sliding: Tensor | None = None
    near_only: Tensor | None = None


class SWAAFlashMetadataBuilder(RecordingBuilder, FlashAttentionMetadataBuilder):
    """Makes a list of spans of each rule's part of a step."""

    # Ours hold the block tables of their own group of layers.
    supports_update_block_table = False

    piece = _UNCUT

    def use_cascade_attention(self, *args: Any, **kwargs: Any) -> bool:
        """Tell whether a common prefix is attended once for all requests: never under a rule."""
        return not self.swaa.distinct and super().use_cascade_attention(*args, **kwargs)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """Return vLLM's metadata, with our spans for the layers that need the mask in this step."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
        if self.swaa.distinct:
            # A spec that releases blocks calls itself a sliding window; vLLM's own call is to go by the layer instead.
            metadata.sliding_window = None
        return metadata

    def _part(self, rule: LayerRule, pieces: Pieces, common: Any) -> list[_Span]:
        spans, starts = [], pieces.starts
        for sliding, group in groupby(range(len(pieces)), key=lambda index: bool(pieces.sliding[index])):
            indices = list(group)
            low, high = indices[0], indices[-1] + 1
            first, stop = int(starts[low]), int(starts[high])
            keys = pieces.first[low:high] + pieces.rows[low:high]
            packed = [pieces.request[low:high], keys, starts[low + 1 : high + 1] - first]
            request, length, stops = to_device(np.stack(packed), self.device)
            some_sinks = sliding and rule.sinks
            spans.append(
                _Span(
                    first,
                    stop,
                    torch.cat([stops.new_zeros(1), stops]),
                    common.block_table_tensor[request.long()],
                    int(pieces.rows[low:high].max()),
                    int(keys.max()),
                    dense=None if sliding else length,
                    window=length if sliding else None,
                    sinks=torch.full_like(length, rule.sinks) if some_sinks else None,
                )
            )
        return spans

    def _single_rows(self, rule: LayerRule, step: Step, common: Any) -> list[_Span]:
        pieces = single_rows(rule, step)
        count, keys = len(pieces), np.maximum(pieces.first + 1, 1)
        if not rule.fa_decode and not rule.dense_tail:
            return self._sliding_rows(rule, keys, common)
        packed = [
            np.where(pieces.sliding, 1, keys),
            np.where(pieces.sliding, keys, 1),
            np.where(pieces.sliding, rule.sinks, 1),
            pieces.sliding,
        ]
        # Keys of dense rows, keys of sliding rows, sinks, and which rows slide.
        numbers = self._keep(rule, packed)
        span = _Span(
            0,
            count,
            common.query_start_loc,
            common.block_table_tensor,
            1,
            common.max_seq_len,
            dense=numbers[0],
            window=numbers[1],
            sinks=numbers[2] if rule.sinks else None,
            sliding=numbers[3][:, None, None],
        )
        return [span]

    def _sliding_rows(self, rule: LayerRule, keys: Numbers, common: Any) -> list[_Span]:
        """Describe single rows of a rule that makes none dense: what lies before the window is sinks, if anything."""
        assert rule.window is not None
        sinks = np.clip(keys - rule.window, 0, rule.sinks)
        lengths, some, none = self._keep(rule, [keys, np.maximum(sinks, 1), sinks == 0])
        return [
            _Span(
                0,
                len(keys),
                common.query_start_loc,
                common.block_table_tensor,
                1,
                common.max_seq_len,
                window=lengths,
                sinks=some if rule.sinks else None,
                near_only=none[None] if rule.sinks else None,
            )
        ]

    def _keep(self, rule: LayerRule, packed: list[Any]) -> Tensor:
        """Put numbers, one array of rows each, where a recorded step reads them."""
        if rule not in self.recorded:
            self.recorded[rule] = torch.zeros(len(packed), self.swaa.most, dtype=torch.int32, device=self.device)
        numbers: Tensor = self.recorded[rule][:, : len(packed[0])]
        return numbers.copy_(to_device(np.stack(packed), self.device))


class SWAAFlashImpl(FlashAttentionImpl):
    """vLLM's FlashAttention, with our calls where a layer needs the mask."""

    follows_swaa = True

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
        found = None if attn_metadata is None else attn_metadata.swaa.get(layer.layer_name)
        if found is None:
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
            )
        if self.sinks is not None or self.alibi_slopes is not None:
            raise ConfigError(
                "with FlashAttention, SWAA covers neither learned sinks (gpt-oss) nor ALiBi: start vLLM with "
                "--attention-backend TRITON_ATTN"
            )
        rule, spans = found
        caches = self._caches(kv_cache)
        splits = getattr(attn_metadata, "max_num_splits", 0)
        for span in spans:
            self._attend(
                layer, rule, span, query[span.first : span.stop], caches, output[span.first : span.stop], splits
            )
        return output

    def _caches(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the cache, `[blocks, block, kv_heads, head_dim]` each."""
        from vllm.platforms import current_platform
        from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
        from vllm.v1.kv_cache_interface import is_quantized_kv_cache

        halves = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        key, value = (canonicalize_singleton_dim_strides(half) for half in halves)
        if is_quantized_kv_cache(self.kv_cache_dtype):
            key, value = (half.view(current_platform.fp8_dtype()) for half in (key, value))
        return key, value

    def _attend(
        self, layer: Any, rule: LayerRule, span: _Span, query: Tensor, caches: Any, output: Tensor, splits: int
    ) -> None:
        """Attend with the rows of a span; `query` and `output` are `[rows, heads, head_dim]`."""
        assert rule.window is not None
        shape = (len(span.starts) - 1, self.num_kv_heads)

        def call(keys: Tensor, longest: int, *, causal: bool, left: int, splits: int, out: Tensor | None) -> Any:
            return flash_attn_varlen_func(
                q=query,
                k=caches[0],
                v=caches[1],
                out=out,
                cu_seqlens_q=span.starts,
                max_seqlen_q=span.rows,
                seqused_k=keys,
                max_seqlen_k=longest,
                softmax_scale=self.scale,
                causal=causal,
                window_size=[left, 0] if left >= 0 else [-1, -1],
                block_table=span.table,
                softcap=self.logits_soft_cap,
                fa_version=self.vllm_flash_attn_version,
                q_descale=layer._q_scale.expand(shape) if self.supports_quant_query_input else None,
                k_descale=layer._k_scale.expand(shape),
                v_descale=layer._v_scale.expand(shape),
                num_splits=splits,
                return_softmax_lse=out is None,
            )

        if span.dense is not None:
            call(span.dense, span.longest, causal=True, left=-1, splits=splits, out=output)
        if span.window is None:
            return
        merged = output if span.sliding is None else torch.empty_like(output)
        if span.sinks is None:
            call(span.window, span.longest, causal=True, left=rule.window - 1, splits=1, out=merged)
        else:
            near = call(span.window, span.longest, causal=True, left=rule.window - 1, splits=1, out=None)
            first = call(span.sinks, rule.sinks, causal=False, left=-1, splits=1, out=None)
            if span.near_only is not None:
                first[1].masked_fill_(span.near_only > 0, -torch.inf)
            merge_attn_states(merged, *first, *near)
        if span.sliding is not None:
            torch.where(span.sliding > 0, merged, output, out=output)
