"""Attention over the SWAA mask: one file a backend, and this registry. Nothing here knows transformers.

A backend is a function with the signature of `Backend`; it must agree with `swaa.mask.oracle_mask`.
"""

from typing import Protocol

import torch
from torch import Tensor

from swaa.attention.eager import eager_attention
from swaa.attention.sdpa import sdpa_attention
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


BACKENDS: Registry[Backend] = Registry("backend", {"eager": eager_attention, "sdpa": sdpa_attention})


def select_backend(name: str, device: torch.device) -> tuple[str, str]:
    """Return the backend that `name` stands for on a device, and why it was chosen.

    Raises:
        ValueError: `name` is neither "auto" nor a backend.
    """
    if name != "auto":
        BACKENDS[name]
        return name, "named in the configuration"
    return "sdpa", f"linear time and memory on any device, here {device.type}"
