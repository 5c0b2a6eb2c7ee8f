"""Putting an adaptation on a transformers model and taking it off again."""

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from torch import nn

from swaa.attaching import adaptation, attach, detach, own_config, parts
from swaa.attention import select_backend
from swaa.compiling import uncompile_layers
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import attention_heads, head_dim, layer_kinds, reusing_layers
from swaa.dispatch import native_name
from swaa.generation import generate
from swaa.layers import is_int
from swaa.state import Adaptation, AdaptError

ModelT = TypeVar("ModelT", bound=nn.Module)


def adapt(model: ModelT, config: SWAAConfig, *, original_up_to: int | Literal["window"] = 0) -> ModelT:
    """Make a loaded model use sliding window attention as `config` says. Adapting again replaces the adaptation.

    The model gets a copy of its configuration, so that another one that was built from the same object stays as it is.
    `model.generate` stays as it is for the caller. A forward call without a cache takes three more keyword arguments:
    `prompt_length` (prompt tokens of each row, padding excluded: an int or `[batch]`) or `dense_rows` (`[batch, rows]`
    bool, rows to be treated as generated); by default all rows are prompt. `full_attention=True` lets every row see
    everything, as in the original model. With a cache, the first forward on an empty one is the prompt unless
    `prompt_length` says otherwise.

    Args:
        model: a causal language model of transformers, PEFT-wrapped, quantised or on several devices too.
        config: the adaptation.
        original_up_to: `generate` leaves prompts of up to so many tokens (without the padding that `attention_mask`
            names, the longest of a batch counts) to the original model: adaptation and PEFT adapters are off, and stay
            off for all that is generated and for later turns on the same cache. "window": up to the window, where a
            prompt slides nowhere. Not for several threads on one model: all of them see the original meanwhile.

    Returns:
        The same model.

    Raises:
        AdaptError: the model's attention cannot be replaced; the message says why.
        ConfigError: the configuration does not fit the model.
    """
    base, decoder = parts(model)
    rules = plan_layers(decoder.config, config)
    limit = (config.window or 0) if original_up_to == "window" else original_up_to
    if not is_int(limit) or limit < 0:
        raise ConfigError(f"original_up_to={original_up_to!r}: give a number of prompt tokens, 0 or more, or 'window'")
    previous = adaptation(model)
    backend, reason = select_backend(config.backend, base.device, base.dtype, head_dim(decoder.config))
    if previous:
        restore(model)
    else:
        own_config(base)
    native = native_name(decoder.config._attn_implementation)
    attach(model, Adaptation(config, rules, backend, reason, native, [], generate, limit))
    return model


def restore(model: ModelT) -> ModelT:
    """Take the adaptation off again; the model is bit for bit the one it was. Without an adaptation: does nothing."""
    state = adaptation(model)
    if state is None:
        return model
    uncompile_layers(model)
    detach(model, state)
    return model


def plan_layers(model_config: Any, config: SWAAConfig) -> tuple[LayerRule | None, ...]:
    """Resolve a configuration against a (text) model's configuration: one rule a layer, None where ours do not apply.

    Raises:
        AdaptError: no layer has full attention to begin with.
        ConfigError: the configuration names a layer or KV head that the model does not have, or a layer that is not
            ours.
    """
    count = model_config.num_hidden_layers
    kinds = getattr(model_config, "layer_types", None)
    if kinds is None:
        window = getattr(model_config, "sliding_window", None)
        kinds = ["full_attention" if window is None else "sliding_attention"] * count
    rules = config.resolve(count)
    if "full_attention" not in kinds:
        raise AdaptError(
            f"{model_config.model_type}: no layer has full attention ({', '.join(sorted(set(kinds)))}), so there is "
            "nothing to adapt; native windows are left as they are"
        )
    named = {"fa_decode": () if isinstance(config.fa_decode, bool) else config.fa_decode}
    named["full_heads"] = tuple(layer for layer, _ in config.full_heads)
    for name, layers in named.items():
        if foreign := [x for x in layers if kinds[x] != "full_attention"]:
            raise ConfigError(f"{name}: layers {foreign} of this model are {kinds[foreign[0]]}: take them out")
    if config.full_heads:
        _check_heads(model_config, rules)
        if config.release_kv and any(reusing_layers(model_config)):
            raise ConfigError(
                f"full_heads: in {model_config.model_type} layers use the keys of earlier ones, which must not be "
                "released head by head: set release_kv=False"
            )
    return tuple(rule if kind == "full_attention" else None for rule, kind in zip(rules, kinds, strict=True))


def layer_words(model_config: Any, config: SWAAConfig) -> list[str]:
    """Return what each layer does under a configuration: "full", "sliding" or "native" (not ours)."""
    rules = plan_layers(model_config, config)
    return ["native" if rule is None else "full" if rule.window is None else "sliding" for rule in rules]


def _check_heads(model_config: Any, rules: Sequence[LayerRule]) -> None:
    for layer, (rule, (_, own)) in enumerate(zip(rules, layer_kinds(model_config), strict=True)):
        heads = attention_heads(own)
        if rule.full_heads and heads is None:
            raise ConfigError(
                f"full_heads: the KV heads of {model_config.model_type} are not alike, or no plain ones: name whole "
                "layers in full_layers"
            )
        try:
            rule.parts(heads[1] if heads else 1)
        except ConfigError as error:
            raise ConfigError(f"full_heads, layer {layer}, {list(rule.full_heads)}: {error}") from None
