"""Which backend attends: decided for every pass, from device, dtype, shape and what is installed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from swaa.attention import flex, triton
from swaa.attention.sdpa import sdpa_attention
from swaa.config import LayerRule
from swaa.geometry import Geometry

# With fewer query rows, FlexAttention's blocks of 128 rows are mostly empty.
_FLEX_ROWS = 1024


@dataclass(frozen=True)
class Inputs:
    """What decides on a backend.

    Args:
        device: of the tensors.
        dtype: of the tensors.
        head_dim: the larger one of keys and values.
        rows: query rows.
        few: the rows and the heads of a KV head fit into one tile: the keys are split.
        grad: gradients are wanted.
        special: padding, segments, slots, a soft cap or a learned sink take part.
        dropout: probability.
    """

    device: torch.device
    dtype: torch.dtype
    head_dim: int
    rows: int
    few: bool = False
    grad: bool = False
    special: bool = False
    dropout: float = 0.0


def choose(inputs: Inputs) -> tuple[str, str]:
    """Return the name of the fastest backend, and why."""
    device, dtype, head_dim = inputs.device, inputs.dtype, inputs.head_dim
    if device.type != "cuda":
        return "sdpa", f"linear time and memory on any device, here {device.type}"
    if reason := triton.unavailable(device, dtype, head_dim, dropout=inputs.dropout):
        return "sdpa", f"linear time and memory on any device; not triton: {reason}"
    if inputs.few:
        return "triton", "few rows: the keys are split over the device and each is read once"
    if dtype == torch.float32:
        return "sdpa", "float32 has no tensor cores without losing digits"
    purpose = "prompts, forward and backward" if inputs.grad else "prompts"
    if inputs.rows >= _FLEX_ROWS and not inputs.special:
        if (reason := flex.flash_unavailable(device, dtype, head_dim)) is None:
            return "flex", f"FlashAttention-4's kernels are the fastest for {purpose}"
        return "triton", f"the fastest for {purpose} without flash-attn-4 ({reason})"
    return "triton", "exact ranges of keys under padding and segments, no compilation by length"


def auto_attention(
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
    """Attend with the backend that `choose` names; see `swaa.attention.Backend`."""
    if query.device.type == "cuda":
        rows, groups = query.shape[2], query.shape[1] // key.shape[1]
        grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
        special = geometry.positions is not None or geometry.key_mask is not None or softcap is not None
        head_dim = max(query.shape[-1], value.shape[-1])
        few = not grad and rows * groups <= triton.FEW_LINES
        special = special or s_aux is not None
        inputs = Inputs(query.device, query.dtype, head_dim, rows, few, grad, special, dropout)
        attend = {"flex": flex.flex_attention_backend, "triton": triton.triton_attention}.get(choose(inputs)[0])
    else:
        attend = None
    return (attend or sdpa_attention)(
        query,
        key,
        value,
        geometry=geometry,
        rule=rule,
        scaling=scaling,
        dropout=dropout,
        softcap=softcap,
        s_aux=s_aux,
    )


def explain(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Return the backend for prompts, and in words which one serves what and why."""
    prompt = choose(Inputs(device, dtype, head_dim, rows=1 << 16))
    token = choose(Inputs(device, dtype, head_dim, rows=1, few=True))
    if prompt == token:
        return prompt
    return prompt[0], f"{prompt[1]}; {token[0]} for single tokens ({token[1]})"
