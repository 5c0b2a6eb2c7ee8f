"""Blocks of layers that forget: a request holds those of sinks and window, the rest goes back to the pool."""

from dataclasses import dataclass, fields
from typing import Any

from vllm.v1.core.kv_cache_utils import resolve_block_hashes
from vllm.v1.core.single_type_kv_cache_manager import SlidingWindowManager
from vllm.v1.kv_cache_interface import KVCacheSpec, SlidingWindowSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from swaa.config import LayerRule


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(SlidingWindowSpec):
    """The cache of a layer that sees the first `sink_tokens` tokens and the last `sliding_window`."""

    sink_tokens: int = 0

    @property
    def sink_blocks(self) -> int:
        """Blocks that hold sinks."""
        return -(-self.sink_tokens // self.block_size)

    @property
    def num_retained_tokens(self) -> int:
        """Tokens before a step that stay in its block table; from vLLM 0.33 on, 0 is for all, as the sinks need."""
        return 0

    def max_admission_blocks_per_request(self, max_in_flight_tokens: int, max_model_len: int) -> int:
        """Return the blocks that a request holds at most: sinks, window and a step, but never more than all."""
        most = super().max_admission_blocks_per_request(max_in_flight_tokens, max_model_len) + self.sink_blocks
        return min(most, -(-max_model_len // self.block_size) + 1)

    def is_uniform_with_collection(self, kv_cache_specs: dict[str, KVCacheSpec]) -> bool:
        """Tell whether all layers of a collection can share one block table with this one."""
        return super().is_uniform_with_collection(kv_cache_specs) and all(
            isinstance(spec, SinkWindowSpec) and spec.sink_tokens == self.sink_tokens
            for spec in kv_cache_specs.values()
        )


class SinkWindowManager(SlidingWindowManager):
    """Gives back the blocks between sinks and window; a hit in the prefix cache needs the sinks' blocks too."""

    kv_cache_spec: SinkWindowSpec

    def get_num_skipped_tokens(self, num_computed_tokens: int) -> int:
        """Return the tokens that are left out at the start of a request: none, since the sinks stay."""
        return 0

    def remove_skipped_blocks(self, request_id: str, processed_computed_tokens: int, *args: Any, **kwargs: Any) -> None:
        """Give back the blocks that no row after `processed_computed_tokens` tokens will see."""
        spec = self.kv_cache_spec
        last = super().get_num_skipped_tokens(processed_computed_tokens) // self.block_size
        self._remove_blocks_in_range(request_id, spec.sink_blocks, last)

    @classmethod
    def _contiguous_blocks_for_hit(cls, *args: Any, **kwargs: Any) -> int:
        # A window of 1 needs no block, but vLLM looks for one, and caches none that is not needed.
        return max(super()._contiguous_blocks_for_hit(*args, **kwargs), 1)

    @classmethod
    def find_longest_cache_hit(cls, block_hashes: Any, **kwargs: Any) -> Any:
        """Find the longest prefix whose sinks and last window are in the cache; what lies between may be gone."""
        spec, pool, groups = kwargs["kv_cache_spec"], kwargs["block_pool"], kwargs["kv_cache_group_ids"]
        block_hashes = resolve_block_hashes(block_hashes, pool.hash_block_size, spec.block_size)
        found, length = super().find_longest_cache_hit(block_hashes=block_hashes, **kwargs)
        for index in range(min(spec.sink_blocks, len(found[0]))):
            cached = pool.get_cached_block(block_hashes[index], groups)
            if cached is None:
                for blocks in found:
                    blocks.clear()
                return found, 0
            for blocks, block in zip(found, cached, strict=True):
                blocks[index] = block
        return found, length

    @classmethod
    def reachable_block_mask(cls, start_block: int, *args: Any, **kwargs: Any) -> list[bool] | None:
        """Say which blocks can serve a hit, None for all: the sinks' can always."""
        mask = super().reachable_block_mask(start_block, *args, **kwargs)
        if mask is not None:
            for index in range(start_block, min(kwargs["kv_cache_spec"].sink_blocks, start_block + len(mask))):
                mask[index - start_block] = True
        return mask


def register_spec() -> None:
    """Make the spec known to vLLM, after its own: the first registration otherwise counts as all of them."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(SinkWindowSpec, SinkWindowManager, uniform_type_base_spec=SinkWindowSpec)


def sink_window_spec(full: Any, rule: LayerRule) -> SinkWindowSpec:
    """Return the spec of a layer that releases blocks, made from its full attention spec."""
    known = {field.name for field in fields(SinkWindowSpec)} - {"sliding_window"}
    values = {field.name: getattr(full, field.name) for field in fields(full) if field.name in known}
    return SinkWindowSpec(**values, sliding_window=rule.window, sink_tokens=rule.sinks)
