"""RULER's lists of words: common and frequent ones as often as published, and words that no splits share."""

import math
import random
import re
from collections import Counter

import pytest

from ruler_prompts import PATTERNS, make, parts
from swaa.tasks.ruler_words import zeta
from swaa.tasks.words import shuffled_words, word_pairs, words


def listed(text):
    """Return the words of the numbered list in a text, its numbers checked."""
    entries = re.findall(r"(\d+)\. (\S+)", text)
    assert [int(number) for number, _ in entries] == list(range(1, len(entries) + 1))
    return [word for _, word in entries]


@pytest.mark.parametrize(
    ("length", "times", "example_times", "example_words"), [(3000, (6, 1), (3, 1), 20), (9000, (30, 3), (10, 3), 40)]
)
def test_common_words_are_as_common_as_published(tokenizer, length, times, example_times, example_words):
    for sample in make("ruler-cwe", tokenizer, length, count=2):
        said, prefix = parts(tokenizer, sample)
        lead = (
            "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones "
            "that appear most often.\n"
        )
        question = "\nQuestion: What are the 10 most common words in the above list?"
        answer = "Answer: The top 10 words that appear most often in the list are:"
        empty, example, task = said.split(lead)
        shown, solution = example.split(f"{question} {answer} ")
        assert empty == ""
        assert task.endswith(question)
        assert prefix == answer
        assert solution.endswith("\n")
        counts = Counter(listed(task.removesuffix(question)))
        assert set(listed(task.removesuffix(question))[:10]) != set(sample.references)
        assert sample.references == tuple(word for word in sample.references if counts[word] == times[0])
        assert len(sample.references) == 10
        assert Counter(counts.values()) == {times[0]: 10, times[1]: sample.meta["haystack_size"] - 10}
        counts = Counter(listed(shown))
        assert Counter(counts.values()) == {example_times[0]: 10, example_times[1]: example_words - 10}
        assert sorted(listed(solution)) == sorted(word for word in counts if counts[word] == example_times[0])


def test_more_words_than_the_list_has_are_names(tokenizer):
    rng = random.Random(0)
    source = shuffled_words(rng, "test")
    drawn = [next(source) for _ in range(len(words("test")) + 500)]
    assert sorted(drawn[:-500]) == list(words("test"))
    assert all(PATTERNS["words"].fullmatch(word) for word in drawn[-500:])
    assert len(set(drawn)) == len(drawn)


def test_frequencies_follow_zipfs_law(tokenizer):
    for sample in make("ruler-fwe", tokenizer, 3000):
        said, prefix = parts(tokenizer, sample)
        lead = (
            "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
            "appeared coded words. "
        )
        question = (
            "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most "
            "frequently appeared words in the above coded text?"
        )
        assert said.startswith(lead)
        assert said.endswith(question)
        assert prefix == ("Answer: According to the coded text above, the three most frequently appeared words are:")
        text = said[len(lead) : -len(question)].split(" ")
        assert len(set(text[:30])) > 1
        counts = Counter(text)
        (dots, most), *rest = counts.most_common()
        assert dots == "..."
        size = sample.meta["haystack_size"]
        expected = [int(size * 6 / math.pi**2 / rank**2) for rank in range(1, 3000 // 50 + 1)]
        assert [most, *(count for _, count in rest)] == [count for count in expected if count]
        assert sample.references == tuple(word for word, _ in rest[:3])
        assert rest[2][1] > rest[3][1]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in rest)


def test_the_shortest_frequent_words_still_have_three_winners(tokenizer):
    with pytest.raises(ValueError, match="length=60 has no room for this task: use") as error:
        make("ruler-fwe", tokenizer, 60)
    shortest = int(re.search(r"use (\d+)", str(error.value))[1])
    for sample in make("ruler-fwe", tokenizer, shortest):
        counts = Counter(re.findall(r"\b[a-z]{6}\b", parts(tokenizer, sample)[0].split("words. ")[1].split("\n")[0]))
        assert {word for word, _ in counts.most_common(3)} == set(sample.references)
        assert counts.most_common(4)[2][1] > (counts.most_common(4)[3:] or [("", 0)])[0][1]


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5])
def test_zeta(alpha):
    known = {1.5: 2.612375348685488, 2.0: math.pi**2 / 6, 3.5: 1.1267338673170566}
    assert zeta(alpha) == pytest.approx(known[alpha], rel=1e-7)


def test_splits_share_no_words():
    assert not set(words("test")) & set(words("calibration"))
    for split in ("test", "calibration"):
        listed = words(split)
        adjectives, nouns = word_pairs(split)
        assert len(listed) > 4000
        assert all(re.fullmatch("[a-z]{4,}", word) for word in listed)
        assert not {"that", "with", "would", "they"} & set(listed)
        assert set(adjectives) | set(nouns) <= set(listed)
        assert not set(adjectives) & set(nouns)
        assert len(adjectives) * len(nouns) > 100_000
    with pytest.raises(ValueError, match="split='tset' is unknown"):
        words("tset")
