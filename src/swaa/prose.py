"""The English prose that ships with the library: one novel per split, so that calibration never sees the test text."""

import gzip
import random
import re
from functools import lru_cache
from importlib.resources import files
from typing import Literal, get_args

from swaa.registry import suggestion

Split = Literal["test", "calibration"]

_BOOKS: dict[Split, str] = {"test": "mansfield-park.txt.gz", "calibration": "emma.txt.gz"}

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
    if split not in _BOOKS:
        known = ", ".join(repr(name) for name in get_args(Split))
        raise ValueError(f"split={split!r} is unknown.{suggestion(split, _BOOKS)} Use one of {known}")


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


def passage(split: Split, start: int) -> str:
    """Return the text of a split from the first sentence that begins at or after character `start`, once around.

    The book's end is joined to its beginning like two paragraphs, so every passage is as long as the book.

    Raises:
        ValueError: `split` is unknown.
    """
    text = prose(split)
    end = _SENTENCE_END.search(text, start - 1) if start > 0 else None
    if end is None:
        return text
    return f"{text[end.start() :].lstrip()}\n\n{text[: end.start()]}"
