"""Which recipe the model of lm-evaluation-harness runs under: named, changed, stored, or none."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import swaa
from eval_runs import save
from swaa.harness import SwaaLM
from test_harness import CONFIGS, TEXTS, fresh, score


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save(fresh(), tmp_path_factory.mktemp("model")))


def test_a_recipe_with_changes(folder):
    lm = SwaaLM(folder, "sinks-fa-decode", device="cpu", window=9, full_layers=[0, 2], backend="eager")
    state = swaa.adaptation(lm.model)
    assert state.config == swaa.SWAAConfig(window=9, sinks=10, full_layers=[0, 2], fa_decode=True, backend="eager")
    assert state.backend == "eager"
    info = lm.get_model_info()
    assert (info["recipe"], info["swaa"]) == ("sinks-fa-decode", state.config.to_dict())
    assert info["model_num_parameters"] == lm.model.num_parameters()


def test_changes_alone(folder):
    assert swaa.adaptation(SwaaLM(folder, device="cpu", window=9).model).config == swaa.SWAAConfig(window=9)


def test_the_stored_adaptation(tmp_path, tokenizer):
    swaa.save(swaa.adapt(fresh(), CONFIGS["all"]), tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert swaa.adaptation(SwaaLM(tmp_path, device="cpu").model).config == CONFIGS["all"]
    changed = swaa.adaptation(SwaaLM(tmp_path, device="cpu", dense_tail=2).model).config
    assert changed == CONFIGS["all"].replace(dense_tail=2)
    assert swaa.adaptation(SwaaLM(tmp_path, "full", device="cpu").model) is None


def test_a_model_that_is_there_already(tokenizer):
    model = swaa.adapt(fresh(), CONFIGS["sinks"])
    assert swaa.adaptation(SwaaLM(model, tokenizer=tokenizer).model).config == CONFIGS["sinks"]
    assert swaa.adaptation(SwaaLM(model, "sinks", tokenizer=tokenizer).model).config.window == 2048
    assert swaa.adaptation(SwaaLM(model, "full", tokenizer=tokenizer).model) is None


def test_an_adapter_needs_its_recipe_named(folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder)
    wrapped = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    swaa.save(swaa.adapt(wrapped, CONFIGS["all"]), tmp_path)
    with pytest.raises(swaa.ConfigError, match=r"recipe=ADAPTER/swaa_config\.json"):
        SwaaLM(folder, device="cpu", peft=str(tmp_path))
    lm = SwaaLM(folder, tmp_path / "swaa_config.json", device="cpu", peft=str(tmp_path))
    found, _ = score(lm, [(TEXTS[0], " and so")])
    tokens = torch.tensor([lm.tokenizer.encode(TEXTS[0] + " and so")])
    with torch.no_grad():
        logits = wrapped(tokens, prompt_length=len(TEXTS[0]), use_cache=False).logits[0, -8:-1]
    wanted = logits.log_softmax(-1).gather(-1, tokens[0, -7:, None]).sum()
    assert found[0][0] == pytest.approx(float(wanted), abs=1e-5)


def test_errors_come_before_the_weights_are_loaded():
    with pytest.raises(swaa.ConfigError, match="unknown recipe 'sink'"):
        SwaaLM("no/such-model", "sink")
    with pytest.raises(swaa.ConfigError, match="window=0"):
        SwaaLM("no/such-model", "sinks", window=0)


def test_no_recipe_at_all(folder):
    with pytest.raises(swaa.ConfigError, match=r"no recipe was given .* add recipe=NAME .* recipe=full"):
        SwaaLM(folder, device="cpu")


def test_recipes_for_reasoning_say_what_they_need(folder, caplog):
    SwaaLM(folder, "paper-thinking-speed", device="cpu")
    assert "enable_thinking=True with its think_end_token" in caplog.text
    caplog.clear()
    SwaaLM(folder, "paper-thinking-speed", device="cpu", enable_thinking=True, think_end_token="</think>")
    SwaaLM(folder, "sinks", device="cpu")
    assert "reasons first" not in caplog.text
