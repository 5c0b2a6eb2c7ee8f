"""The cost model: pairs against the oracle, KV bytes against real caches, arithmetic against published numbers."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from families import FAMILIES, TINY, tiny_model
from swaa.adapting import plan_layers
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import (
    Weights,
    active_parameters,
    active_weights,
    attention_heads,
    kept_tokens,
    kv_bytes,
    prefill_flops,
    relative_cost,
    visible_pairs,
)
from swaa.geometry import Geometry
from swaa.mask import oracle_head_masks, oracle_mask

RULES = [LayerRule()] + [
    LayerRule(window, sinks, fa_decode, tail)
    for window, sinks, fa_decode, tail in product([1, 2, 6, 40], [0, 1, 9], [False, True], [0, 1, 5, 40])
]
FULL = SWAAConfig()
NOTHING = Weights(0, 0)


def tiny_config(family="llama", **changes):
    return AutoConfig.for_model(family, **(TINY | FAMILIES.get(family, {}) | changes))


@pytest.mark.parametrize("prompt", [0, 1, 7, 23])
@pytest.mark.parametrize("new", [0, 1, 8])
def test_visible_pairs(prompt, new):
    for rule in RULES:
        geometry = Geometry(batch=1, past=0, rows=prompt + new, prompt_end=prompt)
        assert visible_pairs(rule, prompt, new) == int(oracle_mask(geometry, rule).sum()), rule


@pytest.mark.parametrize("heads", [(0,), (1, 2), (0, 2)])
def test_full_heads(heads):
    for rule in (replace(rule, full_heads=heads) for rule in RULES if rule.window is not None):
        geometry = Geometry(batch=1, past=0, rows=31, prompt_end=23)
        pairs = int(oracle_head_masks(geometry, rule, 3).sum())
        assert visible_pairs(rule, 23, 8, kv_heads=3) == pairs, rule
        geometry = Geometry(batch=1, past=23, rows=60, prompt_end=23)
        needed = int(oracle_head_masks(geometry, rule, 3)[0, :, :, :23].any(1).sum())
        assert kept_tokens(rule, 23, release_kv=True, kv_heads=3) == needed, rule
        assert kept_tokens(rule, 23, release_kv=False, kv_heads=3) == 3 * 23, rule
        with pytest.raises(ConfigError, match="KV heads"):
            visible_pairs(rule, 23)


def test_arithmetic_of_full_heads():
    config = tiny_config(num_attention_heads=8, num_key_value_heads=4)
    rules = plan_layers(config, SWAAConfig(window=6, full_layers=[1, 2, 3], full_heads={0: [1, 2, 3]}))
    full, sliding = 40 * 41 // 2, sum(min(row + 1, 6) for row in range(40))
    # Two query heads a KV head, head dim 8.
    assert prefill_flops(config, rules, 40, NOTHING) == (0, 4 * 8 * 2 * (15 * full + sliding))


@pytest.mark.parametrize("length", [1, 2, 5, 14, 23])
def test_kept_tokens(length):
    for rule in RULES:
        geometry = Geometry(batch=1, past=length, rows=60, prompt_end=length)
        needed = int(oracle_mask(geometry, rule)[0, :, :length].any(0).sum())
        assert kept_tokens(rule, length, release_kv=True) == needed, rule
        assert kept_tokens(rule, length, release_kv=False) == length, rule


@pytest.mark.parametrize("family", FAMILIES)
def test_kv_bytes_of_a_real_cache(family):
    model = tiny_model(family)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.randint(3, 101, (1, 40)), past_key_values=cache)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    rules = plan_layers(model.config, SWAAConfig(window=6))
    assert kv_bytes(model.config, rules, 40, dtype_bytes=4, release_kv=False) == held


def test_kv_bytes_with_release():
    config = tiny_config()
    rules = plan_layers(config, SWAAConfig(window=6, sinks=3, full_layers=[0], fa_decode=[1]))
    a_token = 2 * 2 * 8 * 2
    assert kv_bytes(config, rules, 100, release_kv=True) == a_token * (100 + 100 + 8 + 8)
    assert kv_bytes(config, rules, 5, release_kv=True) == a_token * 4 * 5
    assert kv_bytes(config, rules, 100, release_kv=False) == a_token * 4 * 100


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, 2 * 4 * 8),
        ({"head_dim": None}, 2 * 2 * 32 // 4),
        ({"head_dim": 16}, 2 * 2 * 16),
        ({"kv_lora_rank": 16}, None),
    ],
)
def test_head_sizes(changes, expected):
    config = tiny_config()
    for name, value in changes.items():
        setattr(config, name, value)
    got = kv_bytes(config, plan_layers(config, FULL), 10, release_kv=False)
    assert got == (None if expected is None else 4 * 2 * 10 * expected)
    attention = prefill_flops(config, plan_layers(config, FULL), 10, NOTHING)[1]
    assert (attention is None) == (expected is None)


def test_head_sizes_that_are_absent():
    config = AutoConfig.for_model("gpt2", n_layer=3, n_head=4, n_embd=32)
    assert kv_bytes(config, plan_layers(config, FULL), 10, release_kv=False) == 3 * 2 * 32 * 2 * 10


def test_composite_configuration():
    text = tiny_config("gemma3_text")
    composite = AutoConfig.for_model("gemma3", text_config=text.to_dict())
    rules = plan_layers(text, FULL)
    assert kv_bytes(composite, rules, 40, release_kv=False) == kv_bytes(text, rules, 40, release_kv=False) > 0
    assert prefill_flops(composite, rules, 40, Weights(7, 3)) == prefill_flops(text, rules, 40, Weights(7, 3))


def test_layers_that_differ_and_share():
    """Gemma 4: full layers have larger heads, and the last layers use the cache of earlier ones."""
    config = tiny_config(
        "gemma4_text",
        layer_types=["sliding_attention", "full_attention"] * 2,
        sliding_window=16,
        global_head_dim=24,
        num_kv_shared_layers=2,
    )
    rules = plan_layers(config, FULL)
    assert kv_bytes(config, rules, 40, release_kv=False) == 2 * 2 * 2 * (8 * 15 + 24 * 40)
    windowed = sum(min(row + 1, 16) for row in range(40))
    assert prefill_flops(config, rules, 40, NOTHING) == (0, 2 * 4 * 4 * (8 * windowed + 24 * 40 * 41 / 2))


def test_linear_attention_has_no_kv_and_no_pairs():
    config = tiny_config("qwen3_next", layer_types=["linear_attention", "full_attention"] * 2, **{"num_experts": 4})
    rules = plan_layers(config, FULL)
    assert rules[0] is None
    assert kv_bytes(config, rules, 40, release_kv=False) is None
    assert prefill_flops(config, rules, 40, Weights(7, 0)) == (2 * 7 * 40, 2 * 4 * 4 * 8 * 40 * 41 / 2)


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        ({"sliding_window": 16}, [min(row + 1, 16) for row in range(40)]),
        ({"attention_chunk_size": 16, "sliding_window": None}, [row % 16 + 1 for row in range(40)]),
    ],
)
def test_native_windows(changes, pairs):
    config = tiny_config(**changes)
    kind = "chunked_attention" if "attention_chunk_size" in changes else "sliding_attention"
    config.layer_types = ["full_attention", kind] * 2
    expected = 2 * 4 * 4 * 8 * (sum(pairs) + 40 * 41 / 2)
    assert prefill_flops(config, plan_layers(config, FULL), 40, NOTHING) == (0, expected)
    assert kv_bytes(config, plan_layers(config, FULL), 40, release_kv=False) == 2 * 2 * 8 * 2 * 2 * (40 + 15)


def test_published_arithmetic():
    """Qwen3-4B, 131,072 tokens: seconds of matrix products, TFLOP/s of a measured layer."""
    config = AutoConfig.for_model(
        "qwen3", num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_size=2560
    )
    rules = plan_layers(config, SWAAConfig(window=2048, sinks=128))
    linear, attention = prefill_flops(config, rules, 131072, Weights(3_633_511_936, 388_956_160))
    assert linear / 773e12 == pytest.approx(1.23, rel=0.01)
    assert attention / 36 / 0.0084 == pytest.approx(551e12, rel=0.01)
    assert kv_bytes(config, rules, 1, release_kv=True) == pytest.approx(147_000, rel=0.01)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "mixtral", "gpt_oss"])
def test_active_parameters(family):
    with torch.device("meta"):
        model = tiny_model(family)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert (experts > 0) == (family != "llama")
    assert active_parameters(model) == sum(sizes.values()) - experts // 2


@pytest.mark.parametrize("family", ["aria_text", "jetmoe"])
def test_experts_by_other_names(family):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, num_hidden_layers=2))
    experts = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert active_parameters(model) == pytest.approx(whole - experts * 6 / 8, rel=1e-3)  # the router stands beside them


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gpt_oss"])
def test_the_linear_part_is_what_torch_counts(family, tied):
    model = tiny_model(family, attn_implementation="eager", tie_word_embeddings=tied)
    if family in ("qwen3_moe", "gpt_oss"):
        model.set_experts_implementation("eager")
    config, length = model.config, 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(length)[None] + 3, logits_to_keep=1)
    heads, _, dim = attention_heads(config)
    # Eager attention multiplies all pairs.
    attention = 4 * heads * dim * length**2 * config.num_hidden_layers
    linear, _ = prefill_flops(config, plan_layers(config, FULL), length, active_weights(model))
    assert counter.get_total_flops() - attention == pytest.approx(linear, rel=0.05)  # norms and biases are no products


def test_relative_cost():
    config = tiny_model().config
    rules = SWAAConfig(window=8, sinks=2, full_layers=[1]).resolve(4)
    cost = relative_cost(config, rules, 100, NOTHING, release_kv=True)
    assert cost.kv == (100 + 3 * 9) / 400
    pairs = 10 * 11 / 2 + 90 * 10
    assert cost.flops == cost.attention == (5050 + 3 * pairs) / (4 * 5050)
    heavy = Weights(10**9, 0)
    assert relative_cost(config, rules, 100, heavy, release_kv=False)[0::2] == pytest.approx((1, 1), abs=1e-4)
    assert relative_cost(config, SWAAConfig().resolve(4), 100, Weights(7, 3), release_kv=True) == (1, 1, 1)
    # Latent attention: no sizes that this model knows, so no fraction.
    assert relative_cost(tiny_config(v_head_dim=4), rules, 100, Weights(7, 3), release_kv=True) == (None, None, None)
