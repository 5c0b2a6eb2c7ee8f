"""Word lists for tasks, read off the shipped novels; the splits share no word."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from swaa.prose import Split, check_split, prose

# Endings that make most of their words adjectives, or nouns: good enough for names, and no list to license.
_ADJECTIVE = re.compile(r"..+(?:ful|less|ous|able|ible|ive|ish|ical|onal|ual|some)")
_NOUN = re.compile(r"..+(?:ness|ment|tion|sion|ity|ance|ence|ship|ure|hood|dom|age|ism|ery|ency|ancy)")
_WORD = re.compile(r"(?<![\w'’-])[a-z]{4,}(?![\w'’-])")
# The most frequent words (that, with, would, ...) name nothing.
_TOO_FREQUENT = 100


@lru_cache(maxsize=2)
def words(split: Split) -> tuple[str, ...]:
    """Return the words of 4 letters or more of both novels that belong to a split, in alphabetical order.

    About 4,200 a split. A hash of its letters decides which split a word belongs to.

    Args:
        split: `"test"` or `"calibration"`.

    Raises:
        ValueError: `split` is neither.
    """
    check_split(split)
    counts = Counter(_WORD.findall(prose("test") + "\n" + prose("calibration")))
    frequent = {word for word, _ in counts.most_common(_TOO_FREQUENT)}
    parity = int(split == "calibration")
    return tuple(sorted(w for w in counts if w not in frequent and _hash(w) % 2 == parity))


@lru_cache(maxsize=2)
def word_pairs(split: Split) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the adjectives and the nouns among a split's `words`, told by their endings: some 250 and 450."""
    listed = words(split)
    nouns = tuple(filter(_NOUN.fullmatch, listed))
    return tuple(word for word in listed if _ADJECTIVE.fullmatch(word) and word not in nouns), nouns


def name(rng: random.Random, split: Split) -> str:
    """Draw an adjective and a noun joined by a hyphen, such as `"graceful-amusement"`; over 100,000 a split."""
    adjectives, nouns = word_pairs(split)
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def shuffled_words(rng: random.Random, split: Split) -> Iterator[str]:
    """Yield a split's words in random order, each once, and after them names (`name`), each once, without end."""
    listed = words(split)
    yield from rng.sample(listed, len(listed))
    used: set[str] = set()
    while True:
        new = name(rng, split)
        if new not in used:
            used.add(new)
            yield new


def _hash(word: str) -> int:
    return hashlib.sha256(word.encode()).digest()[0]
