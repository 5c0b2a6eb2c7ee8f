"""Before and after each pass of an adapted decoder: the pass is described once and handed down to all layers.

The phase is explicit: `generate` announces its prompt, and a cache remembers where it ended.
"""

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from swaa.attention import backend
from swaa.cache import announce, install, is_ours, stop_recording
from swaa.cache.naming import given_cache, put_cache, returned_cache
from swaa.cache.slots import DecodeCache
from swaa.config import LayerRule
from swaa.cost import releases
from swaa.dispatch import register
from swaa.geometry import Geometry, build_geometry
from swaa.state import GENERATION, Adaptation, AdaptError, Pass

# Attributes on the caches of others carry the project's name.
_CACHE_PROMPT_END = "_swaa_prompt_end"
CACHE_OF_THE_ORIGINAL = "_swaa_of_the_original"


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
    config: Any = decoder.config
    if not str(config._attn_implementation).startswith("swaa"):
        raise AdaptError(
            f"this adapted model's attention was set to {config._attn_implementation!r}, which would leave the "
            "adaptation out: call swaa.adapt again"
        )
    if config._attn_implementation not in ALL_ATTENTION_FUNCTIONS:
        register(state.native)  # the model was unpickled in another process
    cache = given_cache(kwargs)
    attend = backend(state.config.backend)
    if isinstance(cache, DecodeCache):
        cache.begin(state.rules)
        kwargs["swaa"] = Pass(state, state.rules, Geometry(batch, cache.start, 1, 0), 0, attend, cache)
        _hide_from_compiler(state, cache)
        return (), kwargs
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
    generation = GENERATION.get()
    prompt_end = None
    if generation is not None and not (generation.adaptation is state and generation.is_of(cache, past + rows)):
        generation = None
    if generation is not None:
        prompt_end, position_ids = generation.prompt_end, None
    elif dense_rows is not None:
        _check_dense_rows(state, prompt_length, past)
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
        if not past:
            vars(cache).pop(CACHE_OF_THE_ORIGINAL, None)
        if not past and releases(config, state.config.release_kv):
            install(cache, state.rules, prompt_complete=complete, record_past=drafts)
        elif not past and is_ours(cache):
            install(cache, (None,) * len(state.rules), prompt_complete=complete, record_past=drafts)
        elif generation is not None and not drafts:
            stop_recording(cache)
        announce(cache, state.rules, geometry, prompt_complete=complete)
    kwargs["swaa"] = Pass(state, rules, geometry, prompt_end, attend, cache)
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
    wanted = _uses_cache(decoder, kwargs) and not decoder.training
    # Those with a cache of their own kind (MiniMax) take no other.
    takes_ours = vars(GenerationMixin)["_supports_default_dynamic_cache"].__func__(type(decoder))
    return wanted and takes_ours and releases(decoder.config, state.config.release_kv)


def _uses_cache(decoder: Any, kwargs: dict[str, Any]) -> bool:
    wanted = kwargs.get("use_cache")
    wanted = getattr(decoder.config, "use_cache", False) if wanted is None else wanted
    return bool(wanted) or given_cache(kwargs) is not None


def _check_dense_rows(state: Adaptation, prompt_length: int | Tensor | None, past: int) -> None:
    if prompt_length is not None:
        raise ValueError("give prompt_length or dense_rows, not both: each says which rows are generated")
    if not state.has_phases:
        raise ValueError(
            "dense_rows marks rows of generated tokens, which see everything on layers with FA decode, but no layer of "
            "this configuration has it (nor a dense tail, which ends where they begin): set fa_decode, or leave "
            "dense_rows out"
        )
    if past and any(rule is not None and rule.dense_tail for rule in state.rules):
        raise ValueError(
            "dense_rows with a cache does not tell where the prompt ends, and so which rows are the dense tail: pass "
            "prompt_length, the number of prompt tokens of each row, or the whole sequence without a cache"
        )


def _common_prompt_end(prompt_length: int | Tensor, mask: Tensor | None, columns: int) -> int | None:
    """Return the column where the prompts of all rows end, None if they end in different ones."""
    lengths = torch.as_tensor(prompt_length, device="cpu").reshape(-1)
    padding = 0 if mask is None else (columns - mask[:, :columns].bool().sum(-1)).to(lengths.device)
    ends = (lengths + padding).unique()
    return int(ends[0]) if len(ends) == 1 else None
