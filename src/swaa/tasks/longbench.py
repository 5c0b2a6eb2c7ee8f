"""LongBench-V2 (arXiv 2412.15204): multiple choice about long texts, by exact match of the option."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from swaa.prose import Split
from swaa.registry import check_choice
from swaa.tasks.base import Kind, Reasoning, Sample, encode, user_turn
from swaa.tasks.datafile import check_data_request, choose, read_rows

TooLong = Literal["cut", "leave-out"]

_NAME = "longbench-v2"
_FACTS = ("_id", "domain", "sub_domain", "difficulty", "length")
_CHOICES = ("choice_A", "choice_B", "choice_C", "choice_D")
_ORIGINAL = (*_FACTS, "question", *_CHOICES, "answer", "context")
_SIMPLE = ("prompt", "answer")

_TEXT = "Please read the following text and answer the {question} below.\n\n<text>\n"
_QUESTION = (
    "\n</text>\n\nWhat is the correct answer to this question: {question}\nChoices:\n"
    "(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}"
)
_FORMAT = '\n\nFormat your response as follows: "The correct answer is (insert answer here)".'
_PUBLISHED = (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])")
# After `Answer:` (`swaa.tasks.base.REASON_THEN_ANSWER`) a model may name the option alone.
_ALONE = r"^\(?([A-D])\b"


@dataclass(frozen=True)
class LongBenchV2:
    """A text and a question with four options, in the words of the published templates.

    Rows have the published schema, or `prompt` (all that the user says) and `answer` (a letter). `length` bounds
    prompt and answer. `meta` adds what `swaa.tasks.datafile.choose` does, `cut_tokens` (tokens cut out of the prompt's
    middle) and the published facts, `length` as `length_class`.

    Attributes:
        path: local file or hub id, see `swaa.tasks.datafile.read_rows`.
        too_long: what becomes of a longer prompt: `"cut"`: its middle is cut out, as published (the row is left out
            where that would touch the question); `"leave-out"`.
    """

    path: str | None = None
    too_long: TooLong = "cut"
    kind: ClassVar[Kind] = "generation"
    describe: ClassVar[str] = "LongBench-V2 (--data): multiple choice about long texts"
    max_new_tokens: ClassVar[int] = 128

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        check_choice("too_long", self.too_long, get_args(TooLong))

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

        Raises:
            ValueError: as in `Task.samples`; or there is no data set, its schema is unknown, or no row fits.
        """
        path = check_data_request(_NAME, self.path, length, count, split)
        before, after = user_turn(tokenizer, reasoning)
        rows = read_rows(path, [_ORIGINAL, _SIMPLE])
        room = length - self.max_new_tokens

        def make(row: dict[str, Any], meta: dict[str, Any]) -> tuple[Sample | None, int]:
            text, question = _said(row, reasoning)
            ids = encode(tokenizer, before + text + question + after)
            needed, cut = len(ids) + self.max_new_tokens, max(0, len(ids) - room)
            if cut and self.too_long == "cut" and question:
                first = room // 2
                # Twice the question: it must lie in the half that stays.
                needed = 2 * len(encode(tokenizer, question + after)) + self.max_new_tokens
                ids = ids[:first] + ids[len(ids) - (room - first) :]
            if needed > length:
                return None, needed
            facts = {"reasoning": reasoning, "cut_tokens": cut, **_facts(row)}
            answer = str(row["answer"])
            return Sample(tuple(ids), (), (), answer, meta | facts, (answer,)), needed

        return choose(rows, make, length=length, count=count, seed=seed, task=_NAME)

    def score(self, sample: Sample, text: str) -> float:
        """Return 1 if the option that `text` names is the answer, else 0, also if it names none in the asked form."""
        patterns = (*_PUBLISHED, _ALONE) if sample.meta["reasoning"] == "prompt" else _PUBLISHED
        return float(option(text, patterns) == sample.answer)


def option(text: str, patterns: tuple[str, ...] = _PUBLISHED) -> str | None:
    """Return the letter that `text` names by the first of the patterns that it holds; asterisks are ignored."""
    text = text.replace("*", "").strip()
    matches = (re.search(pattern, text) for pattern in patterns)
    return next((match[1] for match in matches if match), None)


def _said(row: dict[str, Any], reasoning: Reasoning) -> tuple[str, str]:
    """Return the text, and the question with what follows it; the question is empty where it is not known apart."""
    if "prompt" in row:
        return row["prompt"], ""
    parts = {name: str(row[name]).strip() for name in ("question", *_CHOICES)}
    # The published template for a chain of thought has the plural, and no format: an instruction to reason follows.
    steps = reasoning == "prompt"
    lead = _TEXT.format(question="questions" if steps else "question")
    return lead + row["context"].strip(), _QUESTION.format(**parts) + ("" if steps else _FORMAT)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    return {"length_class" if name == "length" else name: row[name] for name in _FACTS if name in row}
