"""Where an adaptation sits on a model: hooks, attention's name and `generate` are put on and taken off."""

import copy
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from swaa.dispatch import register
from swaa.forward import after_forward, before_forward
from swaa.state import Adaptation, AdaptError


def attach(model: nn.Module, state: Adaptation) -> None:
    """Put a resolved adaptation on a model that has none."""
    base, decoder = parts(model)
    name = register(state.native)
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:
        raise AdaptError(f"{type(base).__name__}: transformers did not accept another attention implementation")
    state.handles = [
        decoder.register_forward_pre_hook(before_forward, with_kwargs=True),
        decoder.register_forward_hook(after_forward, with_kwargs=True, always_call=True),
    ]
    vars(decoder)["_swaa"] = state
    # Bound, so that a copy of the model generates with the copy. A method would be pickled by its name, which is lost.
    vars(base)["generate"] = partial(state.generate, base)
    # A plain dict: a dataclass makes save_pretrained fail.
    base.config.swaa = state.config.to_dict()


def detach(model: nn.Module, state: Adaptation) -> None:
    """Undo `attach`."""
    base, decoder = parts(model)
    for handle in state.handles:
        handle.remove()
    decoder.set_attn_implementation(state.native)
    del decoder._swaa
    # The decoder may have been adapted by itself, before the model around it came.
    for part in (base, decoder):
        vars(part).pop("generate", None)
        vars(part.config).pop("swaa", None)


def own_config(base: PreTrainedModel) -> None:
    """Give a model a copy of its configuration: models built from one object share it, and so attention's name."""
    copies: dict[int, Any] = {}
    copy.deepcopy(base.config, copies)
    for module in base.modules():
        vars(module).update({name: copies[id(value)] for name, value in vars(module).items() if id(value) in copies})


def adaptation(model: nn.Module) -> Adaptation | None:
    """Return the adaptation on a model, None if there is none."""
    return getattr(parts(model)[1], "_swaa", None)


def parts(model: nn.Module) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return the transformers model under any PEFT wrapper, and its decoder (the module that owns the layers).

    Raises:
        AdaptError: it is no model that can be adapted; the message says why.
    """
    wrapper: Any = model
    base = wrapper.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(base).__name__
    if any(getattr(peft, "is_prompt_learning", False) for peft in getattr(model, "peft_config", {}).values()):
        raise AdaptError(
            f"{name} carries a prompt-learning PEFT adapter (virtual tokens shift every position): merge or remove it"
        )
    if not isinstance(base, PreTrainedModel):
        raise AdaptError(f"{name} is no transformers model: load one with AutoModelForCausalLM.from_pretrained")
    if getattr(base.config, "is_encoder_decoder", False):
        raise AdaptError(f"{name} is an encoder-decoder: only causal language models can be adapted")
    decoder = base.get_decoder()
    if not isinstance(decoder, PreTrainedModel) or not decoder._can_set_attn_implementation():
        raise AdaptError(
            f"{name} does not dispatch its attention through transformers' attention interface (its code computes "
            "attention itself), so it cannot be replaced"
        )
    return base, decoder
