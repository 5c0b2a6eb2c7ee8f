"""The English prose that ships with the library: one novel per split, so that calibration never sees the test text."""

import gzip
import random
import re
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

from swaa.registry import check_choice

Split = Literal["test", "calibration"]
Haystack = Literal["prose", "noise"]

_BOOKS: dict[Split, str] = {"test": "mansfield-park.txt.gz", "calibration": "emma.txt.gz"}

# RULER's haystack without a book.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

# A token of English prose holds 3 to 5 characters: slots of 5 do not overlap, a slice of 10 is always long enough.
_SLOT_CHARS, _SLICE_CHARS = 5, 10

# A full stop after a title or a single initial ends no sentence.
_SENTENCE_END = re.compile(
    r"""(?: (?<=[.!?]) | (?<=[.!?]["']) )
        (?<!\bMr\.) (?<!\bMrs\.) (?<!\bDr\.) (?<!\bSt\.) (?<!\bRev\.) (?<!\b[A-Z]\.)
        (?= \s+ ["']? [A-Z] )""",
    re.VERBOSE,
)


@lru_cache(maxsize=len(_BOOKS))
def prose(split: Split) -> str:
    r"""Return the whole text of a split, about 880,000 characters (200,000 tokens).

    A paragraph is one line; `"\n\n"` separates two. Sources and licence: `text/LICENSE.md` in the package.

    Args:
        split: `"test"` (Mansfield Park) or `"calibration"` (Emma).

    Raises:
        ValueError: `split` is neither.
    """
    check_split(split)
    return gzip.decompress(files("swaa").joinpath("text", _BOOKS[split]).read_bytes()).decode().strip()


def check_split(split: str) -> None:
    """Raise `ValueError` unless `split` names a split of the prose."""
    check_choice("split", split, get_args(Split))


def sentence_ends(text: str) -> list[int]:
    """Return the positions `p`, ascending, where `text[:p]` ends a sentence and more text follows. 0 is the first."""
    return [0, *(match.start() for match in _SENTENCE_END.finditer(text))]


def place(total: int, size: int, index: int, stream: str, *, around: bool = False) -> int:
    """Return where sample `index` starts in a text of `total` units when a sample takes `size` of them.

    The first `total // size` samples lie side by side, in random order, and share nothing. Later ones start anywhere
    and overlap others.

    Args:
        total: length of the text, in characters or tokens.
        size: length of a sample, in the same unit, at most `total`.
        index: the sample's number, from 0.
        stream: names the random stream: the same name gives the same places.
        around: a sample may run past the end and go on at the beginning.
    """
    slots = total // size
    if index < slots:
        return random.Random(f"{stream}/slots").sample(range(slots), slots)[index] * size
    return random.Random(f"{stream}/overlapping/{index}").randrange(total if around else total - size + 1)


def haystack(kind: Haystack, split: Split, *, tokens: int, index: int, stream: str) -> tuple[int, str]:
    """Return the text that hides sample `index`'s needles: it begins with a sentence and is longer than needed.

    Args:
        kind: `"prose"`: a part of the split's book, another one for each index as long as the book suffices;
            `"noise"`: RULER's five sentences again and again, from a random one on.
        split: the book.
        tokens: the text has at least as many (only a book that is shorter comes back whole).
        index: the sample's number, from 0.
        stream: names the random stream.

    Returns:
        The character of the book or of the noise where it was cut, and the text.
    """
    chars = tokens * _SLICE_CHARS
    if kind == "noise":
        start = random.Random(f"{stream}/noise/{index}").choice(sentence_ends(NOISE))
        return start, (f"{NOISE} " * (chars // len(NOISE) + 2))[start:].lstrip()
    book = prose(split)
    start = place(len(book), min(tokens * _SLOT_CHARS, len(book)), index, stream, around=True)
    end = _SENTENCE_END.search(book, start - 1) if start > 0 else None
    cut = end.start() if end else 0
    # The book goes around: its end is followed by its beginning, as by a new paragraph.
    return start, f"{book[cut:].lstrip()}\n\n{book[:cut]}".rstrip()[:chars]
