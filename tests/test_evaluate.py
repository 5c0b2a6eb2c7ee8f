"""Evaluation: scores against slow loops over a cache, generation with a model whose words are known, bounds."""

import math

import pytest
import torch
from transformers import DynamicCache

import swaa
from eval_runs import VOCABULARY, bytes_tokenizer, parrot
from families import tiny_model
from swaa.evaluate import (
    accuracy_interval,
    exponential,
    generate_answers,
    mean_nll,
    perplexity,
    score_answers,
)
from swaa.tasks import Sample

CONFIGS = {
    "full": None,
    "sinks": swaa.SWAAConfig(window=5, sinks=2),
    "fa decode": swaa.SWAAConfig(window=5, sinks=2, fa_decode=True),
    "fa decode on a layer": swaa.SWAAConfig(window=6, fa_decode=[2]),
    "all": swaa.SWAAConfig(window=4, sinks=3, full_layers=[1], fa_decode=True, dense_tail=6),
}


def adapted(config, **changes):
    model = tiny_model(vocab_size=len(VOCABULARY), **changes)
    return model if config is None else swaa.adapt(model, config)


def draw(count, seed):
    return tuple(torch.randint(3, 120, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def slow_logits(model, sample):
    """The logits before each answer token: one token at a time through a cache, the prompt too."""
    ids, cache, found = sample.prompt_ids + sample.prefix_ids + sample.answer_ids, DynamicCache(), []
    announced = {"prompt_length": len(sample.prompt_ids)} if swaa.adaptation(model) else {}
    with torch.no_grad():
        for token in ids:
            found.append(model(torch.tensor([[token]]), past_key_values=cache, **announced).logits[0, -1].double())
    return torch.stack(found)[-len(sample.answer_ids) - 1 : -1]


def greedy_answer(model, prompt, prefix, count):
    """A sample whose answer of `count` tokens is what the model finds most likely, one token after the other."""
    cache, answer = DynamicCache(), []
    with torch.no_grad():
        output = model(torch.tensor([prompt]), past_key_values=cache)
        for token in prefix:
            output = model(torch.tensor([[token]]), past_key_values=cache)
        while len(answer) < count:
            answer.append(int(output.logits[0, -1].argmax()))
            output = model(torch.tensor([answer[-1:]]), past_key_values=cache)
    return Sample(prompt, prefix, tuple(answer), "")


def make_samples(model):
    """Prompts, prefixes and answers of different lengths: right ones, and wrong at the first, the last and all."""
    sizes = [(30, 4, 3), (17, 0, 5), (3, 6, 1), (41, 2, 4), (24, 1, 2)]
    samples = [greedy_answer(model, draw(a, i), draw(b, 10 + i), c) for i, (a, b, c) in enumerate(sizes)]
    for index, (place, number) in enumerate([(0, 0), (1, -1), (3, 2)]):
        old = samples[place]
        answer = list(old.answer_ids)
        answer[number] = (answer[number] + 1 + index) % len(VOCABULARY)
        samples.append(Sample(old.prompt_ids, old.prefix_ids, tuple(answer), ""))
    return [*samples, Sample(draw(20, 50), draw(3, 51), draw(6, 52), "")]


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_those_of_a_slow_loop(tokenizer, name):
    model = adapted(CONFIGS[name])
    samples = make_samples(model)
    answers = list(score_answers(model, tokenizer, samples))
    assert [a.index for a in answers] == list(range(9))
    assert [a.correct for a in answers] == [True] * 5 + [False] * 4
    for answer, sample in zip(answers, samples, strict=True):
        logits = slow_logits(model, sample)
        gold = torch.tensor(sample.answer_ids)
        expected = -logits.log_softmax(-1)[torch.arange(len(gold)), gold].mean()
        assert answer.nll == pytest.approx(float(expected), abs=1e-4)
        assert answer.text == tokenizer.decode(logits.argmax(-1))
        assert answer.correct == (logits.argmax(-1) == gold).all()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_batch_of_different_lengths_scores_like_single_samples(tokenizer, name, family):
    config = CONFIGS[name]
    if family == "gemma3_text" and config is not None:
        config = config.replace(fa_decode=bool(config.fa_decode))  # layer 2 has a window of its own there
    model = adapted(config, family=family)
    samples = make_samples(model)
    single = list(score_answers(model, tokenizer, samples))
    for size in (2, 4, 20):
        batch = list(score_answers(model, tokenizer, samples, batch_size=size))
        assert [(a.index, a.correct, a.text) for a in batch] == [(a.index, a.correct, a.text) for a in single]
        assert [a.nll for a in batch] == pytest.approx([a.nll for a in single], abs=1e-4)


def test_adaptation_and_fa_decode_change_the_scores(tokenizer):
    # Otherwise the comparisons above would hold for a model that ignores both.
    samples = [Sample(draw(40, 1), draw(4, 2), draw(5, 3), "")]
    found = [next(iter(score_answers(adapted(config), tokenizer, samples))).nll for config in CONFIGS.values()]
    assert min(abs(a - b) for i, a in enumerate(found) for b in found[:i]) > 1e-3


def test_answers_come_as_they_are_found(tokenizer):
    model, passes = adapted(None), []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = score_answers(model, tokenizer, [Sample(draw(9, i), (), draw(2, i), "") for i in range(5)], batch_size=2)
    assert next(found).index == 0
    assert len(passes) == 1
    assert [answer.index for answer in found] == [1, 2, 3, 4]
    assert len(passes) == 3


def test_scoring_keeps_no_gradients(tokenizer):
    model = adapted(CONFIGS["all"])
    kept = []
    model.register_forward_hook(lambda module, args, output: kept.append(output.logits))
    list(score_answers(model, tokenizer, [Sample(draw(30, 0), draw(2, 1), draw(3, 2), "")]))
    assert not kept[0].requires_grad
    # Only the rows that are needed pass the head.
    assert kept[0].shape[1] == 4


# Generation


def ask(tokenizer, question, answer):
    prompt, prefix, gold = (tuple(tokenizer(text)["input_ids"]) for text in (question, " It is", f" {answer}"))
    return Sample(prompt, prefix, gold, answer)


def test_generated_text_is_searched_for_the_answer(tokenizer):
    model = parrot("1234,567?")
    asked = [
        ("How many apples, please, and do not forget any?", "567", True),
        ("How many?", "1234", True),
        ("How many pears are there, and how many plums?", "34", False),
        ("How many pears", "1234", False),
    ]
    samples = [ask(tokenizer, question, answer) for question, answer, _ in asked]
    forced = [answer.nll for answer in score_answers(model, tokenizer, samples)]
    for size in (1, 3, 4):
        answers = list(generate_answers(model, tokenizer, samples, batch_size=size))
        assert [(a.index, a.correct) for a in answers] == [(i, found) for i, (_, _, found) in enumerate(asked)]
        # As many tokens as prefix and answer have, and eight more.
        assert answers[0].text.startswith("1234,567?1234,567?"[: 6 + 4 + 8])
        assert answers[3].text == "s" * len(answers[3].text)
        assert [answer.nll for answer in answers] == pytest.approx(forced, abs=1e-4)


def test_generation_has_room_for_prefix_answer_and_eight_more(tokenizer):
    model = parrot("0123456789?")
    sample = ask(tokenizer, "Any?", "42")
    assert [len(a.text) for a in generate_answers(model, tokenizer, [sample])] == [6 + 3 + 8]


def test_generation_ends_with_the_models_end(tokenizer):
    model = parrot("1234?")
    model.generation_config.eos_token_id = VOCABULARY.index("3")
    samples = [ask(tokenizer, "Any?", "12"), ask(tokenizer, "And what else is there", "12")]
    assert [(a.correct, a.text.rstrip("e")) for a in generate_answers(model, tokenizer, samples, batch_size=2)] == [
        (False, "123"),
        (False, ""),
    ]


@pytest.mark.parametrize("name", ["full", "sinks", "all"])
def test_generated_text_is_the_models_own(tokenizer, name):
    model = adapted(CONFIGS[name])
    samples = [Sample(draw(size, size), draw(2, 1), draw(5, 2), "12") for size in (40, 23, 31)]
    texts = []
    for sample in samples:
        output = model.generate(torch.tensor([sample.prompt_ids]), max_new_tokens=2 + 5 + 8, do_sample=False)
        texts.append(tokenizer.decode(output[0, len(sample.prompt_ids) :], skip_special_tokens=True))
    for size in (1, 2, 3):
        assert [a.text for a in generate_answers(model, tokenizer, samples, batch_size=size)] == texts


@pytest.mark.parametrize(
    ("special", "padding"), [({"pad_token": "<pad>", "eos_token": "<eos>"}, 0), ({"eos_token": "<eos>"}, 2), ({}, 0)]
)
def test_padding_is_the_tokenizers_or_else_its_end_or_else_zero(monkeypatch, special, padding):
    model, seen = parrot("12?"), {}

    def generate(ids, **kwargs):
        seen.update(kwargs)
        return torch.cat([ids, ids[:, -1:]], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    tokenizer = bytes_tokenizer(**special)
    assert [a.text for a in generate_answers(model, tokenizer, [ask(tokenizer, "Any?", "12")])] == ["?"]
    assert seen["pad_token_id"] == padding
    assert seen["do_sample"] is False


# Perplexity


def windows(count=3, length=40, score_from=15):
    return [Sample(draw(length, 70 + i), (), (), "", {"score_from": score_from}) for i in range(count)]


def direct_loss(model, sample):
    """The mean negative log likelihood by the definition: a pass a token, over all that precedes it."""
    losses = []
    for place in range(sample.meta["score_from"], len(sample.prompt_ids)):
        with torch.no_grad():
            logits = model(torch.tensor([sample.prompt_ids[:place]])).logits[0, -1].double()
        losses.append(-logits.log_softmax(-1)[sample.prompt_ids[place]].item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["full", "sinks", "fa decode"])
@pytest.mark.parametrize("score_from", [1, 20, 39])
def test_perplexity_by_the_definition(name, score_from):
    model, samples = adapted(CONFIGS[name]), windows(2, score_from=score_from)
    assert list(perplexity(model, samples)) == pytest.approx([direct_loss(model, s) for s in samples], abs=1e-4)


def test_perplexity_of_long_windows_is_summed_over_all_slices():
    model, (sample,) = tiny_model(max_position_embeddings=2048), windows(1, length=1300, score_from=100)
    sample = Sample(tuple(token % 101 for token in sample.prompt_ids), (), (), "", sample.meta)
    with torch.no_grad():
        logits = model(torch.tensor([sample.prompt_ids])).logits[0, 99:-1].double()
    gold = torch.tensor(sample.prompt_ids[100:])
    expected = -logits.log_softmax(-1)[torch.arange(1200), gold].mean().item()
    assert next(iter(perplexity(model, [sample]))) == pytest.approx(expected, abs=1e-5)


def test_perplexity_knows_windows_but_no_fa_decode():
    losses = [list(perplexity(adapted(config), windows())) for config in (CONFIGS["sinks"], CONFIGS["fa decode"])]
    assert losses[0] == losses[1]
    assert losses[0] != pytest.approx(list(perplexity(adapted(None), windows())), abs=1e-3)


def test_means_are_over_all_samples_or_none():
    assert mean_nll([1.0, 2.0, 6.0]) == 3.0
    for lost in (None, math.nan, math.inf):
        assert mean_nll([1.0, lost, 6.0]) is None
    assert mean_nll([]) is None
    assert exponential(2.0) == math.exp(2.0)
    assert exponential(709.0) > 1e307
    assert exponential(710.0) is exponential(None) is None


# The interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # By hand.
        (20, 20, 0.8389, 1.0),
        (17, 20, 0.6396, 0.9476),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_published_intervals(correct, count, low, high):
    assert accuracy_interval(correct, count) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("count", [1, 2, 16, 80, 1000])
def test_the_bounds_solve_the_score_equation(count):
    for correct in range(0, count + 1, max(count // 7, 1)):
        low, high = accuracy_interval(correct, count)
        assert 0 <= low <= correct / count + 1e-15
        assert correct / count - 1e-15 <= high <= 1
        assert high - low < 1
        for bound in (low, high):
            deviation = correct / count - bound
            assert deviation**2 == pytest.approx(1.959964**2 * bound * (1 - bound) / count, abs=1e-9)
        mirrored = accuracy_interval(count - correct, count)
        assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize("count", [1, 4, 10, 24, 399])
def test_the_interval_holds_the_accuracy_at_its_ends_too(count):
    for correct in (0, count):
        low, high = accuracy_interval(correct, count)
        assert 0 <= low <= correct / count <= high <= 1
