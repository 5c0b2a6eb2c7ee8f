"""What the builders of all backends share: the rules of their layers, and where the rows of a step stand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swaa.config import LayerRule
from swaa.vllm.plan import Numbers, Pieces, cut
from swaa.vllm.rules import rule_of


@dataclass(frozen=True, eq=False)
class Step:
    """Where the rows of one step stand; each array is `[requests]` int64.

    Args:
        past: tokens of each request before this step.
        rows: its rows in this step; 0 for requests that pad the batch.
        prompt: its prompt tokens.
    """

    past: Numbers
    rows: Numbers
    prompt: Numbers

    def pieces(self, rule: LayerRule, piece: int | None = None) -> Pieces | None:
        """Cut the rows into pieces under a rule; None: every row sees everything."""
        return cut(rule, self.past, self.rows, self.prompt, **({} if piece is None else {"piece": piece}))


class Rules:
    """The rules of the layers that one metadata builder serves.

    Args:
        vllm_config: the engine's configuration.
        layer_names: vLLM's names of the layers.
    """

    def __init__(self, vllm_config: Any, layer_names: list[str]):
        rules = {name: rule_of(vllm_config, name) for name in layer_names}
        self.of_layer: dict[str, LayerRule] = {name: rule for name, rule in rules.items() if rule is not None}
        self.distinct = tuple(dict.fromkeys(self.of_layer.values()))
        # The most requests of a step that is recorded: what it reads is allocated once and never moves.
        self.most = max(
            vllm_config.scheduler_config.max_num_seqs, vllm_config.compilation_config.max_cudagraph_capture_size or 0
        )
        # With drafts, how far a request has come is known on the device only.
        self.drafts = vllm_config.speculative_config is not None
        if self.distinct:
            # Only the presence of this number makes vLLM announce the prompts' lengths.
            vllm_config.model_config.model_arch_config.rswa_window = self.distinct[0].window

    def step(self, common: Any) -> Step:
        """Read where the rows stand from vLLM's description of a step (`CommonAttentionMetadata`)."""
        starts = common.query_start_loc_cpu.numpy().astype(np.int64)
        rows = np.diff(starts)
        exact = common.seq_lens if self.drafts or common.seq_lens_cpu_upper_bound is None else None
        length = common.seq_lens_cpu_upper_bound if exact is None else exact.cpu()
        past = np.maximum(length.numpy().astype(np.int64) - rows, 0)
        if common.rswa_prefix_lens is None:
            # A dry run (profiling, warm-up): its rows belong to no request.
            return Step(past, rows, past + rows)
        if common.is_prefilling is not None and not bool(torch.as_tensor(common.is_prefilling).any()):
            # All rows are generated: no need to wait for a copy from the device.
            return Step(past, rows, np.zeros_like(past))
        prompt = np.zeros_like(past)
        known = common.rswa_prefix_lens.cpu().numpy()
        prompt[: len(known)] = known[: len(prompt)]
        return Step(past, rows, prompt)


def single_rows(rule: LayerRule, step: Step) -> Pieces:
    """Describe a step of at most one row a request as one piece a request, so that its shape depends on nothing else.

    A request that only pads the batch becomes a piece before the first position: it has no keys.
    """
    assert rule.window is not None
    position = step.past
    generated = position >= step.prompt
    dense = (generated & rule.fa_decode) | (~generated & (position >= step.prompt - rule.dense_tail))
    sliding = (position >= rule.window + rule.sinks) & ~dense & (step.rows > 0)
    return Pieces(np.arange(len(position)), np.where(step.rows > 0, position, -1), np.ones_like(position), sliding)


def to_device(numbers: Numbers, device: torch.device) -> Tensor:
    """Copy small numbers to a device as int32, without waiting for what it still computes."""
    tensor = torch.from_numpy(numbers.astype(np.int32))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
