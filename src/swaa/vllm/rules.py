"""The adaptation of a vLLM engine: read from the model's configuration, resolved, and checked against the engine's."""

from collections.abc import Mapping
from typing import Any

from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import reusing_layers

# Speculative methods whose drafts come without layers of their own.
_DRAFTS_WITHOUT_LAYERS = ("ngram", "ngram_gpu", "suffix")


def adaptation(vllm_config: Any) -> SWAAConfig | None:
    """Return the adaptation in the model's configuration, None if there is none (or only full attention).

    It is the key `swaa` of `config.json` or of `--hf-overrides`: a configuration, or the name or file of a recipe.

    Raises:
        ConfigError: it is neither, or a value is wrong.
    """
    model = vllm_config.model_config
    if model is None:
        return None
    stored = getattr(model.hf_config, "swaa", None) or getattr(model.hf_text_config, "swaa", None)
    if stored is None:
        return None
    if isinstance(stored, str):
        from swaa.recipes import load_recipe

        config = load_recipe(stored).config
    elif isinstance(stored, Mapping):
        config = SWAAConfig.from_dict(stored)
    else:
        raise ConfigError(f"swaa={stored!r} in the model's configuration: give a recipe's name or a mapping of fields")
    return None if config.window is None else config


def layer_rules(vllm_config: Any) -> dict[int, LayerRule]:
    """Return the rules of the layers that slide, by layer number.

    Raises:
        ConfigError: the adaptation does not fit the model, or this engine cannot do what it says.
    """
    config = adaptation(vllm_config)
    if config is None:
        return {}
    known: dict[SWAAConfig, dict[int, LayerRule]] = vars(vllm_config).setdefault("_swaa_rules", {})
    if config not in known:
        from swaa.adapting import plan_layers

        check(vllm_config, config)
        rules = plan_layers(vllm_config.model_config.hf_text_config, config)
        known[config] = {i: rule for i, rule in enumerate(rules) if rule is not None and rule.window is not None}
    return known[config]


def rule_of(vllm_config: Any, layer_name: str) -> LayerRule | None:
    """Return the rule of an attention layer by vLLM's name for it, None where it is not ours or plain causal."""
    rules = layer_rules(vllm_config)
    if not rules:
        return None
    from vllm.model_executor.models.utils import extract_layer_index

    return rules.get(extract_layer_index(layer_name))


def releases(vllm_config: Any, rule: LayerRule) -> bool:
    """Tell whether a layer releases blocks. A dense tail needs the whole prompt, so such a layer keeps everything.

    So do all layers where vLLM keeps one kind of cache only (`--disable-hybrid-kv-cache-manager`).
    """
    config = adaptation(vllm_config)
    if config is None or not config.release_kv or vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        return False
    return rule.window is not None and not rule.fa_decode and not rule.dense_tail


def check(vllm_config: Any, config: SWAAConfig) -> None:
    """Refuse what would be ignored or come out wrong.

    Raises:
        ConfigError: the message names the setting and the way out.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if config.full_heads:
        raise ConfigError("full_heads: vLLM attends with all heads of a layer alike; name whole layers in full_layers")
    if model.use_mla:
        raise ConfigError("this model's layers use multi-head latent attention (MLA), which SWAA does not cover")
    if model.runner_type != "generate":
        raise ConfigError(f"SWAA is for text generation, not for --runner {model.runner_type}: take swaa out")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise ConfigError(f"--{name.replace('_', '-')} divides a row's keys: use --tensor-parallel-size instead")
    draft = vllm_config.speculative_config
    if draft is not None and draft.method not in _DRAFTS_WITHOUT_LAYERS:
        raise ConfigError(
            f"speculative method {draft.method!r} brings layers of its own, which no rule covers: use one of "
            f"{', '.join(_DRAFTS_WITHOUT_LAYERS)}"
        )
    if config.release_kv and config.fa_decode is not True:
        if vllm_config.kv_transfer_config is not None:
            raise ConfigError("a KV connector moves all blocks of a request: set release_kv to false in the adaptation")
        if any(reusing_layers(model.hf_text_config)):
            raise ConfigError("layers of this model use the keys of earlier ones: set release_kv to false")
