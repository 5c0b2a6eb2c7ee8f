"""A training pass is the inference of the same tokens, and its gradients are those under explicit masks."""

import pytest
import torch

import swaa
from families import tiny_model
from swaa.train import Collator, Example, pack
from swaa.train.collator import NO_LABEL
from training import Conversation, Text, reference_gradients

BASE = swaa.SWAAConfig(window=5, sinks=2, full_layers=[1], release_kv=False)
CONFIGS = {
    "naive": BASE.replace(sinks=0, full_layers=[]),
    "FA decode": BASE.replace(fa_decode=True),
    "FA decode on some layers, dense tail": BASE.replace(fa_decode=[0, 3], dense_tail=3),
    "dense tail alone": BASE.replace(dense_tail=4),
    "full": swaa.SWAAConfig(),
}
ONE, TWO, SHORT = Conversation((30, 9), seed=1), Conversation((17, 6), seed=2), Conversation((2, 1), seed=3)
CHAT = Conversation((12, 7), (9, 4), (1, 8), seed=4)
# The rows of a batch; several conversations in one row are packed.
LAYOUTS = {
    "alone": [[ONE]],
    "padded": [[TWO], [ONE], [SHORT]],
    "several turns": [[CHAT]],
    "several turns, padded": [[CHAT], [ONE]],
    "packed": [[ONE, TWO, SHORT]],
    "packed, several turns, several rows": [[TWO, CHAT], [SHORT, ONE], [TWO]],
}


def collate(rows, config):
    model = swaa.adapt(tiny_model(), config)
    return Collator(swaa.adaptation(model).has_phases)([[c.example for c in row] for row in rows])


def training_model(config, checkpointing, family="llama"):
    model = swaa.adapt(tiny_model(family), config).train()
    # As the Trainer has it.
    model.config.use_cache = False
    if checkpointing:
        # Newer versions of transformers warn of the older name.
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return model


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_inference_and_gradients_those_under_explicit_masks(kind, layout, checkpointing):
    config, rows = CONFIGS[kind], LAYOUTS[layout]
    batch = collate(rows, config)
    model = training_model(config, checkpointing)
    output = model(**batch)
    inference = swaa.adapt(tiny_model(), config)
    for row, logits in zip(rows, output.logits, strict=True):
        start = 0
        for conversation in row:
            expected = conversation.inference(inference)
            found = logits[start : start + len(expected)]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
            start += len(expected) + 1
    trained = (batch["labels"][:, 1:] != NO_LABEL).sum()
    (output.loss * trained).backward()
    expected = reference_gradients([c for row in rows for c in row], config)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("layout", ["padded", "packed, several turns, several rows"])
def test_families(family, layout):
    """Native windows too keep packed samples apart, and count from each one's start."""
    config, rows = BASE.replace(fa_decode=[1], full_layers=[]), LAYOUTS[layout]
    model = training_model(config, True, family)
    if family == "gpt_oss":
        model.set_experts_implementation("eager")
    output = model(**collate(rows, config))
    inference = swaa.adapt(tiny_model(family), config)
    for row, logits in zip(rows, output.logits, strict=True):
        start = 0
        for conversation in row:
            expected = conversation.inference(inference)
            torch.testing.assert_close(logits[start : start + len(expected)], expected, atol=1e-4, rtol=1e-4)
            start += len(expected) + 1


def test_generate_gives_the_logits_that_are_trained():
    config = CONFIGS["FA decode on some layers, dense tail"]
    model = swaa.adapt(tiny_model(), config)
    prompt = ONE.ids[:, :30]
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    out = model.generate(prompt, max_new_tokens=12, **options)
    example = Example(tuple(out.sequences[0].tolist()), (False,) * 30 + (True,) * 12)
    logits = training_model(config, False)(**Collator(True)([[example], [TWO.example]])).logits
    torch.testing.assert_close(logits[0, 29:41], torch.stack(out.logits, dim=1)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_are_the_answers_tokens(layout):
    rows = LAYOUTS[layout]
    batch = collate(rows, CONFIGS["FA decode"])
    width = batch["input_ids"].shape[1]
    if layout == "alone":
        # One prompt and one answer: where it ends says it all, and has the fastest kernels.
        assert batch.pop("prompt_length").tolist() == [30]
        batch["dense_rows"] = ONE.dense_rows()
    assert all(x.shape == (len(rows), width) for x in batch.values())
    for number, row in enumerate(rows):
        expected = torch.cat([c.labels()[0] for c in row])
        assert torch.equal(batch["labels"][number, : len(expected)], expected)
        assert (batch["labels"][number, len(expected) :] == NO_LABEL).all()
        dense = torch.cat([c.dense_rows()[0] for c in row])
        assert torch.equal(batch["dense_rows"][number, : len(expected)], dense)
    packed = any(len(row) > 1 for row in rows)
    assert ("position_ids" in batch) == packed
    assert ("attention_mask" in batch) == (not packed and len(rows) > 1)


def test_flags_go_only_where_they_mean_something():
    assert "dense_rows" not in collate(LAYOUTS["padded"], CONFIGS["naive"])
    assert "dense_rows" not in collate(LAYOUTS["padded"], CONFIGS["full"])
    assert "dense_rows" in collate(LAYOUTS["padded"], CONFIGS["dense tail alone"])


def test_packing_fills_rows_in_order():
    sizes = [6, 5, 4, 9, 1, 30]
    examples = [Example((n,) * n, (False,) * (n - 1) + (True,)) if n > 1 else None for n in sizes]
    examples[4] = Example((1, 1), (False, True))
    rows = pack(examples, 12)
    assert [[len(x.ids) for x in row] for row in rows] == [[6, 5], [4, 2], [9], [30]]


def test_examples_need_a_prompt_and_an_answer():
    with pytest.raises(ValueError, match="no answer to train on"):
        Example((1, 2), (False, False))
    with pytest.raises(ValueError, match="no prompt in front"):
        Example((1, 2), (True, True))
    with pytest.raises(ValueError, match="flags for 1"):
        Example((1, 2), (True,))


def test_a_batch_whose_prompts_end_together_is_described_by_their_length():
    same, longer, text = Conversation((30, 9), seed=6), Conversation((31, 8), seed=7), Text(39, seed=8)
    collator = Collator(True)
    assert collator([[ONE.example], [same.example]])["prompt_length"].tolist() == [30, 30]
    assert collator([[text.example]])["prompt_length"].tolist() == [39]
    for others in ([longer], [CHAT, ONE], [text]):
        assert "dense_rows" in collator([[ONE.example], *([x.example] for x in others)])
    assert not {"dense_rows", "prompt_length"} & set(Collator(False)([[ONE.example]]))
    packed = swaa.adapt(tiny_model(), CONFIGS["FA decode"])(**collator([[ONE.example, same.example]])).logits
    apart = swaa.adapt(tiny_model(), CONFIGS["FA decode"])(**collator([[ONE.example], [same.example]])).logits
    torch.testing.assert_close(packed[0, :38], apart[0, :38], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[0, 39:77], apart[1, :38], atol=1e-5, rtol=1e-5)
