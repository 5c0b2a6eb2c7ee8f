"""What happens while an adapted model runs: a pass is described once and handed down to the attention of each layer.

The layers' attention is dispatched by name in transformers, so one registered function serves all families and no
forward is copied. The phase is explicit: `generate` announces its prompt, and a cache remembers where it ended.
"""

import copy
import inspect
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.generation import GenerationMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface, prepare_padding_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from swaa.attention import Backend, backend
from swaa.attention.heads import attend_by_heads, divide
from swaa.cache import HeadsLayer, SinkWindowLayer, StaticSinkWindowLayer, announce, install, stop_recording
from swaa.cache.naming import given_cache, put_cache, returned_cache
from swaa.cache.slots import DecodeCache, SlotLayer
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import releases
from swaa.geometry import Geometry, build_geometry

# Attributes on the caches of others carry the project's name.
_CACHE_PROMPT_END = "_swaa_prompt_end"
# Keyword arguments of some families' attention that change which keys count: refused, never ignored.
_FOREIGN_ARGUMENTS = ("position_bias", "indices", "block_indices")


class AdaptError(ValueError):
    """A model cannot be adapted; the message names the reason."""


@dataclass(eq=False)
class Adaptation:
    """The adaptation on a model, as `swaa.adaptation(model)` returns it.

    Args:
        config: the configuration.
        rules: the rule of each layer; None: not ours (a native sliding window, linear attention): left as it is.
        backend: name of the attention backend (of prompts, where it is chosen for every pass).
        reason: why `backend` was chosen.
        native: the attention implementation that the model had.
        handles: hooks to remove.
        original_up_to: tokens of the longest prompt that `generate` leaves to the original model; 0: none.
        compiled: the decoder layers are compiled (`swaa.compile_layers`).
    """

    config: SWAAConfig
    rules: tuple[LayerRule | None, ...]
    backend: str
    reason: str
    native: str
    handles: list[RemovableHandle]
    original_up_to: int = 0
    compiled: bool = False

    @property
    def fa_decode(self) -> bool:
        """Whether any layer has FA decode."""
        return any(rule is not None and rule.fa_decode for rule in self.rules)

    @property
    def has_phases(self) -> bool:
        """Whether it matters which rows are prompt and which are generated: FA decode or a dense tail on any layer."""
        return self.fa_decode or any(rule is not None and rule.dense_tail > 0 for rule in self.rules)


@dataclass(eq=False)
class _Pass:
    """What the decoder's pre-hook hands to the attention of each layer."""

    adaptation: Adaptation
    rules: tuple[LayerRule | None, ...]
    geometry: Geometry
    prompt_end: int | None
    attend: Backend
    cache: Cache | None


@dataclass(frozen=True, eq=False)
class _Generation:
    """A running `generate`: its adaptation, the first column that it generates, whether drafts may be rejected."""

    adaptation: Adaptation
    prompt_end: int
    drafts: bool


_GENERATION: ContextVar["_Generation | None"] = ContextVar("swaa_generation", default=None)


