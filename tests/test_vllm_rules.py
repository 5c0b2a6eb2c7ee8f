"""The adaptation of a vLLM engine, without vLLM: where it is read, and what is refused."""

from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from families import FAMILIES, TINY
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.recipes import load_recipe
from swaa.vllm.rules import adaptation, layer_rules, releases


def engine(swaa=None, family="llama", **changes):
    """What the plugin reads of vLLM's configuration."""
    config = AutoConfig.for_model(family, **(TINY | FAMILIES.get(family, {})))
    if swaa is not None:
        config.swaa = swaa
    model = {"hf_config": config, "hf_text_config": config, "use_mla": False, "runner_type": "generate"}
    model |= {name: changes.pop(name) for name in list(changes) if name in model}
    parts = {"speculative_config": None, "kv_transfer_config": None, "parallel_config": SimpleNamespace(**changes)}
    parts["scheduler_config"] = SimpleNamespace(disable_hybrid_kv_cache_manager=changes.pop("one_kind", False))
    parts |= {name: changes[name] for name in list(changes) if name in parts}
    return SimpleNamespace(model_config=SimpleNamespace(**model), **parts)


CONFIG = SWAAConfig(window=8, sinks=2, full_layers=[1], fa_decode=[0])


def test_rules_by_layer():
    vllm_config = engine(CONFIG.to_dict())
    found = layer_rules(vllm_config)
    assert found == {0: LayerRule(8, 2, True), 2: LayerRule(8, 2), 3: LayerRule(8, 2)}
    assert [releases(vllm_config, rule) for rule in found.values()] == [False, True, True]
    assert not releases(vllm_config, LayerRule(8, 2, dense_tail=1))
    assert not releases(engine(CONFIG.replace(release_kv=False).to_dict()), found[2])
    assert not releases(engine(CONFIG.to_dict(), one_kind=True), found[2])


def test_native_windows_stay():
    assert layer_rules(engine({"window": 8}, "gemma2")).keys() == {1, 3}


@pytest.mark.parametrize("stored", [None, SWAAConfig().to_dict(), "full"])
def test_without_an_adaptation(stored):
    assert adaptation(engine(stored)) is None
    assert layer_rules(engine(stored)) == {}


def test_a_recipe_by_its_name():
    assert adaptation(engine("sinks-odd")) == load_recipe("sinks-odd").config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swaa": 3}, "recipe's name or a mapping"),
        ({"swaa": {"windw": 3}}, "windw"),
        ({"swaa": "sinkz"}, "sinkz"),
        ({"swaa": CONFIG.replace(full_heads={0: [1]}).to_dict()}, "full_layers"),
        ({"swaa": CONFIG.replace(full_layers=[9]).to_dict()}, "0 to 3"),
        ({"use_mla": True}, "MLA"),
        ({"runner_type": "pooling"}, "text generation"),
        ({"decode_context_parallel_size": 2}, "--decode-context-parallel-size"),
        ({"prefill_context_parallel_size": 2}, "--tensor-parallel-size"),
        ({"speculative_config": SimpleNamespace(method="eagle")}, "ngram"),
        ({"kv_transfer_config": object()}, "release_kv"),
    ],
)
def test_refusals_name_the_way_out(changes, message):
    with pytest.raises(ConfigError, match=message):
        layer_rules(engine(**{"swaa": CONFIG.to_dict(), **changes}))


def test_what_is_not_refused():
    assert layer_rules(engine(CONFIG.to_dict(), speculative_config=SimpleNamespace(method="ngram")))
    kept = CONFIG.replace(release_kv=False).to_dict()
    assert layer_rules(engine(kept, kv_transfer_config=object(), decode_context_parallel_size=1))
