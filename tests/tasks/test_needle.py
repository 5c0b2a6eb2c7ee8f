"""Needles, and the windows of perplexity: lengths to the token, depths, joints, and no overlap."""

import dataclasses
import itertools
import re

import pytest
from tokenizers import Regex, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from chat_tokenizers import CHAT, train
from swaa.prose import prose
from swaa.tasks import TASKS, Needle, Perplexity, needle
from swaa.tasks.base import encode

NEEDLES = [name for name in TASKS if TASKS[name].kind == "retrieval"]
SENTENCE = re.compile(r"The special magic number for (\w+ \w+) is (\d+)\.")
INTRODUCTION = (
    "Read the following text carefully. Some facts about magic numbers are hidden in it. Remember them, and then "
    "answer the question at the end of the text.\n\n"
)
QUESTION = "\n\nWhat is the special magic number for {key}?"


@pytest.fixture(scope="module")
def merging_tokenizer():
    """Merges a full stop with the line ends after it, as the tokenizers of Llama 3 and Qwen do."""
    pattern = r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = train(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel.alphabet(),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture(params=["tokenizer", "special_tokenizer", "merging_tokenizer", *CHAT])
def any_tokenizer(request):
    if request.param in CHAT:
        return request.getfixturevalue("chat_tokenizers")[request.param]
    return request.getfixturevalue(request.param)


def turn_of(tokenizer):
    """Return the texts that must stand before and after the user's."""
    if tokenizer.chat_template:
        return CHAT[tokenizer.name_or_path][2]
    return "<s>" * (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id), "\nAnswer:"


def parts(tokenizer, sample):
    """Return (text, question) of a prompt; the introduction and the user turn around them are checked and taken off."""
    prompt, (before, after) = tokenizer.decode(sample.prompt_ids), turn_of(tokenizer)
    assert prompt.startswith(before + INTRODUCTION)
    assert prompt.endswith(after)
    text = prompt[len(before + INTRODUCTION) : -len(after)]
    return text[: text.rindex("\n\n")], text[text.rindex("\n\n") :]


def without_needles(context):
    return SENTENCE.sub("", context.replace(" The special", "The special"))


@pytest.mark.parametrize("length", [301, 512, 2000])
@pytest.mark.parametrize("name", NEEDLES)
def test_prompts_have_exactly_the_asked_length(any_tokenizer, name, length):
    samples = TASKS[name].samples(any_tokenizer, length=length, count=4, seed=1)
    assert [len(sample.prompt_ids) for sample in samples] == [length] * 4
    assert all(type(token) is int for token in samples[0].prompt_ids + samples[0].answer_ids)


@pytest.mark.parametrize("name", ["tokenizer", "special_tokenizer", "merging_tokenizer"])
def test_perplexity_prompts_have_exactly_the_asked_length(request, short_books, name):
    samples = Perplexity().samples(request.getfixturevalue(name), length=301, count=4, seed=1)
    assert [len(sample.prompt_ids) for sample in samples] == [301] * 4
    assert all(type(token) is int for token in samples[0].prompt_ids)


def test_how_much_text_is_encoded_changes_no_sample(any_tokenizer, monkeypatch):
    """A word cut in two at the end of what is encoded must not reach the prompt."""
    request = {"length": 300, "count": 4, "seed": 0}
    found = [TASKS[task].samples(any_tokenizer, **request) for task in ("needle-multikey", "needle-noise")]
    monkeypatch.setattr(needle, "_USUAL_CHARS", 1000)
    assert found == [TASKS[task].samples(any_tokenizer, **request) for task in ("needle-multikey", "needle-noise")]


def test_the_random_streams_are_pinned(tokenizer):
    # Published figures depend on these draws, which must not vary with Python's hash seed either.
    sample = TASKS["needle"].samples(tokenizer, length=400, count=1, seed=0)[0]
    assert (sample.meta["key"], sample.answer) == ("quiet candle", "3286185")
    longer = TASKS["needle"].samples(tokenizer, length=900, count=1, seed=0)[0]
    assert (longer.meta["key"], longer.answer) == ("quiet candle", "3286185")


@pytest.mark.parametrize("name", NEEDLES)
def test_the_needle_is_once_at_the_stated_depth_and_position(any_tokenizer, name):
    for sample in TASKS[name].samples(any_tokenizer, length=1500, count=8, seed=3):
        context, question = parts(any_tokenizer, sample)
        needle = f"The special magic number for {sample.meta['key']} is {sample.answer}."
        assert question == QUESTION.format(key=sample.meta["key"])
        assert context.count(needle) == 1
        assert sample.answer not in question
        found = SENTENCE.findall(context)
        assert len(dict(found)) == len({number for _, number in found}) == TASKS[name].keys
        before, after = context.split(needle)
        assert before[-2] in ".!?\"'"
        assert before[-1] == " "
        assert after[0].isspace()
        depth = len(without_needles(before).rstrip()) / len(without_needles(context))
        assert depth == pytest.approx(sample.meta["depth"], abs=0.01)
        assert 0.05 <= sample.meta["depth"] <= 0.70
        assert any_tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).startswith(f" {needle}")


