"""Attention over the SWAA mask: one file a backend, and this registry. Nothing here knows transformers.

A backend is a function with the signature of `Backend`; it must agree with `swaa.mask.oracle_mask`.
"""

from typing import Protocol

import torch
from torch import Tensor

from swaa.attention import flex, triton
from swaa.attention.auto import auto_attention, explain
from swaa.attention.eager import eager_attention
from swaa.attention.flex import flex_attention_backend
from swaa.attention.sdpa import sdpa_attention
from swaa.attention.triton import triton_attention
from swaa.config import LayerRule
from swaa.geometry import Geometry
from swaa.registry import Registry


class Backend(Protocol):
    """Attention of the query rows of a pass over its key columns, under a layer's rule."""

    def __call__(
        self,
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
        """Compute the attention.

        Args:
            query: `[batch, heads, rows, head_dim]`, RoPE applied.
            key: `[batch, kv_heads, past + rows, head_dim]`; `heads` is a multiple of `kv_heads`.
            value: `[batch, kv_heads, past + rows, value_dim]`.
            geometry: where rows and keys sit.
            rule: what a row of this layer sees.
            scaling: factor of the scores.
            dropout: probability of dropping an attention weight.
            softcap: scores become `softcap * tanh(score / softcap)` (Gemma 2).
            s_aux: `[heads]` learned logit that takes part in the softmax and has no value (gpt-oss).

        Returns:
            output `[batch, rows, heads, value_dim]` in the dtype of `query`, finite on rows of padding too; and the
            attention weights `[batch, heads, rows, past + rows]`, or None where a backend never holds them.
        """


BACKENDS: Registry[Backend] = Registry(
    "backend",
    {
        "eager": eager_attention,
        "sdpa": sdpa_attention,
        "triton": triton_attention,
        "flex": flex_attention_backend,
    },
)
_UNAVAILABLE = {"triton": triton.unavailable, "flex": flex.unavailable}


def select_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Return the backend that `name` stands for, and why it was chosen.

    Args:
        name: a backend's name, or "auto": then it is chosen anew for every pass, and the one for prompts returned.
        device: of the model.
        dtype: of the model.
        head_dim: of its attention.

    Raises:
        ValueError: `name` is neither "auto" nor a backend, or that backend cannot run here; the message says why.
    """
    if name == "auto":
        return explain(device, dtype, head_dim)
    BACKENDS[name]
    # A model without weights ("meta") will not run anyway.
    check = _UNAVAILABLE.get(name)
    if check is not None and device.type != "meta" and (reason := check(device, dtype, head_dim)):
        raise ValueError(f"backend {name!r} cannot be used: {reason}; use 'auto' or 'sdpa'")
    return name, "named in the configuration"


def backend(name: str) -> Backend:
    """Return the function of a backend's name, "auto" included."""
    return auto_attention if name == "auto" else BACKENDS[name]
