"""What the metadata builders of all backends do alike: for each rule, once a step, they work out what its layers do."""

from abc import ABC, abstractmethod
from typing import Any

from vllm.v1.attention.backend import AttentionCGSupport

from swaa.config import LayerRule
from swaa.vllm.plan import Pieces
from swaa.vllm.rules import layer_rules
from swaa.vllm.step import Rules, Step


class RuleBuilder(ABC):
    """Comes before a builder of vLLM's and adds to its metadata `swaa`: by layer name, the rule and its part of a step.

    Layers that need no mask in a step are not in there. What a part is, the backend says by `_part`. Type checkers
    do not see the builder that comes after this class, hence the ignored errors at `super()`.
    """

    # The most rows of a piece; None: as many as are usual.
    piece: int | None = None

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)  # type: ignore[call-arg]  # see the class
        self.swaa = Rules(vllm_config, layer_names)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
        """Return vLLM's metadata, with ours for the layers that need the mask in this step."""
        metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)  # type: ignore[misc]  # see the class
        parts: dict[LayerRule, Any] = {}
        if self.swaa.distinct:
            step = self.swaa.step(common_attn_metadata)
            for rule in self.swaa.distinct:
                if (part := self._find(rule, step, common_attn_metadata)) is not None:
                    parts[rule] = part
        metadata.swaa = {name: (rule, parts[rule]) for name, rule in self.swaa.of_layer.items() if rule in parts}
        return metadata

    def _find(self, rule: LayerRule, step: Step, common: Any) -> Any:
        """Return a rule's part of a step, None if all its rows see everything."""
        pieces = step.pieces(rule, self.piece)
        return None if pieces is None else self._part(rule, pieces, common)

    @abstractmethod
    def _part(self, rule: LayerRule, pieces: Pieces, common: Any) -> Any:
        """Return what a backend's kernels take of these pieces: each backend's own."""


class RecordingBuilder(RuleBuilder):
    """Steps of one row a request may be recorded as a CUDA graph: these become parts by `_single_rows`."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.vllm_config = vllm_config
        # Our parts alone say where the mask applies.
        self.rswa_window = None
        # What a recorded graph reads: tensors of a rule that never move.
        self.recorded: dict[LayerRule, Any] = {}

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        """Return which steps can be recorded whole: with rules, those of one row a request."""
        if layer_rules(vllm_config):
            return AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
        return super().get_cudagraph_support(vllm_config, kv_cache_spec)  # type: ignore[misc]  # see the class

    def _find(self, rule: LayerRule, step: Step, common: Any) -> Any:
        # A recorded step is replayed whether rows slide or not, so it always takes the same way.
        if common.max_query_len == 1 and self.vllm_config.compilation_config.cudagraph_mode.has_full_cudagraphs():
            return self._single_rows(rule, step, common)
        return super()._find(rule, step, common)

    @abstractmethod
    def _single_rows(self, rule: LayerRule, step: Step, common: Any) -> Any:
        """Return the part of a step of one row a request: each backend's own."""