def test_depths_fill_the_range_and_follow_the_option(tokenizer):
    depths = [s.meta["depth"] for s in TASKS["needle"].samples(tokenizer, length=1500, count=40, seed=0)]
    assert min(depths) < 0.2
    assert max(depths) > 0.55
    for wanted in (0.0, 0.5, 1.0):
        sample = Needle(depth=(wanted, wanted)).samples(tokenizer, length=3000, count=1, seed=0)[0]
        context, _ = parts(tokenizer, sample)
        assert sample.meta["depth"] == pytest.approx(wanted, abs=0.1)
        assert context.count(f"is {sample.answer}.") == 1
        found = tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).lstrip()
        assert found.startswith(f"The special magic number for {sample.meta['key']} is")


def test_many_needles_survive_the_shortest_prompt_and_one_boundary(any_tokenizer):
    task = Needle(keys=16, depth=(0.0, 0.0), digits=3)
    with pytest.raises(ValueError, match=r"length=10 has no room .* use \d+ or more") as error:
        task.samples(any_tokenizer, length=10, count=3, seed=0)
    shortest = int(re.search(r"use (\d+)", str(error.value))[1])
    with pytest.raises(ValueError, match=f"use {shortest} or more"):
        task.samples(any_tokenizer, length=shortest - 1, count=3, seed=0)
    for sample in task.samples(any_tokenizer, length=shortest, count=3, seed=0):
        context, _ = parts(any_tokenizer, sample)
        assert len(SENTENCE.findall(context)) == 16
        assert 32 <= len(encode(any_tokenizer, without_needles(context))) < 64
        tail = any_tokenizer.decode(sample.prompt_ids[sample.meta["position"] :]).lstrip()
        assert tail.startswith(f"The special magic number for {sample.meta['key']} is {sample.answer}.")


def test_no_two_needles_have_the_same_number(tokenizer):
    for sample in Needle(keys=9, digits=1).samples(tokenizer, length=800, count=3, seed=0):
        numbers = [number for _, number in SENTENCE.findall(parts(tokenizer, sample)[0])]
        assert sorted(numbers) == list("123456789")


@pytest.mark.parametrize("name", NEEDLES)
def test_the_answer_decodes_and_joints_are_natural(any_tokenizer, name):
    task = dataclasses.replace(TASKS[name], digits=5)
    for sample in task.samples(any_tokenizer, length=900, count=3, seed=9):
        key = sample.meta["key"]
        after = turn_of(any_tokenizer)[1]
        # A space would stand at the start of a line after templates that end with a line end.
        stem = f"{'' if after.endswith(chr(10)) else ' '}The special magic number for {key} is"
        assert any_tokenizer.decode(sample.prefix_ids) == stem
        assert any_tokenizer.decode(sample.answer_ids) == f" {sample.answer}"
        assert re.fullmatch("[1-9][0-9]{4}", sample.answer)
        tail = encode(any_tokenizer, QUESTION.format(key=key) + f"{after}{stem} {sample.answer}")
        whole = sample.prompt_ids + sample.prefix_ids + sample.answer_ids
        assert list(whole[-len(tail) :]) == tail
        context, _ = parts(any_tokenizer, sample)
        lead = encode(any_tokenizer, turn_of(any_tokenizer)[0] + INTRODUCTION)
        assert list(whole[: len(lead)]) == lead
        body = list(sample.prompt_ids[len(lead) : -(len(tail) - len(sample.prefix_ids) - len(sample.answer_ids))])
        assert encode(any_tokenizer, context)[:-5] == body[: len(encode(any_tokenizer, context)) - 5]


