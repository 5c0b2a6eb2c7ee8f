"""The loss of the trained tokens: likelihood and divergence against direct computations, in memory that fits."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.functional import log_softmax as logs

import swaa
from families import reference, tiny_model
from swaa.train import Collator, Lora, Objective, SwaaTrainer, TrainSettings, add_lora
from swaa.train import loss as module
from swaa.train.loss import NO_LABEL, install
from test_train import CONFIGS, LAYOUTS, ONE, TWO, collate, training_model
from test_train_run import ROWS, train, weights
from training import CHATML, Conversation, Text, tiny_tokenizer

KL = Objective("kl")
BOTH = Objective("sft+kl", kl_weight=0.7, temperature=1.5)
TEXT = Text(37, seed=8)
MIXED = LAYOUTS | {"text": [[TEXT]], "text, packed with others": [[TEXT, ONE, Text(9, seed=9)], [TWO, TEXT]]}
FAMILIES = ["llama", "gemma2", "granite", "cohere2", "qwen3_moe"]


def adapted(config, family="llama", add=lambda model: add_lora(model, Lora(rank=4)), **changes):
    """A model with an adapter that changes something, ready to train."""
    model = add(swaa.adapt(tiny_model(family, **changes), config)).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02, generator=generator)
    install(model)
    return model


def direct(model, conversations, config, objective, family="llama"):
    """Losses of each conversation alone: explicit masks for the model, no adaptation at all for its teacher."""
    merged = model.merge_and_unload()
    swaa.restore(merged)
    student = tiny_model(family, attn_implementation="eager")
    student.load_state_dict(merged.state_dict())
    teacher = tiny_model(family, attn_implementation="eager")
    nll, kl = [], []
    for conversation in conversations:
        own = reference(student, config, {"dense_rows": conversation.dense_rows()})
        trained = conversation.labels()[0, 1:] != NO_LABEL
        found = own(conversation.ids, use_cache=False).logits[0, :-1][trained]
        aim = teacher(conversation.ids, use_cache=False).logits[0, :-1][trained]
        nll.append(cross_entropy(found, conversation.labels()[0, 1:][trained], reduction="none"))
        flat = [logs(x / objective.temperature, -1) for x in (found, aim)]
        kl.append(kl_div(*flat, reduction="none", log_target=True).sum(-1) * objective.temperature**2)
        student = tiny_model(family, attn_implementation="eager")
        student.load_state_dict(merged.state_dict())
    return torch.cat(nll), torch.cat(kl)


@pytest.mark.parametrize("rows_at_once", [7, 1000], ids=["in pieces", "at once"])
@pytest.mark.parametrize("layout", MIXED)
@pytest.mark.parametrize("kind", ["naive", "FA decode on some layers, dense tail"])
@torch.no_grad()
def test_losses_are_those_of_a_direct_computation(monkeypatch, kind, layout, rows_at_once):
    monkeypatch.setattr(module, "_LOGITS", 101 * rows_at_once)
    config, rows = CONFIGS[kind], MIXED[layout]
    model = adapted(config)
    found = model(**collate(rows, config), objective=BOTH)
    nll, kl = direct(model, [c for row in rows for c in row], config, BOTH)
    torch.testing.assert_close(found["nll"], nll, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["kl"], kl, atol=1e-4, rtol=1e-4)
    assert kl.mean() > 0.1
    torch.testing.assert_close(BOTH.total(found), nll.sum() + 0.7 * kl.sum(), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_head_is_the_models_own(family):
    """Soft caps, scales: what the model's own forward makes of a hidden row."""
    model = adapted(CONFIGS["FA decode"], family)
    batch = collate([[ONE], [TWO]], CONFIGS["FA decode"])
    losses = model(**batch, objective=Objective())["nll"]
    torch.testing.assert_close(losses.mean(), model(**batch, use_cache=False).loss, atol=1e-5, rtol=1e-5)