def generate(self: PreTrainedModel, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """Generate as the model's class does, with the prompt's end announced."""
    state: Adaptation = vars(self.get_decoder())["_swaa"]
    from swaa.switching import generate_switched_off, is_left_to_the_original

    if is_left_to_the_original(state, inputs, kwargs):
        return generate_switched_off(self, inputs, *args, **kwargs)
    config = copy.deepcopy(kwargs.get("generation_config") or (args[0] if args else None) or self.generation_config)
    config.update(**{key: value for key, value in kwargs.items() if key != "generation_config"})
    if config.token_healing:
        raise ConfigError("token_healing changes the prompt inside generate: heal the prompt first, or switch it off")
    prompt = prompt_tokens(inputs, kwargs)
    # With a cache the new tokens may come alone, but the mask always covers the whole sequence.
    mask = kwargs.get("attention_mask")
    prompt_end = prompt.shape[1] if mask is None else max(prompt.shape[1], mask.shape[-1])
    drafts = config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
    token = _GENERATION.set(_Generation(state, prompt_end, drafts or bool(config.is_assistant)))
    from swaa.decoding import bound, why_not

    greedy_or_sample = config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
    if greedy_or_sample and why_not(self, state, config, kwargs) is None:
        kwargs["custom_generate"] = bound(kwargs.get("streamer"))
    # transformers compiles the decode step of a static cache by itself on a GPU; it cannot trace what describes a pass.
    if config.compile_config is None:
        kwargs["disable_compile"] = True
    try:
        own: Any = type(self)  # its `generate` comes from a mixin that the annotation does not know
        return own.generate(self, inputs, *args, **kwargs)
    finally:
        _GENERATION.reset(token)


def prompt_tokens(inputs: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    """Return what `generate` got as its prompt, tokens or embeddings: `[batch, tokens, ..]`."""
    given = (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
    return next((x for x in given if x is not None), torch.empty(1, 1))


def before_forward(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Describe the pass and hand it down to the layers."""
    state: Adaptation = vars(decoder)["_swaa"]
    kwargs = dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)) | kwargs
    prompt_length, dense_rows = kwargs.pop("prompt_length", None), kwargs.pop("dense_rows", None)
    full_attention = kwargs.pop("full_attention", False)
    tokens = kwargs.get("input_ids") if kwargs.get("input_ids") is not None else kwargs.get("inputs_embeds")
    if tokens is None:
        return (), kwargs  # the model's own error says what is missing
    batch, rows = tokens.shape[:2]
    mask, position_ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if isinstance(mask, dict):  # generate prepares one mask a layer type for a static cache
        mask = mask["full_attention"]
    if mask is not None and mask.ndim == 4:
        raise ValueError(
            "an adapted model builds its own masks and takes a 2-D attention_mask (padding) only: pass dense_rows or "
            "prompt_length to say which rows see everything, or restore the model to use a 4-D mask"
        )
    cache = given_cache(kwargs)
    attend = backend(state.config.backend)
    if isinstance(cache, DecodeCache):
        cache.begin(state.rules)
        kwargs["swaa"] = _Pass(state, state.rules, Geometry(batch, cache.start, 1, 0), 0, attend, cache)
        _hide_from_compiler(state, cache)
        return (), kwargs
    config: Any = decoder.config
    rules = state.rules
    if full_attention:
        if _uses_cache(decoder, kwargs):
            raise ValueError("full_attention is for a forward call without a cache: pass use_cache=False")
        rules = tuple(None if rule is None else LayerRule() for rule in rules)
    if cache is None and _makes_cache(decoder, state, kwargs):
        cache = DynamicCache(config=config)
        put_cache(kwargs, cache)
    past = int(cache.get_seq_length()) if cache is not None else 0
    limit = getattr(config, "max_position_embeddings", None)
    if limit and past <= limit < past + rows:
        warnings.warn(
            f"the model was trained on {limit} positions, and this sequence goes on past them: positions are never "
            "re-indexed, so expect worse answers from here on",
            stacklevel=2,
        )
    generation = _GENERATION.get()
    prompt_end = None
    if generation is not None and generation.adaptation is not state:
        generation = None
    if generation is not None:
        prompt_end, position_ids = generation.prompt_end, None
    elif dense_rows is not None:
        _check_dense_rows(state, prompt_length)
    elif prompt_length is not None:
        prompt_end = _common_prompt_end(prompt_length, mask, past + rows)
    elif past:
        prompt_end = getattr(cache, _CACHE_PROMPT_END, None)
        if prompt_end is None:
            raise ValueError(
                "the cache holds tokens, but not where their prompt ended (it was filled by another model, or by rows "
                "with prompts of different ends): pass prompt_length, the number of prompt tokens of each row"
            )
    else:
        prompt_end = rows
    geometry = build_geometry(
        batch=batch,
        past=past,
        rows=rows,
        attention_mask=mask,
        position_ids=position_ids,
        prompt_end=None if prompt_length is not None or dense_rows is not None else prompt_end,
        prompt_length=prompt_length,
        dense_rows=dense_rows,
    )
    if cache is not None:
        complete = prompt_end is not None and past + rows >= prompt_end
        drafts = generation is not None and generation.drafts
        if not past and releases(config, state.config.release_kv):
            install(cache, state.rules, prompt_complete=complete, record_past=drafts)
        elif generation is not None and not drafts:
            stop_recording(cache)
        announce(cache, state.rules, geometry, prompt_complete=complete)
    kwargs["swaa"] = _Pass(state, rules, geometry, prompt_end, attend, cache)
    _hide_from_compiler(state, cache)
    return (), kwargs


def after_forward(decoder: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    """Let the cache remember where its prompt ended, so that a hand-written loop can go on."""
    used = given_cache(kwargs)
    if used is not None:
        vars(used).pop("update", None)
    cache = returned_cache(output)
    if cache is not None and "swaa" in kwargs:
        setattr(cache, _CACHE_PROMPT_END, kwargs["swaa"].prompt_end)


def _hide_from_compiler(state: Adaptation, cache: Cache | None) -> None:
    """Keep a compiler of the layers out of the cache: its bookkeeping changes with every pass. Only for this pass."""
    if state.compiled and cache is not None:
        vars(cache)["update"] = torch.compiler.disable(cache.update)


def _makes_cache(decoder: Any, state: Adaptation, kwargs: dict[str, Any]) -> bool:
    """Tell whether the decoder would make a cache itself: then ours comes first, to be able to release."""
    wanted = _uses_cache(decoder, kwargs)
    return wanted and releases(decoder.config, state.config.release_kv) and not decoder.training


def _uses_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("use_cache")
    wanted = getattr(decoder.config, "use_cache", False) if wanted is None else wanted
    return bool(wanted) or given_cache(kwargs) is not None


def _check_dense_rows(state: Adaptation, prompt_length: int | Tensor | None) -> None:
    if prompt_length is not None:
        raise ValueError("give prompt_length or dense_rows, not both: each says which rows are generated")
    if not state.has_phases:
        raise ValueError(
            "dense_rows marks rows of generated tokens, which see everything on layers with FA decode, but no layer of "
            "this configuration has it (nor a dense tail, which ends where they begin): set fa_decode, or leave "
            "dense_rows out"
        )


def _common_prompt_end(prompt_length: int | Tensor, mask: Tensor | None, columns: int) -> int | None:
    """Return the column where the prompts of all rows end, None if they end in different ones."""
    lengths = torch.as_tensor(prompt_length).reshape(-1)
    padding = 0 if mask is None else (columns - mask[:, :columns].bool().sum(-1)).to(lengths.device)
    ends = (lengths + padding).unique()
    return int(ends[0]) if len(ends) == 1 else None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    swaa: _Pass | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer; registered with transformers, which calls it with q, k, v after RoPE and cache update."""
    if swaa is None:
        raise AdaptError(
            f"{type(module).__name__} was called without the description of the pass: call the model or its decoder, "
            "not a layer by itself (or this family does not hand keyword arguments down to its attention)"
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
    if torch.is_autocast_enabled(query.device.type):
        # RoPE leaves queries and keys in float32 where the weights are: to a kernel the three must be of one type.
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    geometry = swaa.geometry
    held = swaa.cache.layers[layer] if swaa.cache is not None else None
    options: dict[str, Any] = {
        "scaling": query.shape[-1] ** -0.5 if scaling is None else scaling,
        "dropout": dropout,
        "softcap": softcap,
        "s_aux": s_aux,
    }
    if isinstance(held, HeadsLayer):
        return attend_by_heads(swaa.attend, query, held.groups(key, geometry), **options)
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


def register(native: str) -> str:
    """Register our attention for models whose native implementation is `native`, and return its name.

    transformers looks for "flash", "sdpa", "flex_attention" and "/" in names, so `native` cannot be a part of it.
    """
    name = "swaa" if native == "sdpa" else "swaa_" + "".join(f"{byte:02x}" for byte in native.encode())
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, partial(_mask, native=native))
    return name
