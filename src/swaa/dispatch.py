"""The attention function that adapted models call in every layer, and the masks that it wants from transformers.

transformers dispatches attention by name, so one registered function serves all families and no forward is copied.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, prepare_padding_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from swaa.attention.heads import attend_by_heads, divide
from swaa.cache import HeadsLayer, SinkWindowLayer, StaticSinkWindowLayer
from swaa.cache.slots import SlotLayer
from swaa.geometry import Geometry
from swaa.state import AdaptError, Pass

# Keyword arguments of some families' attention that change which keys count: refused, never ignored.
_FOREIGN_ARGUMENTS = ("position_bias", "indices", "block_indices")


def register(native: str) -> str:
    """Register our attention for models whose native implementation is `native`, and return its name.

    transformers looks for "flash", "sdpa", "flex_attention" and "/" in names, so `native` cannot be a part of it.
    """
    name = "swaa" if native == "sdpa" else f"swaa_{native.encode().hex()}"
    # Once: compiled layers of another model may have put an untraced one in its place (`swaa.compiling`).
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, partial(_mask, native=native))
    return name


def native_name(name: str) -> str:
    """Undo `register`, as a model may be built from the configuration of an adapted one; other names stay."""
    return (bytes.fromhex(name[5:]).decode() or "sdpa") if name.startswith("swaa") else name


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    swaa: Pass | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer; registered with transformers, which calls it with q, k, v after RoPE and cache update."""
    if swaa is None:
        raise AdaptError(
            f"{type(module).__name__} was called without the description of the pass: call the model or its decoder, "
            "not a layer by itself; a model built from the configuration of an adapted one has to be adapted too (or "
            "this family does not hand keyword arguments down to its attention)"
        )
    layer: Any = module.layer_idx
    rule = swaa.rules[layer]
    if rule is None:
        attend = _native_attention(module, swaa.adaptation.native)
        attention_mask = _segments_apart(attention_mask, swaa.geometry)
        if softcap is not None:
            kwargs["softcap"] = softcap
        if s_aux is not None:
            kwargs["s_aux"] = s_aux
        return attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if foreign := [name for name in _FOREIGN_ARGUMENTS if kwargs.get(name) is not None]:
        raise AdaptError(f"{type(module).__name__} passes {foreign} to its attention, which no backend here knows")
    geometry = swaa.geometry
    layers = swaa.cache.layers if swaa.cache is not None else []
    # The last ones may use the keys of others, without a place in the cache (in older versions of transformers always).
    held = layers[layer] if layer < len(layers) else None
    options: dict[str, Any] = {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "dropout": dropout,
        "softcap": softcap,
        "s_aux": s_aux,
    }
    groups = held.groups(key, geometry) if isinstance(held, HeadsLayer) else []
    if torch.is_autocast_enabled(query.device.type):
        # RoPE leaves queries and keys in float32 where the weights are: to a kernel the three must be of one type.
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
        groups = [replace(group, key=group.key.to(kind), value=group.value.to(kind)) for group in groups]
    if groups:
        return attend_by_heads(swaa.attend, query, groups, **options)
    if isinstance(held, SinkWindowLayer | StaticSinkWindowLayer | SlotLayer):
        geometry = held.view(geometry)
    else:
        # A static layer hands out its unused slots too.
        key, value = key[:, :, : geometry.columns], value[:, :, : geometry.columns]
    if rule.full_heads:
        return attend_by_heads(swaa.attend, query, divide(key, value, geometry, rule), **options)
    return swaa.attend(query, key, value, geometry=geometry, rule=rule, **options)


def _native_attention(module: nn.Module, native: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS.get_interface(native, eager)


def _segments_apart(mask: Tensor | None, geometry: Geometry) -> Tensor | None:
    """Keep packed segments apart on a native layer: not every family tells its masks of positions (gpt-oss)."""
    if mask is None or mask.ndim != 4 or geometry.segments is None or not bool((geometry.segments > 0).any()):
        return mask
    other = geometry.segments[:, None, geometry.past :, None] != geometry.segments[:, None, None]
    return mask.masked_fill(other.to(mask.device), False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def _mask(*, native: str, attention_mask: Tensor | None, kv_length: int, kv_offset: int, **kwargs: Any) -> Any:
    """Make the mask of a layer type: the padding for our layers, the native mask for layers with a native window."""
    if kwargs.get("local_size") is not None:
        make = ALL_MASK_ATTENTION_FUNCTIONS[native]
        return make(attention_mask=attention_mask, kv_length=kv_length, kv_offset=kv_offset, **kwargs)
    if kwargs.get("use_vmap"):
        raise AdaptError("this model asks for a mask that is not causal (image tokens, say): it cannot be adapted")
    return prepare_padding_mask(attention_mask, kv_length, kv_offset)
