"""RULER's two aggregation tasks: the most common words of a list, the most frequent words of a coded text."""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from swaa.prose import Split
from swaa.tasks.ruler import Draft, Ruler
from swaa.tasks.words import shuffled_words

_LIST_LEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
    "appear most often.\n"
)
_LIST_QUESTION = "\nQuestion: What are the {common} most common words in the above list?"
_LIST_PREFIX = "Answer: The top {common} words that appear most often in the list are:"
# Below this length RULER repeats words less often: (common, uncommon) in the list and in its example.
_SHORT = 4096
_SHORT_TIMES, _SHORT_EXAMPLE = (6, 1), (3, 1)
_EXAMPLE = (10, 3)
_SHORT_EXAMPLE_WORDS, _EXAMPLE_WORDS = 20, 40

_CODED_LEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared "
    "coded words. "
)
_CODED_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently "
    "appeared words in the above coded text?"
)
_CODED_PREFIX = "Answer: According to the coded text above, the three most frequently appeared words are:"
_CODED_LETTERS = 6
_TOKENS_A_CODED_WORD = 50
_MARK = "..."


@dataclass(frozen=True)
class RulerCommonWords(Ruler):
    """A numbered list in which some words stand more often than all others, after a solved example.

    The haystack's size is the number of different words.

    Attributes:
        common: how many words are common.
        times: how often each of them stands in the list, from a length of 4096 on; below it is 6.
        uncommon_times: how often every other word does, from a length of 4096 on; below it is 1.
    """

    common: int = 10
    times: int = 30
    uncommon_times: int = 3
    max_new_tokens: ClassVar[int] = 120

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        if not 1 <= self.common < _SHORT_EXAMPLE_WORDS:
            raise ValueError(f"common={self.common} is out of range: use 1 to {_SHORT_EXAMPLE_WORDS - 1}")
        if not 1 <= self.uncommon_times < self.times:
            raise ValueError(f"times={self.times} must exceed uncommon_times={self.uncommon_times}, 1 or more")

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return f"RULER: name the {self.common} most common words of a numbered list"

    def draft(self, tokenizer: Any, stream: str, index: int, split: Split, length: int) -> Draft:
        """Draw the words of the example and of the list: see `Ruler.draft`."""
        rng = random.Random(f"{stream}/{index}")
        short = length < _SHORT
        shown = list(islice(shuffled_words(rng, split), _SHORT_EXAMPLE_WORDS if short else _EXAMPLE_WORDS))
        drawn: list[str] = []
        source: Iterator[str] = shuffled_words(rng, split)

        def problem(words: list[str], times: tuple[int, int]) -> str:
            entries = words[: self.common] * times[0] + words[self.common :] * times[1]
            random.Random(f"{stream}/{index}/{len(words)}").shuffle(entries)
            return _LIST_LEAD + _numbered(entries) + _LIST_QUESTION.format(common=self.common)

        prefix = _LIST_PREFIX.format(common=self.common)
        solution = _numbered(shown[: self.common])
        example = f"{problem(shown, _SHORT_EXAMPLE if short else _EXAMPLE)} {prefix} {solution}\n"

        def said(size: int) -> tuple[str, dict[str, Any]]:
            drawn.extend(islice(source, max(0, size - len(drawn))))
            return example + problem(drawn[:size], _SHORT_TIMES if short else (self.times, self.uncommon_times)), {}

        said(self.common + 1)
        return Draft(said=said, prefix=prefix, references=tuple(drawn[: self.common]), smallest=self.common + 1)


@dataclass(frozen=True)
class RulerFrequentWords(Ruler):
    """A text of coded words whose frequencies fall as Zipf's law has it; the dots that come first count as noise.

    The haystack's size is RULER's number of words; the text has somewhat fewer, because each word's share is rounded
    down. There are `length // 50` different words, of 6 letters.

    Attributes:
        alpha: exponent of the frequencies, above 1: word `k` has the share `k ** -alpha / zeta(alpha)`.
    """

    alpha: float = 2.0
    max_new_tokens: ClassVar[int] = 50
    describe: ClassVar[str] = "RULER: name the three most frequent words of a coded text"

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        if not self.alpha > 1:
            raise ValueError(f"alpha={self.alpha}: such frequencies have no sum; use more than 1")

    def draft(self, tokenizer: Any, stream: str, index: int, split: Split, length: int) -> Draft:
        """Draw the coded words: see `Ruler.draft`."""
        rng = random.Random(f"{stream}/{index}")
        coded: dict[str, None] = {_MARK: None}
        while len(coded) < max(length // _TOKENS_A_CODED_WORD, 5):
            coded["".join(rng.choices(string.ascii_lowercase, k=_CODED_LETTERS))] = None
        words = list(coded)
        total = zeta(self.alpha)

        def count(rank: int, size: int) -> int:
            return int(size * rank**-self.alpha / total)

        def said(size: int) -> tuple[str, dict[str, Any]]:
            text = [word for rank, word in enumerate(words, 1) for _ in range(count(rank, size))]
            random.Random(f"{stream}/{index}/{size}").shuffle(text)
            return _CODED_LEAD + " ".join(text) + _CODED_QUESTION, {}

        smallest = 1
        while count(4, smallest) <= count(5, smallest):
            smallest += 1
        return Draft(said=said, prefix=_CODED_PREFIX, references=tuple(words[1:4]), smallest=smallest)


def zeta(alpha: float) -> float:
    """Return Riemann's zeta function for a real argument above 1, by 19 terms and Euler and Maclaurin's remainder."""
    terms = 20
    head = sum(k**-alpha for k in range(1, terms))
    return head + terms ** (1 - alpha) / (alpha - 1) + terms**-alpha / 2 + alpha * terms ** (-alpha - 1) / 12


def _numbered(words: list[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