def test_splits_share_neither_keys_nor_text(tokenizer):
    words = {}
    for split, other in itertools.permutations(("test", "calibration")):
        samples = TASKS["needle-multikey"].samples(tokenizer, length=600, count=60, seed=0, split=split)
        contexts = [parts(tokenizer, sample)[0] for sample in samples]
        words[split] = {word for context in contexts for key, _ in SENTENCE.findall(context) for word in key.split()}
        for context in contexts[:10]:
            pieces = [piece.strip() for piece in SENTENCE.split(context)[::3]]
            longest = max(pieces, key=len)
            assert len(longest) > 100
            assert longest in prose(split)
            assert longest not in prose(other)
    assert len(words["test"]) == len(words["calibration"]) == 32
    assert not words["test"] & words["calibration"]


def test_samples_use_different_places_of_the_prose(tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=2000, count=20, seed=0)
    starts = sorted(sample.meta["start"] for sample in samples)
    longest = max(len(parts(tokenizer, sample)[0]) for sample in samples)
    assert min(after - before for before, after in itertools.pairwise(starts)) > longest


def test_noise_is_nothing_but_the_five_sentences(tokenizer):
    contexts = [parts(tokenizer, s)[0] for s in TASKS["needle-noise"].samples(tokenizer, length=700, count=9, seed=0)]
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. " * 99
    assert all(without_needles(context) in noise for context in contexts)
    assert len({context[:12] for context in contexts}) > 1


def test_perplexity_windows_lie_side_by_side_until_the_book_is_used_up(tokenizer):
    book = encode(tokenizer, prose("test"))
    length = len(book) // 5
    samples = Perplexity().samples(tokenizer, length=length, count=12, seed=0)
    starts = [sample.meta["start"] for sample in samples]
    assert sorted(starts[:5]) == [0, length, 2 * length, 3 * length, 4 * length] != starts[:5]
    assert len(set(starts[5:])) == 7
    for sample in samples:
        start = sample.meta["start"]
        assert sample.prompt_ids == tuple(book[start : start + length])
        assert sample.meta["score_from"] == length // 2
        assert (sample.prefix_ids, sample.answer_ids, sample.answer) == ((), (), "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": 0}, "keys=0 is out of range: use 1 to 16"),
        ({"keys": 17}, "keys=17 is out of range: use 1 to 16"),
        ({"keys": 10, "digits": 1}, "keys=10 is out of range: use 1 to 9 with digits=1"),
        ({"digits": 0}, "digits=0 leaves no number: use 1"),
        ({"depth": (0.7, 0.1)}, r"depth=\(0.7, 0.1\) is no range: use"),
        ({"depth": (-0.1, 0.5)}, "depth="),
        ({"depth": (0.5, 1.01)}, "depth="),
        ({"depth": (0.5, float("nan"))}, "depth="),
        ({"depth": (0.5,)}, "depth="),
        ({"depth": 0.5}, "depth=0.5 is no range"),
        ({"haystack": "nois"}, "haystack='nois' is unknown. Did you mean 'noise'"),
    ],
)
def test_needle_refuses_options_that_make_no_sample(options, message):
    with pytest.raises(ValueError, match=message):
        Needle(**options)


def test_lengths_beyond_the_book_name_the_longest_that_works(tokenizer, special_tokenizer):
    size = len(encode(tokenizer, prose("test")))
    with pytest.raises(ValueError, match=f"length=1000000 is out of range for this tokenizer: use 2 to {size}$"):
        Perplexity().samples(tokenizer, length=10**6, count=1, seed=0)
    with pytest.raises(ValueError, match=f"use 4 to {size + 1}$"):
        Perplexity().samples(special_tokenizer, length=3, count=1, seed=0)
    with pytest.raises(ValueError, match=r"length=1000000 exceeds the prose: use (\d+) or less") as error:
        Needle().samples(tokenizer, length=10**6, count=1, seed=0)
    longest = int(re.search(r"use (\d+)", str(error.value))[1])
    assert len(Needle().samples(tokenizer, length=longest, count=1, seed=0)[0].prompt_ids) == longest
