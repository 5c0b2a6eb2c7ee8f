"""Evaluation: scores against slow loops over a cache, generation with a model whose words are known, bytes, bounds."""


import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import DynamicCache, PreTrainedTokenizerFast

import swaa
from families import tiny_model
from swaa.evaluate import (
    generate_answers,
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
VOCABULARY = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def bytes_tokenizer(**special):
    """One token a byte."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    backend = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


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


def greedy_answer(model, sample, count):
    """The sample with an answer of `count` tokens that the model finds most likely one after the other."""
    answer = ()
    for _ in range(count):
        guess = Sample(sample.prompt_ids, sample.prefix_ids, (*answer, 7), "")
        answer += (int(slow_logits(model, guess)[-1].argmax()),)
    return Sample(sample.prompt_ids, sample.prefix_ids, answer, "")


def make_samples(model):
    """Prompts, prefixes and answers of different lengths: right ones, and wrong at the first, the last and all."""
    samples = []
    for index, (prompt, prefix, answer) in enumerate([(30, 4, 3), (17, 0, 5), (3, 6, 1), (41, 2, 4), (24, 1, 2)]):
        sample = Sample(draw(prompt, index), draw(prefix, 10 + index), (), "")
        samples.append(greedy_answer(model, sample, answer))
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
        assert answer.nll == pytest.approx(
            -logits.log_softmax(-1)[torch.arange(len(gold)), gold].mean().item(), abs=1e-4
        )
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
    for size in (2, 4, 9, 20):
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


def parrot(chain, start):
    """A model that says `chain` after `start`: its layers do nothing, its head knows which byte follows which."""
    model = tiny_model(vocab_size=len(VOCABULARY))
    ids = [VOCABULARY.index(letter) for letter in start + chain]
    assert len(set(ids)) == len(ids)
    follower = {a: b for a, b in zip(ids, ids[1:] + ids[:1], strict=True)}
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        directions = torch.nn.functional.normalize(model.model.embed_tokens.weight)
        for token in range(len(VOCABULARY)):
            model.lm_head.weight[follower.get(token, token)] = directions[token]
    return model


def ask(tokenizer, question, answer, prefix=" It is"):
    encode = lambda text: tuple(tokenizer(text)["input_ids"])  # noqa: E731
    return Sample(encode(question), encode(prefix), encode(f" {answer}"), answer)


def test_generated_text_is_searched_for_the_answer(tokenizer):
    model = parrot("1, 234,567 apples".replace(", ", ",")[:9].replace(",", "", 1), "?")
    # It says 1234,567 after a question mark, and repeats any other letter.
    samples = [
        ask(tokenizer, "How many apples?", "567"),
        ask(tokenizer, "How many?", "1234"),
        ask(tokenizer, "How many pears are there, and how many plums?", "34"),
        ask(tokenizer, "How many pears", "1234"),
    ]
    for size in (1, 3, 4):
        answers = list(generate_answers(model, tokenizer, samples, batch_size=size))
        assert [(a.index, a.correct) for a in answers] == [(0, True), (1, True), (2, False), (3, False)]
        assert answers[0].text.startswith("1234,567?1234,567")
        assert answers[3].text == "s" * len(answers[3].text)
        assert [a.nll for a in answers] == pytest.approx(
            [a.nll for a in score_answers(model, tokenizer, samples)], abs=1e-4
        )
