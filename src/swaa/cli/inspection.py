"""What `swaa inspect` shows, as plain data. Needs torch and transformers, so the command imports it when it runs."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from swaa.adapting import adapt, plan_layers
from swaa.attention import select_backend
from swaa.cli.wording import short_form
from swaa.config import LayerRule, SWAAConfig
from swaa.cost import (
    Weights,
    active_parameters,
    active_weights,
    head_dim,
    kv_bytes,
    layer_kinds,
    native_window,
    prefill_flops,
    relative_cost,
)
from swaa.errors import ModelError
from swaa.evaluate import held_bytes
from swaa.recipes import Recipe


def inspection(name: str, config: Any, recipe: Recipe, length: int | None) -> dict[str, Any]:
    """Work out what a recipe does to a model: the content of `swaa inspect --json`.

    Args:
        name: what the model is called.
        config: the model's configuration.
        recipe: the recipe.
        length: tokens of a sequence; None: the model's positions.

    Raises:
        AdaptError: the model cannot be adapted.
        ConfigError: the recipe does not fit the model.
        ModelError: `length` is None, and the model does not tell.
    """
    text = config.get_text_config()
    parameters, active, weights = _check(config, recipe.config)
    rules, full_rules = plan_layers(text, recipe.config), plan_layers(text, SWAAConfig())
    length = getattr(text, "max_position_embeddings", None) if length is None else length
    if not length:
        raise ModelError(f"{name!r} does not say how long its sequences may be: give --length, 1 or more")
    backend, reason = "native", "the model's own: there is nothing to adapt"
    if recipe.config != SWAAConfig():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        backend, reason = select_backend(recipe.config.backend, device, dtype, head_dim(text))
    release = recipe.config.release_kv
    cost = relative_cost(config, rules, length, weights, release_kv=release)
    both = ((rules, release), (full_rules, False))
    computed, most = (kv_bytes(config, own, length, release_kv=may) for own, may in both)
    kv = _saving(computed, most, cost.kv)
    held, kept = (held_bytes(text, own, length, release_kv=may) for own, may in both)
    (linear, attention), (_, whole) = (prefill_flops(config, own, length, weights) for own in (rules, full_rules))
    flops = {"attention": _saving(attention, whole, cost.attention), "total": _saving(None, None, None)}
    if attention is not None and whole is not None:
        flops["total"] = _saving(linear + attention, linear + whole, cost.flops)
    return {
        "model": name,
        "family": text.model_type,
        "parameters": parameters,
        "active_parameters": active,
        "positions": getattr(text, "max_position_embeddings", None),
        "recipe": {"name": recipe.name, "summary": short_form(recipe.config), "config": recipe.config.to_dict()},
        "backend": {"name": backend, "reason": reason},
        "layers": [
            {"layer": layer} | _row(rule, native_window(kind, own), kind, release)
            for layer, (rule, (kind, own)) in enumerate(zip(rules, layer_kinds(config), strict=True))
        ],
        "length": length,
        "kv_bytes": kv,
        "kv_bytes_held": _saving(held, kept, held / kept if held is not None and kept else None),
        "prefill_flops": flops,
        "verdict": _verdict(rules, length, kv["ratio"], flops["attention"]["ratio"]),
    }


def without_weights(config: Any) -> Any:
    """Build a model on the meta device: its parameters have shapes only."""
    text = config.get_text_config()
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config)
        )


def _check(config: Any, adaptation: SWAAConfig) -> tuple[int, int, Weights]:
    """Put the adaptation on a model without weights, and return its sizes: all, what a token meets, and multiplies."""
    model = without_weights(config)
    if adaptation != SWAAConfig():
        adapt(model, adaptation)
    return sum(parameter.numel() for parameter in model.parameters()), active_parameters(model), active_weights(model)


def _saving(recipe: float | None, full: float | None, ratio: float | None) -> dict[str, float | None]:
    return {"recipe": recipe, "full": full, "ratio": ratio}


def _row(rule: LayerRule | None, window: int | None, kind: str, release: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"attention": "full"} | vars(LayerRule()) | {"full_heads": []}
    if rule is None:
        return row | {"attention": f"native ({kind})", "window": window, "kv": "released" if window else "native"}
    if rule.window is None:
        return row | {"kv": "kept"}
    row |= {"attention": "sliding", **vars(rule), "full_heads": list(rule.full_heads)}
    if not release or rule.fa_decode:
        return row | {"kv": "kept"}
    return row | {"kv": "released but for full heads" if rule.full_heads else "released"}


def _verdict(rules: Sequence[LayerRule | None], length: int, kv: float | None, attention: float | None) -> str:
    sliding = [rule for rule in rules if rule is not None and rule.window is not None]
    free = sum(not rule.fa_decode for rule in sliding)
    if not sliding:
        return "Full attention on every layer that could slide: nothing is saved."
    if attention is None:
        return "What this saves is not known: the heads of this family are not all alike, or no plain ones."
    if attention == 1:
        return f"Nothing is saved at {length} tokens: every row sees its whole past anyway. Try a longer --length."
    if kv is None:
        return "Saves prefill time; what this family keeps in memory is not known here."
    if kv < 1:
        apart = sum(bool(rule.full_heads) and not rule.fa_decode for rule in sliding)
        note = f" ({apart} of them in their sliding heads only)" if apart else ""
        return f"Saves prefill time and memory: {free} of {len(rules)} layers forget what no later row can see{note}."
    if free == 0:
        return "Saves prefill time, not memory: with FA decode, generated tokens see everything, so all KV is kept."
    return f"Saves prefill time, not memory: layers without FA decode ({free}) could release KV, but keep it."
