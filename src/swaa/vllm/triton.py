"""The Triton backend: vLLM's own kernel over virtual requests, for GPUs of all makers and all number formats.

The kernel knows the mask `key < prefix or query - key < window` ("R-SWA"): with the sinks as the prefix it is a sliding
row's, with all keys as the prefix a dense row's. It skips nothing by itself, so sliding rows come to it as virtual
requests (`swaa.vllm.plan`), whose block tables hold only what they see.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from swaa.config import LayerRule
from swaa.vllm.builder import RecordingBuilder
from swaa.vllm.plan import Pieces, virtual_requests
from swaa.vllm.step import Step, single_rows, to_device


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


class SWAATritonMetadataBuilder(RecordingBuilder, TritonAttentionMetadataBuilder):
    """Makes vLLM's metadata of virtual requests of each rule's part of a step."""

    def build_for_cudagraph_capture(self, common_attn_metadata: Any) -> Any:
        """Return the metadata to record a step with; the lengths are 1, so that recording is quick."""
        metadata = super().build_for_cudagraph_capture(common_attn_metadata)
        for _, part in metadata.swaa.values():
            part.seq_lens.fill_(1)
        return metadata

    def _part(self, rule: LayerRule, pieces: Pieces, common: Any) -> Any:
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
        # Block table, and lengths and visible keys.
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
        metadata = TritonAttentionMetadataBuilder.build(self, 0, described)
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
            _, attn_metadata = attn_metadata.swaa.get(layer.layer_name, (None, attn_metadata))
        return super().forward(
            layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale
        )