def test_a_fresh_adapter_under_full_attention_is_its_own_teacher():
    model = add_lora(swaa.adapt(tiny_model(), CONFIGS["full"]), Lora(rank=4)).train()
    install(model)
    losses = model(**collate(LAYOUTS["packed"], CONFIGS["full"]), objective=KL)
    assert torch.equal(losses["kl"], torch.zeros_like(losses["kl"]))
    assert losses["kl"].requires_grad


@torch.no_grad()
def test_the_teacher_sees_everything():
    """Not only nearly: the logits of a forward with full attention are those of the restored model."""
    model = swaa.adapt(tiny_model(), CONFIGS["naive"])
    everything = model(ONE.ids, use_cache=False, full_attention=True).logits
    assert not torch.allclose(everything, model(ONE.ids, use_cache=False).logits, atol=1e-2)
    torch.testing.assert_close(everything, swaa.restore(model)(ONE.ids).logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="pass use_cache=False"):
        swaa.adapt(model, CONFIGS["naive"])(ONE.ids, full_attention=True)


@pytest.mark.parametrize("rows_at_once", [7, 1000], ids=["in pieces", "at once"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("objective", [Objective(), KL, BOTH], ids=lambda x: x.loss)
def test_gradients_are_those_under_explicit_masks(monkeypatch, objective, checkpointing, rows_at_once):
    monkeypatch.setattr(module, "_LOGITS", 101 * rows_at_once)
    config, rows = CONFIGS["FA decode"], MIXED["text, packed with others"]
    # All weights, so that every gradient can be compared; the original ones are those of a second model.
    model = training_model(config, checkpointing)
    install(model)
    found = model(**collate(rows, config), objective=objective)
    objective.total(found).backward()
    expected: dict = {}
    for conversation in [c for row in rows for c in row]:
        student, teacher = (tiny_model(attn_implementation="eager") for _ in range(2))
        reference(student, config, {"dense_rows": conversation.dense_rows()})
        gold = conversation.labels()[0, 1:]
        out = student(conversation.ids, use_cache=False).logits[0, :-1][gold != NO_LABEL]
        with torch.no_grad():
            aim = teacher(conversation.ids, use_cache=False).logits[0, :-1][gold != NO_LABEL]
        t = objective.temperature
        kl = kl_div(logs(out / t, -1), logs(aim / t, -1), reduction="sum", log_target=True) * t * t
        nll = cross_entropy(out, gold[gold != NO_LABEL], reduction="sum")
        (objective.sft * nll + objective.kl * objective.kl_weight * kl).backward()
        for name, parameter in student.named_parameters():
            expected[name] = expected.get(name, 0) + parameter.grad
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_the_teachers_head_is_the_original_one():
    # Under a window that nothing slides out of, an adapter of the head is all that tells the two apart.
    config = swaa.SWAAConfig(window=64, fa_decode=True)
    model = adapted(config, add=lambda model: get_peft_model(model, LoraConfig(r=4, target_modules=["lm_head"])))
    found = model(**collate([[ONE]], config), objective=KL)["kl"]
    trained = ONE.labels()[0, 1:] != NO_LABEL
    logits = model(ONE.ids, use_cache=False).logits[0, :-1][trained]
    with model.disable_adapter():
        aim = model(ONE.ids, use_cache=False).logits[0, :-1][trained]
    assert found.mean() > 1e-4
    expected = kl_div(logs(logits, -1), logs(aim, -1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_adapters_are_what_they_were_after_the_teacher():
    model = adapted(CONFIGS["naive"])
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 3 * 4
    losses = model(**collate([[ONE]], CONFIGS["naive"]), objective=KL)
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert model.training
    assert model.get_base_model().model.training
    losses["kl"].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_logits_exist_for_trained_rows_only(monkeypatch):
    rows = []
    model = adapted(CONFIGS["naive"])
    head = model.get_base_model().lm_head
    head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    monkeypatch.setattr(module, "_LOGITS", 101 * 4)
    batch = collate([[ONE]], CONFIGS["naive"])
    BOTH.total(model(**batch, objective=BOTH)).backward()
    # 9 of 39 tokens are trained: pieces of 4, 4 and 1, for the model and its teacher, and again in the backward pass.
    assert sorted(rows) == [1] * 4 + [4] * 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "kll"}, "unknown loss 'kll'. Did you mean 'kl'"),
        ({"loss": "kl", "temperature": 0}, "temperature=0: use a number above 0"),
        ({"kl_weight": 2}, "kl_weight=2 has no effect on loss='sft'"),
    ],
)
def test_wrong_objectives(values, message):
    with pytest.raises(ValueError, match=message):
        Objective(**values)


