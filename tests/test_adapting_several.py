"""Several models at once, of one configuration object too: none learns of the adaptation of another."""

import copy
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration

import swaa
from families import HALF_NATIVE, TINY, tiny_model

pytestmark = pytest.mark.usefixtures("no_gradients")
CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers=[1], fa_decode=True, dense_tail=2)
OTHER = swaa.SWAAConfig(window=3)
IDS = torch.randint(3, 101, (1, 50), generator=torch.Generator().manual_seed(0))


def logits(model):
    return model(input_ids=IDS).logits


def test_two_models_do_not_disturb_each_other():
    expected = logits(swaa.adapt(tiny_model(), CONFIG))
    one, two, plain = swaa.adapt(tiny_model(), CONFIG), swaa.adapt(tiny_model(), OTHER), tiny_model()
    other = logits(two)
    assert torch.equal(logits(one), expected)
    swaa.restore(one)
    assert torch.equal(logits(two), other)
    assert torch.equal(logits(one), logits(plain))


def test_a_deep_copy_is_a_model_of_its_own():
    expected = logits(swaa.adapt(tiny_model(), CONFIG))
    model = swaa.adapt(tiny_model(), CONFIG)
    other = copy.deepcopy(model)
    swaa.restore(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(logits(other), expected)
    expected = swaa.adapt(tiny_model(), CONFIG).generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(other.generate(IDS, max_new_tokens=5, do_sample=False), expected)


def of_one_configuration(family):
    one = tiny_model(family)
    two = type(one)(one.config).eval()
    two.load_state_dict(tiny_model(family, seed=1).state_dict())
    return one, two


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("order", ["adapt 0, adapt 1, restore 0, restore 1", "adapt 1, adapt 0, restore 0, restore 1"])
def test_models_of_one_configuration_are_adapted_by_themselves(family, order):
    configs, models = (CONFIG, OTHER), of_one_configuration(family)
    assert models[0].config is models[1].config
    plain = [logits(tiny_model(family, seed=seed)) for seed in (0, 1)]
    adapted = [logits(swaa.adapt(tiny_model(family, seed=seed), configs[seed])) for seed in (0, 1)]
    expected = list(plain)
    for step in order.split(", "):
        index = int(step[-1])
        if step.startswith("adapt"):
            swaa.adapt(models[index], configs[index])
            expected[index] = adapted[index]
        else:
            swaa.restore(models[index])
            expected[index] = plain[index]
        assert all(map(torch.equal, map(logits, models), expected)), step


def test_a_configuration_within_another_is_shared_too():
    text = TINY | {"layer_types": HALF_NATIVE, "sliding_window": 16, "query_pre_attn_scalar": 8}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    one, two = (Gemma3ForConditionalGeneration(config).eval() for _ in range(2))
    before = logits(two)
    swaa.adapt(one, CONFIG)
    assert one.config.text_config is one.get_decoder().config
    assert torch.equal(logits(two), before)


@pytest.mark.parametrize("native", ["sdpa", "eager"])
def test_a_model_built_from_the_configuration_of_an_adapted_one(native):
    one = swaa.adapt(tiny_model(attn_implementation=native), CONFIG)
    two = AutoModelForCausalLM.from_config(one.config).eval()
    with pytest.raises(swaa.AdaptError, match="has to be adapted too"):
        logits(two)
    two.load_state_dict(one.state_dict())
    expected = logits(one)
    assert torch.equal(logits(swaa.adapt(two, CONFIG)), expected)
    plain = logits(tiny_model(attn_implementation=native))
    assert torch.equal(logits(swaa.restore(two)), plain)
    assert torch.equal(logits(one), expected)
    assert torch.equal(logits(swaa.restore(one)), plain)


PICKLED = """
import sys, torch
model = torch.load(sys.argv[1], weights_only=False)
ids = torch.load(sys.argv[2])
tokens = [model.generate(ids, max_new_tokens=5, do_sample=False, **x) for x in ({}, {"prefill_chunk_size": 16})]
torch.save([model(ids).logits, *tokens], sys.argv[3])
"""


def test_a_pickled_model_stays_adapted_in_another_process(tmp_path):
    model = swaa.adapt(tiny_model(), CONFIG)
    paths = [str(tmp_path / name) for name in ("model.pt", "ids.pt", "found.pt")]
    torch.save(model, paths[0])
    torch.save(IDS, paths[1])
    subprocess.run([sys.executable, "-c", PICKLED, *paths], check=True)
    found, tokens = torch.load(paths[2])[0], torch.load(paths[2])[1:]
    assert torch.equal(found, logits(model))
    expected = model.generate(IDS, max_new_tokens=5, do_sample=False)
    assert all(torch.equal(one, expected) for one in tokens)
