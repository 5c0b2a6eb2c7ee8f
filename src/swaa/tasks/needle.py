"""Needles: sentences with a magic number, hidden in a long text, and a question about one of them."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from swaa.prose import Haystack, Split, haystack, sentence_ends
from swaa.registry import check_choice
from swaa.tasks.base import (
    Kind,
    Reasoning,
    Sample,
    check_request,
    continuation_ids,
    correct_text,
    encode,
    user_turn,
)
from swaa.tasks.words import name

# Adjectives and nouns of the keys; no word is in both splits.
_WORDS: dict[Split, tuple[str, str]] = {
    "test": (
        "amber brave clever distant early frozen gentle hollow idle jolly lively mellow narrow orange patient quiet",
        "anchor basket candle dragon engine falcon farm hammer island jacket kettle lantern meadow orchard road tower",
    ),
    "calibration": (
        "ancient bright calm dusty eager famous golden humble joyful keen lonely modern noble polite royal silver",
        "apple bridge castle desert eagle forest guitar harbor insect jungle ladder mirror notebook ocean pillow shed",
    ),
}
_MOST_KEYS = 16
_MIN_HAYSTACK = 32
# Where a text is cut, its last tokens may be others.
_USUAL_CHARS, _SPARE_TOKENS = 5, 32


@dataclass(frozen=True)
class Wording:
    """How needles are told and asked for; `{key}` stands for the key.

    Attributes:
        introduction: what the user says before the text.
        stem: the needle up to its answer; the forced prefix repeats it.
        question: what the user says after the text.
        answers: `"number"` (of `Needle.digits` digits) or `"name"` (`swaa.tasks.words.name`).
    """

    introduction: str = (
        "Read the following text carefully. Some facts about magic numbers are hidden in it. Remember them, and then "
        "answer the question at the end of the text."
    )
    stem: str = "The special magic number for {key} is"
    question: str = "What is the special magic number for {key}?"
    answers: Literal["number", "name"] = "number"


@dataclass(frozen=True)
class Needle:
    """A retrieval task: `keys` needles in a haystack, one of them asked for.

    The prompt is a user turn of the tokenizer's chat template, or plain text where it has none: an introduction, the
    haystack with needles, the question. The forced prefix repeats the asked needle up to its number, and the answer is
    the number. `meta` adds `key` (the asked one), `depth` (the part of the haystack's characters in
    front of the asked needle), `position` (index of its first token in `prompt_ids`) and `start` (character of the
    book or of the noise where the haystack begins, before moving to the next sentence).

    Attributes:
        keys: how many needles, 1 to 16; all but one are distractors.
        haystack: `"prose"`, or `"noise"`: RULER's repeated sentences, joined by spaces.
        depth: range of the depths, 0 to 1. Each is drawn from it, then moved to the nearest sentence boundary inside
            the range; a range without any (a point, a prompt below some 200 tokens) takes the nearest one at all.
        digits: digits of a number.
        wording: the texts around haystack and answers.
    """

    keys: int = 1
    haystack: Haystack = "prose"
    depth: tuple[float, float] = (0.05, 0.70)
    digits: int = 7
    wording: Wording = Wording()
    kind: ClassVar[Kind] = "retrieval"

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        check_choice("haystack", self.haystack, get_args(Haystack))
        is_pair = isinstance(self.depth, tuple | list) and len(self.depth) == 2
        if not is_pair or not 0 <= self.depth[0] <= self.depth[1] <= 1:
            raise ValueError(f"depth={self.depth!r} is no range: use (low, high) with 0 <= low <= high <= 1")
        if self.digits < 1:
            raise ValueError(f"digits={self.digits} leaves no number: use 1 or more")
        most = min(_MOST_KEYS, 9 * 10 ** (self.digits - 1))
        if not 1 <= self.keys <= most:
            raise ValueError(f"keys={self.keys} is out of range: use 1 to {most} with digits={self.digits}")

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        where = "English prose" if self.haystack == "prose" else "repeated sentences"
        return f"recall {f'one of {self.keys} numbers' if self.keys > 1 else 'a number'} hidden in {where}"

    @property
    def max_new_tokens(self) -> int:
        """Room for the sentence with the number, whatever the tokenizer."""
        return 32 + self.digits

    def samples(
        self,
        tokenizer: Any,
        *,
        length: int,
        count: int,
        seed: int,
        split: Split = "test",
        reasoning: Reasoning = "none",
    ) -> list[Sample]:
        """Make samples: see `Task.samples`.

        Different samples use different parts of the prose as long as it suffices (about 170,000 tokens in all).

        Raises:
            ValueError: as in `Task.samples`; or `length` has no room for needles, question and 32 tokens of haystack,
                or is longer than the prose.
        """
        check_request(length, count, split)
        drafts = [self._draft(tokenizer, seed, split, index, reasoning) for index in range(count)]
        shortest = max(draft.fixed for draft in drafts) + _MIN_HAYSTACK
        if length < shortest:
            raise ValueError(f"length={length} has no room for needle, question and haystack: use {shortest} or more")
        return [self._sample(tokenizer, draft, length) for draft in drafts]

    def score(self, sample: Sample, text: str) -> float:
        """Return 1 if the number stands in the text as a whole number, else 0."""
        return float(correct_text(sample, text))

    def _draft(self, tokenizer: Any, seed: int, split: Split, index: int, reasoning: Reasoning) -> "_Draft":
        rng = random.Random(f"needle/{split}/{seed}/{index}")
        adjectives, nouns = (rng.sample(listed.split(), self.keys) for listed in _WORDS[split])
        keys = [f"{a} {n}" for a, n in zip(adjectives, nouns, strict=True)]
        answers: list[str] = []
        while len(answers) < self.keys:
            answer = self._answer(rng, split)
            answers += [answer] if answer not in answers else []
        said = self.wording
        stems = [said.stem.format(key=key) for key in keys]
        needles = [f"{stem} {answer}." for stem, answer in zip(stems, answers, strict=True)]
        before, after = user_turn(tokenizer, reasoning)
        question = f"\n\n{said.question.format(key=keys[0])}{after}"
        prefix = stems[0] if after.endswith("\n") else f" {stems[0]}"
        lead = encode(tokenizer, f"{before}{said.introduction}\n\n")
        question_ids = continuation_ids(tokenizer, "a", question)
        return _Draft(
            needles=needles,
            depths=[rng.uniform(*self.depth) for _ in needles],
            lead_ids=lead,
            question_ids=question_ids,
            prefix_ids=continuation_ids(tokenizer, question, prefix),
            answer_ids=continuation_ids(tokenizer, question + prefix, f" {answers[0]}"),
            answer=answers[0],
            fixed=len(lead) + len(question_ids) + sum(len(encode(tokenizer, f" {needle}")) for needle in needles),
            meta={"index": index, "seed": seed, "split": split, "key": keys[0]},
        )

    def _answer(self, rng: random.Random, split: Split) -> str:
        if self.wording.answers == "name":
            return name(rng, split)
        return str(rng.randrange(10 ** (self.digits - 1), 10**self.digits))

    def _sample(self, tokenizer: Any, draft: "_Draft", length: int) -> Sample:
        room = length - draft.fixed
        meta = draft.meta
        stream = f"needle/{meta['split']}/{meta['seed']}"
        start, text = haystack(self.haystack, meta["split"], tokens=room, index=meta["index"], stream=stream)
        kept, text = _beginning(tokenizer, text, room)
        if len(kept) < room:
            longest = draft.fixed + len(kept)
            raise ValueError(f"length={length} exceeds the prose: use {longest} or less, or haystack='noise'")
        chars = len(tokenizer.decode(kept))
        low, high = self.depth[0] * chars, self.depth[1] * chars
        ends = [end for end in sentence_ends(text) if end <= chars]
        ends = [end for end in ends if low <= end <= high] or ends
        points = [min(ends, key=lambda end: abs(end - depth * chars)) for depth in draft.depths]
        context, copied, position = "", 0, 0
        for number, point in sorted(enumerate(points), key=lambda pair: pair[1]):
            context, copied = context + text[copied:point], point
            position = len(encode(tokenizer, context)) if number == 0 else position
            context += f" {draft.needles[number]}" if point else f"{draft.needles[number]} "
        # Cut after encoding the whole, so that the joints around the needles are the tokenizer's own.
        body = encode(tokenizer, context + text[copied:])[: length - len(draft.lead_ids) - len(draft.question_ids)]
        return Sample(
            prompt_ids=(*draft.lead_ids, *body, *draft.question_ids),
            prefix_ids=tuple(draft.prefix_ids),
            answer_ids=tuple(draft.answer_ids),
            answer=draft.answer,
            meta=meta | {"depth": points[0] / chars, "position": len(draft.lead_ids) + position, "start": start},
        )


def _beginning(tokenizer: Any, text: str, count: int) -> tuple[list[int], str]:
    """Return the first tokens of a text, and a beginning of it that holds some more than these."""
    # Most prose has fewer characters a token; encoding is what takes the time.
    begun = text[: _USUAL_CHARS * count]
    ids = encode(tokenizer, begun)
    if len(ids) < count + _SPARE_TOKENS:
        begun, ids = text, encode(tokenizer, text)
    return ids[:count], begun


@dataclass(frozen=True)
class _Draft:
    """What of a sample does not depend on its length. Needle 0 is the one asked for."""

    needles: list[str]
    depths: list[float]
    lead_ids: list[int]
    question_ids: list[int]
    prefix_ids: list[int]
    answer_ids: list[int]
    answer: str
    fixed: int  # tokens of the prompt that are no haystack
    meta: dict[str, Any]
