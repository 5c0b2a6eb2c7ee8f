"""RULER's eight needle tasks: magic numbers, words or UUIDs in a haystack, and a question about some of them."""

import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from swaa.prose import NOISE, Split, haystack, sentence_ends
from swaa.registry import check_choice
from swaa.tasks.ruler import Draft, Ruler
from swaa.tasks.words import name

Hay = Literal["noise", "essay", "needle"]
Magic = Literal["numbers", "words", "uuids"]

_LEAD = (
    "{some} special magic {magic} {are} hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {magic} afterwards.\n"
)
_QUESTION = "\nWhat {are_all} the special magic {magic} for {query} mentioned in the provided text?"
_PREFIX = "The special magic {magic} for {query} mentioned in the provided text {are}"
_NEEDLE = "One of the special magic {magic} for {key} is: {value}."
# RULER draws depths among 40 percentages from 0 to 100.
_DEPTHS = [round(100 * step / 39) for step in range(40)]
_FEWEST = {"noise": 5, "needle": 5, "essay": 50}


@dataclass(frozen=True)
class RulerNeedles(Ruler):
    """Needle in a haystack, all eight variants.

    `meta` adds `keys` (the asked ones), `depths` (in the order of `references`: the part of the text's characters in
    front of each asked needle) and, where one is asked for, `depth`.

    Attributes:
        hay: `"noise"`: RULER's five sentences, a line each time; `"essay"`: prose, needles between its sentences;
            `"needle"`: lines like the needle, each with a key and a value of its own.
        key_type: what the keys are; `"words"` are an adjective and a noun joined by a hyphen.
        value_type: what the values are; numbers have 7 digits.
        keys: how many keys are hidden, beside those of a needle haystack; `queries` if that is more.
        values: how many values each key has, a needle each.
        queries: how many keys are asked for, all in one question.
    """

    hay: Hay = "noise"
    key_type: Magic = "words"
    value_type: Magic = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    max_new_tokens: ClassVar[int] = 128

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        for field, known in (("hay", get_args(Hay)), ("key_type", get_args(Magic)), ("value_type", get_args(Magic))):
            check_choice(field, getattr(self, field), known)
        for field in ("keys", "values", "queries"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} leaves nothing to find: use 1 or more")
        if (needles := max(self.keys, self.queries) * self.values) > len(_DEPTHS):
            raise ValueError(f"{needles} needles (keys times values) are too many: use {len(_DEPTHS)} or fewer")

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        asked = self.queries * self.values
        what = {"numbers": "number", "words": "word", "uuids": "UUID"}[self.value_type]
        where = {"noise": "repeated sentences", "essay": "prose", "needle": "lines like it"}[self.hay]
        of = f" for {self.queries} keys" if self.queries > 1 else f" among {self.keys}" if self.keys > 1 else ""
        return f"RULER: recall {f'{asked} {what}s' if asked > 1 else f'a {what}'}{of}, hidden in {where}"

    def draft(self, tokenizer: Any, stream: str, index: int, split: Split, length: int) -> Draft:
        """Draw keys, values and places: see `Ruler.draft`."""
        rng = random.Random(f"{stream}/{index}")
        fresh = _fresh(rng, split)
        keys = [fresh(self.key_type) for _ in range(max(self.keys, self.queries))]
        values = {key: [fresh(self.value_type) for _ in range(self.values)] for key in keys}
        asked = rng.sample(keys, self.queries)
        needles = [self._needle(key, value) for key in keys for value in values[key]]
        rng.shuffle(needles)
        wanted = [self._needle(key, value) for key in asked for value in values[key]]
        single = len(wanted) == 1
        parts = {
            "magic": self.value_type.removesuffix("s") if single else self.value_type,
            "query": asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}",
            "some": "A" if single else "Some",
            "are": "is" if single else "are",
            "are_all": "is" if single else "are all",
        }
        if self.hay == "essay":
            _, text = haystack("prose", split, tokens=length, index=index, stream=stream)
            hide = _in_prose(text.split(), needles, sorted(rng.sample(_DEPTHS, len(needles))))
        elif self.hay == "noise":
            hide = _in_lines(lambda: NOISE, needles, f"{stream}/{index}")
        else:
            hide = _in_lines(
                lambda: self._needle(fresh(self.key_type), fresh(self.value_type)), needles, f"{stream}/{index}"
            )

        def said(size: int) -> tuple[str, dict[str, Any]]:
            text = hide(size)
            depths = [text.index(needle) / len(text) for needle in wanted]
            facts: dict[str, Any] = {"depths": depths} | ({"depth": depths[0]} if single else {})
            return _LEAD.format(**parts) + text + _QUESTION.format(**parts), facts

        return Draft(
            said=said,
            prefix=_PREFIX.format(**parts),
            references=tuple(value for key in asked for value in values[key]),
            smallest=max(_FEWEST[self.hay], len(needles)),
            meta={"keys": asked},
        )

    def _needle(self, key: str, value: str) -> str:
        return _NEEDLE.format(magic=self.value_type, key=key, value=value)


def _fresh(rng: random.Random, split: Split) -> Callable[[Magic], str]:
    """Return what draws keys and values, none twice: RULER may repeat one, and then has a question with two answers."""
    used: set[str] = set()

    def draw(kind: Magic) -> str:
        while True:
            if kind == "words":
                new = name(rng, split)
            elif kind == "numbers":
                new = str(rng.randrange(10**6, 10**7))
            else:
                new = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            if new not in used:
                used.add(new)
                return new

    return draw


def _in_lines(line: Callable[[], str], needles: list[str], stream: str) -> Callable[[int], str]:
    """Return what hides the needles, a line each, at random places among so many lines."""
    lines: list[str] = []

    def hide(size: int) -> str:
        # The first lines are the same whatever the size.
        lines.extend(line() for _ in range(size - len(lines)))
        text = lines[:size]
        places = random.Random(f"{stream}/{size}").sample(range(size), len(needles))
        for place, needle in zip(sorted(places, reverse=True), needles, strict=True):
            text.insert(place, needle)
        return "\n".join(text)

    return hide


def _in_prose(words: list[str], needles: list[str], depths: list[int]) -> Callable[[int], str]:
    """Return what hides the needles between the sentences of so many words, at these percentages of the sentences."""

    def hide(size: int) -> str:
        # A book that is too short begins again, as RULER's essays do.
        text = " ".join((words * (size // len(words) + 1))[:size])
        starts = [*sentence_ends(text), len(text)]
        cuts = [starts[(len(starts) - 1) * depth // 100] for depth in depths]
        pieces = [text[begin:end].strip() for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        woven = [piece for pair in zip(pieces, needles, strict=False) for piece in pair] + pieces[-1:]
        return " ".join(filter(None, woven))

    return hide
