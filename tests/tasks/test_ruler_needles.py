"""RULER's needles: keys, values, questions and haystacks are the published ones."""

import re

import pytest

from ruler_prompts import NEEDLE, PATTERNS, SYNTHETIC, context, make, parts
from swaa.prose import NOISE, prose
from swaa.tasks.ruler_needles import RulerNeedles

NEEDLES = [task for task in SYNTHETIC if "niah" in task]
# Published definitions (synthetic.yaml of RULER): haystack, key type, value type, keys, values, queries.
PUBLISHED = {
    "ruler-niah-single-1": ("noise", "words", "numbers", 1, 1, 1),
    "ruler-niah-single-2": ("essay", "words", "numbers", 1, 1, 1),
    "ruler-niah-single-3": ("essay", "words", "uuids", 1, 1, 1),
    "ruler-niah-multikey-1": ("essay", "words", "numbers", 4, 1, 1),
    "ruler-niah-multikey-2": ("needle", "words", "numbers", 1, 1, 1),
    "ruler-niah-multikey-3": ("needle", "uuids", "uuids", 1, 1, 1),
    "ruler-niah-multivalue": ("essay", "words", "numbers", 1, 4, 1),
    "ruler-niah-multiquery": ("essay", "words", "numbers", 1, 1, 4),
}


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_are_published_ones(plain_or_chat, task):
    hay, key_type, value_type, keys, values, queries = PUBLISHED[task]
    for sample in make(task, plain_or_chat, seed=1):
        said, prefix = parts(plain_or_chat, sample)
        lead, text, question = context(said)
        found = NEEDLE.findall(text)
        by_key = {key: [value for _, k, value in found if k == key] for _, key, _ in found}
        others = sample.meta["haystack_size"] if hay == "needle" else 0
        assert {kind for kind, _, _ in found} == {value_type}
        assert len(by_key) == max(keys, queries) + others
        assert all(PATTERNS[key_type].fullmatch(key) for key in by_key)
        # No value stands for two keys: the question has one answer.
        assert len({value for _, _, value in found}) == len(found) == max(keys, queries) * values + others
        assert all(PATTERNS[value_type].fullmatch(value) for _, _, value in found)
        asked = sample.meta["keys"]
        assert len(asked) == queries
        assert sorted(sample.references) == sorted(value for key in asked for value in by_key[key])
        assert len(sample.references) == queries * values
        # The order of the answers is that of the keys in the question.
        assert [key for key in asked for _ in range(values)] == [
            key for value in sample.references for _, key, v in found if v == value
        ]
        single = queries * values == 1
        kind = value_type.removesuffix("s") if single else value_type
        query = asked[0] if queries == 1 else f"{asked[0]}, {asked[1]}, {asked[2]}, and {asked[3]}"
        assert lead == (
            f"{'A' if single else 'Some'} special magic {kind} {'is' if single else 'are'} hidden within the following "
            f"text. Make sure to memorize it. I will quiz you about the {kind} afterwards."
        )
        assert question == (
            f"What {'is' if single else 'are all'} the special magic {kind} for {query} mentioned in the provided text?"
        )
        assert prefix == (
            f"The special magic {kind} for {query} mentioned in the provided text {'is' if single else 'are'}"
        )


@pytest.mark.parametrize("task", NEEDLES)
def test_haystacks_are_published_ones(tokenizer, task):
    hay = PUBLISHED[task][0]
    book = " ".join(prose("test").split())
    for sample in make(task, tokenizer, seed=2):
        _, text, _ = context(parts(tokenizer, sample)[0])
        lines = [line for line in text.split("\n") if not NEEDLE.fullmatch(line)]
        if hay == "noise":
            assert set(lines) == {NOISE}
            assert len(lines) == sample.meta["haystack_size"]
        elif hay == "needle":
            assert lines == []
        else:
            assert "\n" not in text
            pieces = [piece.strip() for piece in re.split(NEEDLE.pattern.replace("(", "(?:"), text)]
            assert sum(len(piece.split()) for piece in pieces) == sample.meta["haystack_size"]
            assert all(piece in book for piece in pieces)
            assert " ".join(filter(None, pieces)) in book
            # A needle stands between sentences.
            assert all(piece[-1] in ".!?\"'" for piece in pieces[:-1] if piece)


def test_no_key_comes_twice(tokenizer, monkeypatch):
    few = [f"red-{noun}" for noun in ("bed", "cup", "hat", "pen", "car", "map", "fan", "jar")]
    monkeypatch.setattr("swaa.tasks.ruler_needles.name", lambda rng, split: rng.choice(few))
    for sample in make("ruler-niah-multiquery", tokenizer, count=10):
        assert len(set(sample.meta["keys"])) == 4


def test_depths_are_where_the_asked_needles_are_and_fill_the_text(tokenizer):
    for task in ("ruler-niah-single-1", "ruler-niah-single-2", "ruler-niah-multikey-2", "ruler-niah-multivalue"):
        depths = []
        for sample in make(task, tokenizer, count=20):
            _, text, _ = context(parts(tokenizer, sample)[0])
            places = [text.index(f"is: {value}.") / len(text) for value in sample.references]
            assert sample.meta["depths"] == pytest.approx(places, abs=0.06)
            assert ("depth" in sample.meta) == (len(places) == 1)
            depths += sample.meta["depths"]
        assert min(depths) < 0.1
        assert max(depths) > 0.85
        assert 0.3 < sum(depths) / len(depths) < 0.7


def test_a_book_that_is_too_short_begins_again(tokenizer, monkeypatch):
    book = prose("test")[:3000]
    monkeypatch.setattr("swaa.prose.prose", lambda split: book)
    sample = make("ruler-niah-single-2", tokenizer, length=3000, count=1)[0]
    _, text, _ = context(parts(tokenizer, sample)[0])
    assert sample.meta["haystack_size"] > len(book.split())
    assert text.count(" ".join(book.split()[100:130])) >= 2


def test_words_as_values_and_numbers_as_keys(tokenizer):
    task = RulerNeedles(hay="essay", key_type="numbers", value_type="words", keys=2)
    sample = task.samples(tokenizer, length=1000, count=1, seed=0)[0]
    found = NEEDLE.findall(parts(tokenizer, sample)[0])
    assert all(PATTERNS["numbers"].fullmatch(key) and PATTERNS["words"].fullmatch(value) for _, key, value in found)
    assert "A special magic word is hidden" in parts(tokenizer, sample)[0]
