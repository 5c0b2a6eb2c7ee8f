"""Adapting, restoring, saving and loading: models of every kind stay whole, and every refusal says why."""

import subprocess
import sys
import threading

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    QuantoConfig,
    T5Config,
    T5ForConditionalGeneration,
)

import swaa
from families import HALF_NATIVE, TINY, tiny_model
from swaa.adapting import plan_layers

pytestmark = pytest.mark.usefixtures("no_gradients")
CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers=[1], fa_decode=True, dense_tail=2)
OTHER = swaa.SWAAConfig(window=3)
IDS = torch.randint(3, 101, (1, 50), generator=torch.Generator().manual_seed(0))


def logits(model):
    return model(input_ids=IDS).logits


@pytest.fixture
def adapted_logits():
    return logits(swaa.adapt(tiny_model(), CONFIG))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_restore_gives_back_the_original(family):
    model = tiny_model(family)
    before, config, keys = logits(model), model.config.to_dict(), set(vars(model))
    implementation = model.config._attn_implementation
    swaa.adapt(model, CONFIG)
    assert not torch.equal(logits(model), before)
    assert swaa.restore(model) is model
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == implementation
    assert set(vars(model)) == keys
    assert not model.get_decoder()._forward_pre_hooks
    assert not model.get_decoder()._forward_hooks
    assert swaa.restore(model) is model  # nothing to do is no error


def test_adapting_again_replaces(adapted_logits):
    model = swaa.adapt(swaa.adapt(tiny_model(), OTHER), CONFIG)
    assert torch.equal(logits(model), adapted_logits)
    assert swaa.adaptation(model).config == CONFIG
    assert torch.equal(logits(swaa.restore(model)), logits(tiny_model()))


def test_a_wrong_configuration_leaves_the_adaptation_in_place(adapted_logits):
    model = swaa.adapt(tiny_model(), CONFIG)
    with pytest.raises(swaa.ConfigError, match="0 to 3"):
        swaa.adapt(model, CONFIG.replace(full_layers=[9]))
    with pytest.raises(ValueError, match="unknown backend"):
        swaa.adapt(model, CONFIG.replace(backend="sdpaa"))
    assert torch.equal(logits(model), adapted_logits)


def test_window_none_is_full_attention():
    torch.testing.assert_close(logits(swaa.adapt(tiny_model(), swaa.SWAAConfig())), logits(tiny_model()))


def test_the_decoder_alone_can_be_adapted():
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model("llama", **TINY)).eval()
    before = model(IDS).last_hidden_state
    swaa.adapt(model, CONFIG)
    assert not torch.allclose(model(IDS).last_hidden_state, before)
    assert torch.equal(swaa.restore(model)(IDS).last_hidden_state, before)


@pytest.mark.parametrize(
    ("adapted", "restored"),
    [("model", "decoder"), ("decoder", "model"), ("model decoder", "model"), ("decoder model", "model")],
)
def test_a_decoder_and_the_model_around_it_have_one_adaptation(adapted, restored):
    model = tiny_model()
    before, tokens = logits(model), model.generate(IDS, max_new_tokens=5, do_sample=False)
    expected = logits(swaa.adapt(tiny_model(), CONFIG))
    parts = {"model": model, "decoder": model.model}
    for name in adapted.split():
        swaa.adapt(parts[name], CONFIG)
        assert torch.equal(logits(model), expected)
    swaa.restore(parts[restored])
    assert torch.equal(logits(model), before)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), tokens)
    assert not hasattr(model.config, "swaa")


def test_threads_generate_with_their_own_prompts():
    model = swaa.adapt(tiny_model(), CONFIG)
    prompts = [IDS[:, :length] for length in (50, 20, 35)]
    expected = [model.generate(ids, max_new_tokens=8, do_sample=False) for ids in prompts]
    results = [None] * 3

    def run(index):
        results[index] = model.generate(prompts[index], max_new_tokens=8, do_sample=False)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


def test_save_pretrained_keeps_the_adaptation(tmp_path, adapted_logits):
    swaa.adapt(tiny_model(), CONFIG).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(plain), logits(tiny_model()))
    loaded = swaa.load(tmp_path)
    assert swaa.adaptation(loaded).config == CONFIG
    assert torch.equal(logits(loaded), adapted_logits)
    assert swaa.adaptation(swaa.load(tmp_path, OTHER)).config == OTHER
    swaa.restore(loaded).save_pretrained(tmp_path / "restored")
    with pytest.raises(swaa.ConfigError, match="stores no adaptation"):
        swaa.load(tmp_path / "restored")
    with pytest.raises(swaa.ConfigError, match=r"call swaa\.adapt first"):
        swaa.save(loaded, tmp_path / "other")


def peft_model():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(tiny_model(), settings).eval()


def test_peft_models(tmp_path):
    model = peft_model()
    before = logits(model)
    assert swaa.adapt(model, CONFIG) is model
    adapted = logits(model)
    assert not torch.allclose(adapted, before)
    generated = model.generate(input_ids=IDS, max_new_tokens=8, do_sample=False)
    merged = peft_model().merge_and_unload()
    expected = swaa.adapt(merged, CONFIG).generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated, expected)
    tiny_model().save_pretrained(tmp_path / "base")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    swaa.save(model, tmp_path / "adapter")
    loaded = swaa.load(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), adapted)
    assert torch.equal(logits(swaa.restore(model)), before)


def test_quantised_weights(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=QuantoConfig(weights="int8")).eval()
    before = logits(model)
    swaa.adapt(model, CONFIG)
    assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(swaa.restore(model)), before)