def test_a_teacher_needs_the_original_weights():
    with pytest.raises(ValueError, match=r"needs LoRA: .*leave --full out, or use --loss sft"):
        TrainSettings(lora=None, objective=KL)


# Through the Trainer


def test_accumulation_is_over_all_trained_tokens_of_the_step(base, tmp_path):
    """One step of two unequal passes is the step of one pass that holds both."""
    examples = [c.example for c in (Conversation((9, 2), seed=1), Conversation((5, 30), seed=2))]
    found = []
    for batch_size in (1, 2):
        options = {"accumulate": 2 // batch_size, "batch_size": batch_size, "max_steps": 1, "objective": BOTH}
        options |= {"more": {"optim": "sgd", "max_grad_norm": 0.0}, "warmup": 0.0, "learning_rate": 0.1}
        record = train(base, tmp_path / str(batch_size), examples, **options)
        found.append((weights(swaa.load(tmp_path / str(batch_size))), record["log"][0]))
    for name in found[0][0]:
        torch.testing.assert_close(found[0][0][name], found[1][0][name], atol=1e-5, rtol=1e-5)
    for name in ("loss", "nll", "kl"):
        assert found[0][1][name] == pytest.approx(found[1][1][name], rel=1e-4)
    first = found[0][1]
    assert first["loss"] == pytest.approx(first["nll"] + 0.7 * first["kl"], rel=1e-4)


def test_divergence_shrinks_and_a_killed_run_goes_on_to_the_same_weights(base, tmp_path):
    from swaa.train import make_examples

    rows = [*ROWS, {"text": "plain words, nobody answers. " * 4}]
    examples = make_examples(rows, tiny_tokenizer(CHATML))[0]
    options = {"objective": KL, "max_steps": 12, "save_steps": 5, "pack": 150, "batch_size": 1, "accumulate": 2}
    options |= {"learning_rate": 3e-3, "gradient_checkpointing": True, "lora": Lora(rank=8, dropout=0.1)}
    whole = train(base, tmp_path / "whole", examples, eval_examples=examples, **options)
    measured = [line["eval_kl"] for line in whole["log"] if "eval_kl" in line]
    assert measured[-1] < 0.7 * measured[0]

    def kill(step, metrics):
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "killed", examples, eval_examples=examples, show=kill, **options)
    again = train(base, tmp_path / "killed", examples, eval_examples=examples, **options)
    expected, found = (weights(swaa.load(tmp_path / name)) for name in ("whole", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert [x.get("kl") for x in again["log"]] == [x.get("kl") for x in whole["log"]]
    with pytest.raises(ValueError, match=r"objective is .* there"):
        train(base, tmp_path / "killed", examples, **options | {"objective": BOTH})


def test_the_model_is_given_back_as_it_was(base, tmp_path):
    model = swaa.adapt(tiny_model(), CONFIGS["naive"])
    trainer = SwaaTrainer(model, TrainSettings(cpu=True).arguments(tmp_path, evaluates=False), [], tiny_tokenizer())
    assert trainer.model is model
    with torch.no_grad():
        torch.testing.assert_close(
            model(ONE.ids, use_cache=False).logits,
            swaa.adapt(tiny_model(), CONFIGS["naive"])(ONE.ids, use_cache=False).logits,
        )
    module.uninstall(model)
    assert "forward" not in vars(model)


def test_rows_of_text_slide():
    batch = Collator(True)([[TEXT.example], [ONE.example]])
    assert not batch["dense_rows"][0].any()
    assert (batch["labels"][0, 1:37] == TEXT.ids[0, 1:]).all()
    assert batch["labels"][0, 0] == NO_LABEL
