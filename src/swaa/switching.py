"""The original model inside an adapted one: adaptation and adapters off for a while, without a copy of the weights."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from swaa.attaching import adaptation, attach, detach
from swaa.cache.naming import given_cache, returned_cache
from swaa.compiling import uncompiled
from swaa.forward import CACHE_OF_THE_ORIGINAL
from swaa.state import Adaptation


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Let a model be the original one for a while: adaptation and PEFT adapters are off, bit for bit.

    `with swaa.switched_off(model): model(ids)`. Not for several threads: all callers of the model see it. One that is
    adapted meanwhile keeps its new adaptation.

    Args:
        model: a model of transformers, adapted or not, PEFT-wrapped or not.
    """
    state = adaptation(model)
    with adapters_off(model), uncompiled(model):
        if state is None:
            yield
            return
        detach(model, state)
        try:
            yield
        finally:
            if adaptation(model) is None:
                attach(model, state)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch off the PEFT adapters that are on. Without any: does nothing.

    PEFT's own switch makes the active adapters trainable when it puts them on again: here they are what they were.
    """
    layers = list(_adapter_layers(model))
    flags = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def is_left_to_the_original(state: Adaptation, inputs: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Tell whether a call of `generate` is answered by the original model (`original_up_to` of `swaa.adapt`).

    Args:
        state: the adaptation.
        inputs: the first argument of `generate`.
        kwargs: its keyword arguments.
    """
    if not state.original_up_to:
        return False
    cache, mask = given_cache(kwargs), kwargs.get("attention_mask")
    if cache is not None and cache.get_seq_length():
        return bool(getattr(cache, CACHE_OF_THE_ORIGINAL, False))
    if mask is not None and mask.ndim == 2:
        return int(mask.sum(-1).max()) <= state.original_up_to
    return prompt_tokens(inputs, kwargs).shape[1] <= state.original_up_to


def prompt_tokens(inputs: Tensor | None, kwargs: dict[str, Any]) -> Tensor:
    """Return what `generate` got as its prompt, tokens or embeddings: `[batch, tokens, ..]`."""
    given = (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids"))
    return next((x for x in given if x is not None), torch.empty(1, 1))


def generate_switched_off(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Generate as the original model, and let the cache remember who filled it.

    Raises:
        ValueError: the cache is empty, but was made ready by the adapted model.
    """
    cache = given_cache(kwargs)
    if any(type(layer).__module__.startswith("swaa.") for layer in getattr(cache, "layers", ())):
        raise ValueError("the adapted model has made this cache its own, and the original answers here: pass a new one")
    with switched_off(model):
        output = model.generate(*args, **kwargs)
    for used in (cache, returned_cache(output)):
        if isinstance(used, Cache):
            setattr(used, CACHE_OF_THE_ORIGINAL, True)
    return output


def _adapter_layers(model: nn.Module) -> Iterator[Any]:
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) and not module.disable_adapters:
            yield module
