"""What vLLM has no official hook for: three of its functions are wrapped, once a process.

* `Attention.get_kv_cache_spec`: which layers release blocks, and that no rule meets a backend that would ignore it.
* `Scheduler.__init__`: the checks, the line in the log, and what the hash of a block depends on.
* `generate_block_hash_extra_keys`: blocks are shared among requests only where their rows saw the same.
"""

import functools
from typing import Any

from swaa.config import ConfigError
from swaa.vllm.rules import adaptation, layer_rules, releases, rule_of

# The longest dense tail of the engines in this process; None while no layer looks at the phase of a row.
_tail: int | None = None


def install() -> None:
    """Wrap vLLM's functions; does nothing the second time."""
    from vllm.model_executor.layers.attention import Attention
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.core.sched.scheduler import Scheduler

    from swaa.vllm.cache import register_spec

    if hasattr(Attention.get_kv_cache_spec, "__wrapped__"):
        return
    register_spec()
    Attention.get_kv_cache_spec = _wrap_spec(Attention.get_kv_cache_spec)
    Scheduler.__init__ = _wrap_scheduler(Scheduler.__init__)
    wrapped = _wrap_extra_keys(kv_cache_utils.generate_block_hash_extra_keys)
    for module in (kv_cache_utils, block_pool):
        module.generate_block_hash_extra_keys = wrapped


def _wrap_spec(original: Any) -> Any:
    @functools.wraps(original)
    def get_kv_cache_spec(self: Any, vllm_config: Any) -> Any:
        spec = original(self, vllm_config)
        rule = None if spec is None else rule_of(vllm_config, self.layer_name)
        if rule is None:
            return spec
        if not getattr(self.impl, "follows_swaa", False):
            name = self.attn_backend.get_name()
            raise ConfigError(
                f"attention backend {name} would ignore the adaptation of {self.layer_name}: start vLLM with "
                "--attention-backend FLASH_ATTN or TRITON_ATTN, or take swaa out of the model's configuration"
            )
        from swaa.vllm.cache import sink_window_spec

        return sink_window_spec(spec, rule) if releases(vllm_config, rule) else spec

    return get_kv_cache_spec


def _wrap_scheduler(original: Any) -> Any:
    @functools.wraps(original)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        global _tail
        rules = layer_rules(vllm_config)
        phased = [rule.dense_tail for rule in rules.values() if rule.fa_decode or rule.dense_tail]
        if phased:
            # Never smaller than for another engine in this process: at worst a few blocks are not shared.
            _tail = max(_tail or 0, *phased)
        original(self, vllm_config, *args, **kwargs)
        if rules:
            _log(vllm_config)

    return init


def _log(vllm_config: Any) -> None:
    from vllm.logger import init_logger

    config, rules = adaptation(vllm_config), layer_rules(vllm_config)
    assert config is not None
    released = sum(releases(vllm_config, rule) for rule in rules.values())
    count = vllm_config.model_config.hf_text_config.num_hidden_layers
    # vLLM shows the lines of loggers below its own.
    init_logger("vllm.swaa").info(
        "SWAA: %d of %d layers slide (window %s, %d sinks, dense tail %d, FA decode %s); %d release blocks",
        len(rules),
        count,
        config.window,
        config.sinks,
        config.dense_tail,
        config.fa_decode,
        released,
    )


def _wrap_extra_keys(original: Any) -> Any:
    @functools.wraps(original)
    def generate_block_hash_extra_keys(request: Any, start: int, end: int, start_mm_idx: int) -> Any:
        keys, next_mm_idx = original(request, start, end, start_mm_idx)
        prompt = request.num_prompt_tokens
        if _tail is not None and end > prompt - _tail:
            # Rows in here are generated or in the tail: the same tokens after another prompt have other keys. The
            # hash of a block goes into that of the next, so this holds for all that follow.
            keys = (*(keys or ()), ("swaa", prompt))
        return keys, next_mm_idx

    return generate_block_hash_extra_keys
