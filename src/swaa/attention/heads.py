"""Layers some of whose KV heads keep full attention: every group of heads attends by itself, with any backend."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from swaa.attention import Backend
from swaa.config import LayerRule
from swaa.geometry import Geometry


@dataclass(frozen=True, eq=False)
class HeadGroup:
    """KV heads of a layer that follow one rule, with their keys.

    Args:
        heads: numbers of the KV heads.
        rule: what they see.
        key: `[batch, len(heads), keys, head_dim]`.
        value: `[batch, len(heads), keys, value_dim]`.
        geometry: where these keys sit.
    """

    heads: tuple[int, ...]
    rule: LayerRule
    key: Tensor
    value: Tensor
    geometry: Geometry


def take_heads(tensor: Tensor, heads: Sequence[int], group: int = 1) -> Tensor:
    """Copy KV heads, or with `group` the query heads of each, out of dimension 1."""
    # Slices: a list as an index would be copied to the device, which waits for it.
    return torch.cat([tensor[:, head * group : (head + 1) * group] for head in heads], dim=1)


def divide(key: Tensor, value: Tensor, geometry: Geometry, rule: LayerRule) -> list[HeadGroup]:
    """Divide the keys and values of a layer, `[batch, kv_heads, keys, dim]`, into the groups of its rule."""
    return [
        HeadGroup(heads, part, take_heads(key, heads), take_heads(value, heads), geometry)
        for heads, part in rule.parts(key.shape[1])
    ]


def attend_by_heads(
    attend: Backend, query: Tensor, groups: Sequence[HeadGroup], *, s_aux: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend with each group of heads and put the results back in the order of the heads.

    Args:
        attend: the backend.
        query: `[batch, heads, rows, head_dim]`.
        groups: all KV heads of the layer.
        s_aux: `[heads]`, see `Backend`.
        **options: as `Backend` takes them.

    Returns:
        output `[batch, rows, heads, value_dim]`; the weights `[batch, heads, rows, keys]`, those of a group with fewer
        keys filled up with zeros, or None where the backend does not hold them.
    """
    size = query.shape[1] // sum(len(group.heads) for group in groups)
    outputs: dict[int, Tensor] = {}
    weights: dict[int, Tensor] = {}
    most = max(group.key.shape[2] for group in groups)
    for group in groups:
        extra = None if s_aux is None else take_heads(s_aux[None], group.heads, size)[0]
        output, weight = attend(
            take_heads(query, group.heads, size),
            group.key,
            group.value,
            geometry=group.geometry,
            rule=group.rule,
            s_aux=extra,
            **options,
        )
        outputs |= zip(group.heads, output.split(size, dim=2), strict=True)
        if weight is not None:
            weight = pad(weight, (0, most - weight.shape[-1]))
            weights |= zip(group.heads, weight.split(size, dim=1), strict=True)
    joined = torch.cat([outputs[head] for head in sorted(outputs)], dim=2)
    return joined, torch.cat([weights[head] for head in sorted(weights)], dim=1) if weights else None
