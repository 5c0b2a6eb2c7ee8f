"""The Triton backend: vLLM's own kernel over virtual requests, for GPUs of all makers and all number formats.

The kernel knows the mask `key < prefix or query - key < window` ("R-SWA"): with the sinks as the prefix it is a sliding
row's, with all keys as the prefix a dense row's. It skips nothing by itself, so sliding rows come to it as virtual
requests (`swaa.vllm.plan`), whose block tables hold only what they see.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from swaa.config import LayerRule
from swaa.vllm.plan import Pieces, virtual_requests
from swaa.vllm.rules import layer_rules
from swaa.vllm.step import Rules, Step, single_rows, to_device


class SWAATritonBackend(TritonAttentionBackend):
    """vLLM's Triton backend, with our builder and implementation."""

    @staticmethod
    def get_impl_cls() -> type["SWAATritonImpl"]:
        """Return the implementation."""
        return SWAATritonImpl

    @staticmethod
    def get_builder_cls() -> type["SWAATritonMetadataBuilder"]:
        """Return the metadata builder."""
        return SWAATritonMetadataBuilder


class SWAATritonMetadataBuilder(TritonAttentionMetadataBuilder):
    """Adds to vLLM's metadata that of each rule's virtual requests, as `swaa`: layer name to metadata."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.swaa = Rules(vllm_config, layer_names)
        # Ours alone say where the mask applies.
        self.rswa_window = None
        # What a recorded graph reads: block table, and lengths and visible keys.
        self.recorded: dict[LayerRule, tuple[Tensor, Tensor]] = {}

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Return which steps can be recorded whole: with rules, those of one row a request."""
        if layer_rules(vllm_config):
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """Return vLLM's metadata, with ours for the layers that need the mask in this step."""
        common = common_attn_metadata
        metadata = super().build(common_prefix_len, common, fast_build)
        metadata.swaa = {}
        if not self.swaa.distinct:
            return metadata
        step, parts = self.swaa.step(common), {}
        # A recorded step is replayed whether rows slide or not, so it always takes the same way.
        recorded = (
            common.max_query_len == 1 and self.vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs()
        )
        for rule in self.swaa.distinct:
            if recorded:
                parts[rule] = self._single_rows(rule, step, common)
            elif (pieces := step.pieces(rule)) is not None:
                parts[rule] = self._virtual(rule, pieces, common)
        metadata.swaa = {name: parts[rule] for name, rule in self.swaa.of_layer.items() if rule in parts}
        return metadata

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """Return the metadata to record a step with; the lengths are 1, so that recording is quick."""
        metadata = super().build_for_cudagraph_capture(common_attn_metadata)
        for part in metadata.swaa.values():
            part.seq_lens.fill_(1)
        return metadata

    def _virtual(self, rule: LayerRule, pieces: Pieces, common: Any) -> Any:
        virtual = virtual_requests(rule, pieces, self.block_size)
        longest = int(virtual.length.max())
        packed = [pieces.request, virtual.jump, virtual.length, virtual.visible, pieces.starts[1:]]
        request, jump, length, visible, stops = to_device(np.stack(packed), self.device)
        starts = torch.cat([stops.new_zeros(1), stops])
        width = -(-longest // self.block_size)
        table = self._table(common.block_table_tensor, request, jump, virtual.sink_blocks, width)
        return self._metadata(
            rule,
            common,
            starts,
            torch.from_numpy(pieces.starts),
            int(pieces.rows.max()),
            length,
            visible,
            table,
            longest,
        )

    def _single_rows(self, rule: LayerRule, step: Step, common: Any) -> Any:
        pieces = single_rows(rule, step)
        virtual = virtual_requests(rule, pieces, self.block_size)
        request, jump, length, visible = to_device(
            np.stack([pieces.request, virtual.jump, virtual.length, virtual.visible]), self.device
        )
        count, width = len(pieces), common.block_table_tensor.shape[1]
        if rule not in self.recorded:
            shared = {"dtype": torch.int32, "device": self.device}
            self.recorded[rule] = torch.zeros(self.swaa.most, width, **shared), torch.zeros(2, self.swaa.most, **shared)
        table, numbers = self.recorded[rule]
        numbers[0, :count], numbers[1, :count] = length, visible
        table[:count] = self._table(common.block_table_tensor, request, jump, virtual.sink_blocks, width)
        starts = common.query_start_loc
        return self._metadata(
            rule,
            common,
            starts,
            common.query_start_loc_cpu,
            1,
            numbers[0, :count],
            numbers[1, :count],
            table[:count],
            common.max_seq_len,
        )

    def _table(self, table: Tensor, request: Tensor, jump: Tensor, sink_blocks: int, width: int) -> Tensor:
        """Return the virtual requests' block table, `[pieces, width]` int32."""
        column = torch.arange(width, device=self.device)
        columns = torch.where(column < sink_blocks, column, column + jump[:, None])
        return table[request.long()[:, None], columns.clamp_(max=table.shape[1] - 1)].int()

    def _metadata(
        self,
        rule: LayerRule,
        common: Any,
        starts: Tensor,
        starts_cpu: Tensor,
        rows: int,
        length: Tensor,
        visible: Tensor,
        table: Tensor,
        longest: int,
    ) -> Any:
        described = common.replace(
            query_start_loc=starts,
            query_start_loc_cpu=starts_cpu,
            seq_lens=length,
            num_reqs=len(length),
            max_query_len=rows,
            max_seq_len=longest,
            block_table_tensor=table,
        )
        metadata = super().build(0, described)
        metadata.rswa_prefix_lens, metadata.rswa_window = visible, rule.window
        return metadata


class SWAATritonImpl(TritonAttentionImpl):
    """vLLM's Triton attention, with our metadata where a layer needs the mask."""

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
        if attn_metadata is not None:
            attn_metadata = attn_metadata.swaa.get(layer.layer_name, attn_metadata)
        return super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
        )