def test_a_model_spread_by_accelerate(tmp_path, adapted_logits):
    """Half of the layers on disk: every module runs behind accelerate's own hooks."""
    tiny_model().save_pretrained(tmp_path / "model")
    names = [
        "model.embed_tokens",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
        *(f"model.layers.{i}" for i in range(4)),
    ]
    device_map = {name: "disk" if name[-1] in "23" else "cpu" for name in names}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    swaa.adapt(model, CONFIG)
    torch.testing.assert_close(logits(model), adapted_logits)
    expected = swaa.adapt(tiny_model(), CONFIG).generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(model.generate(IDS, max_new_tokens=5, do_sample=False), expected)
    assert torch.equal(logits(swaa.restore(model)), logits(tiny_model()))


def test_tied_weights_stay_tied():
    model = swaa.adapt(tiny_model(tie_word_embeddings=True), CONFIG)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_layers_with_a_native_window_are_left_alone():
    model = tiny_model("gemma3_text")
    rules = plan_layers(model.config, swaa.SWAAConfig(window=4, full_layers="1/4@3"))
    assert [rule is None for rule in rules] == [kind == "sliding_attention" for kind in HALF_NATIVE]
    assert rules[1].window == 4
    assert rules[3].window is None
    with pytest.raises(swaa.ConfigError, match=r"layers \[0\] of this model are sliding_attention"):
        swaa.adapt(model, swaa.SWAAConfig(window=4, fa_decode=[0, 1]))


def test_models_that_cannot_be_adapted():
    with pytest.raises(swaa.AdaptError, match="nothing to adapt"):
        swaa.adapt(tiny_model("mistral", sliding_window=16), CONFIG)
    with pytest.raises(swaa.AdaptError, match="Linear is no transformers model"):
        swaa.adapt(torch.nn.Linear(2, 2), CONFIG)
    t5 = T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10))
    with pytest.raises(swaa.AdaptError, match="encoder-decoder"):
        swaa.adapt(t5, CONFIG)
    bloom = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bloom", hidden_size=8, n_layer=1, n_head=2, vocab_size=9)
    )
    with pytest.raises(swaa.AdaptError, match="does not dispatch its attention"):
        swaa.adapt(bloom, CONFIG)


def test_prompt_learning_adapters_are_refused():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(swaa.AdaptError, match="prompt-learning"):
        swaa.adapt(model, CONFIG)


def test_wrong_calls_are_refused():
    model = swaa.adapt(tiny_model(), CONFIG)
    flags = torch.ones(1, 50, dtype=torch.bool)
    with pytest.raises(ValueError, match="not both"):
        model(IDS, dense_rows=flags, prompt_length=3)
    with pytest.raises(ValueError, match="2-D attention_mask"):
        model(IDS, attention_mask=torch.ones(1, 1, 50, 50))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(IDS, attention_mask=torch.ones(1, 20))
    with pytest.raises(ValueError, match="token_healing"):
        model.generate(IDS, token_healing=True)
    with pytest.raises(swaa.AdaptError, match="not a layer by itself"):
        model.model.layers[0](torch.randn(1, 5, 32), position_embeddings=(torch.ones(1, 5, 8), torch.zeros(1, 5, 8)))
    with pytest.raises(ValueError, match="no layer of this configuration has it"):
        swaa.adapt(model, OTHER)(IDS, dense_rows=flags)
    swaa.adapt(model, CONFIG)
    cache = model(IDS, dense_rows=flags, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"dense_rows with a cache.*pass prompt_length"):
        model(IDS, dense_rows=flags, past_key_values=cache)
    with pytest.raises(ValueError, match=r"guidance_scale without a cache.*leave out use_cache=False"):
        model.generate(IDS, guidance_scale=1.5, use_cache=False, max_new_tokens=2)


def test_a_cache_of_another_model_needs_its_prompt_length():
    cache = DynamicCache()
    plain = tiny_model()
    plain(IDS[:, :20], past_key_values=cache, use_cache=True)
    model = swaa.adapt(plain, CONFIG)
    with pytest.raises(ValueError, match="pass prompt_length"):
        model(IDS[:, 20:], past_key_values=cache, use_cache=True)
    output = model(IDS[:, 20:], past_key_values=cache, use_cache=True, prompt_length=45)
    assert output.logits.shape[1] == 30


def test_import_is_light_and_patches_nothing():
    code = "import sys, swaa; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; swaa.SWAAConfig"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        _ = swaa.adopt
    assert set(swaa.__all__) <= set(dir(swaa)) | set(swaa._EXPORTS)


def test_another_attention_does_not_switch_the_adaptation_off_silently(adapted_logits):
    model = swaa.adapt(tiny_model(), CONFIG)
    model.set_attn_implementation("sdpa")
    with pytest.raises(swaa.AdaptError, match=r"set to 'sdpa'.*call swaa.adapt again"):
        model(IDS)
    assert torch.equal(swaa.adapt(model, CONFIG)(IDS).logits, adapted_logits)


MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA4 = {"global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "sliding_window": 16}
GEMMA4 |= {"vocab_size_per_layer_input": 101, "layer_types": ["sliding_attention", "full_attention"] * 2}


@pytest.mark.parametrize(("family", "changes"), [("gemma4_text", GEMMA4), ("minimax", MOE), ("afmoe", MOE)])
def test_families_with_head_sizes_caches_or_layouts_of_their_own(family, changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(TINY | changes))).eval()
    before, results = logits(model), []
    for backend in ("eager", "sdpa"):
        swaa.adapt(model, swaa.SWAAConfig(window=7, sinks=3, backend=backend))
        results.append(logits(model))
        assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape[1] <= 53
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(results[0], before)
    assert torch.equal(logits(swaa.restore(model)), before)
