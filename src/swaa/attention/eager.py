"""The reference backend: the oracle's mask and a softmax, nothing clever. Quadratic memory; for checking."""

import torch
from torch import Tensor

from swaa.config import LayerRule
from swaa.geometry import Geometry
from swaa.mask import oracle_mask


def masked_softmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention in plain operations, softmax in float32 as transformers' eager attention does it.

    Args:
        query: `[batch, heads, rows, head_dim]`.
        key: `[batch, kv_heads, keys, head_dim]`.
        value: `[batch, kv_heads, keys, value_dim]`.
        mask: bool, broadcasts to `[batch, heads, rows, keys]`, at least one key visible a row; None: all visible.
        scaling: factor of the scores.
        dropout: probability of dropping a weight.
        softcap: see `swaa.attention.Backend`.
        s_aux: `[heads]`, see `swaa.attention.Backend`.

    Returns:
        output `[batch, heads, rows, value_dim]` and weights `[batch, heads, rows, keys]`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if s_aux is not None:
        extra = s_aux.to(scores.dtype).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, extra], dim=-1), dim=-1, dtype=torch.float32)[..., :-1]
    else:
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32)
    weights = torch.nn.functional.dropout(weights.to(query.dtype), p=dropout)
    return weights @ value, weights


def eager_attention(
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
    """Attend under the oracle's mask; see `swaa.attention.Backend`."""
    mask = _held_mask(geometry, rule)
    # A row of padding sees nothing; a softmax over nothing is NaN, which would spread through the next layer's keys.
    mask = (mask | ~mask.any(-1, keepdim=True))[:, None].to(query.device)
    output, weights = masked_softmax_attention(
        query, key, value, mask, scaling=scaling, dropout=dropout, softcap=softcap, s_aux=s_aux
    )
    # Some families view the result as it lies in memory.
    return output.transpose(1, 2).contiguous(), weights


def _held_mask(geometry: Geometry, rule: LayerRule) -> Tensor:
    """Build the mask over the keys that the layer holds: `[batch or 1, rows, keys]` bool."""
    if geometry.key_mask is not None:
        return geometry.key_mask[:, None].cpu()
    mask = oracle_mask(geometry, rule)
    if not geometry.released:
        return mask
    sinks = geometry.sink_columns(geometry.slots).expand(len(mask), -1)
    slots = mask.gather(2, sinks[:, None].expand(-1, geometry.rows, -1)) & (sinks < geometry.released)[:, None]
    return torch.cat([slots, mask[..., geometry.released :]], dim=-1)
