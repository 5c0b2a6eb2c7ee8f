"""The semantics: which keys a query row sees. Every backend, cache and engine must agree with this module."""

import torch
from torch import Tensor

from swaa.config import LayerRule
from swaa.geometry import Geometry


def visible(query: Tensor, key: Tensor, dense: Tensor | bool, *, window: int | None, sinks: int) -> Tensor:
    """Tell which keys are visible: the rule, for positions of one segment.

    Args:
        query: query positions, integer, any shape that broadcasts with `key`.
        key: key positions, integer.
        dense: whether the query row sees everything, bool, broadcasts with `query`.
        window: visible tokens, the query itself included; None: plain causal.
        sinks: first tokens that stay visible.

    Returns:
        bool tensor of the broadcast shape.
    """
    causal = key <= query
    if window is None:
        return causal
    return causal & ((query - key < window) | (key < sinks) | dense)


def oracle_mask(geometry: Geometry, rule: LayerRule) -> Tensor:
    """Build the whole boolean mask of a layer, the truth that every implementation is compared with.

    Of a layer with full heads it is the mask of the others; `oracle_head_masks` has all.

    Returns:
        `[batch or 1, rows, past + rows]` bool, True where visible; rows of padding see nothing.
    """
    dense = geometry.dense_rows(rule)
    if geometry.positions is None or geometry.segments is None:
        column = torch.arange(geometry.columns, device="cpu")
        return visible(column[geometry.past :, None], column, dense[:, None], window=rule.window, sinks=rule.sinks)[
            None
        ]
    query, key = geometry.positions[:, geometry.past :, None], geometry.positions[:, None, :]
    query_segment, key_segment = geometry.segments[:, geometry.past :, None], geometry.segments[:, None, :]
    seen = visible(query, key, dense[..., None], window=rule.window, sinks=rule.sinks)
    return seen & (query_segment == key_segment) & (key_segment >= 0)


def oracle_head_masks(geometry: Geometry, rule: LayerRule, kv_heads: int) -> Tensor:
    """Build the mask of each KV head of a layer: `[batch or 1, kv_heads, rows, past + rows]` bool."""
    sliding, full = oracle_mask(geometry, rule), oracle_mask(geometry, LayerRule())
    return torch.stack([full if head in rule.full_heads else sliding for head in range(kv_heads)], dim=1)
