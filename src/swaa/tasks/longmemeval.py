"""LongMemEval (arXiv 2410.10813): questions about a long history of chats; a judge decides what is right."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from swaa.prose import Split
from swaa.tasks.base import Kind, Reasoning, Sample, encode, user_turn
from swaa.tasks.datafile import check_data_request, choose, read_rows

_NAME = "longmemeval"
_ORIGINAL = (
    "question_id",
    "question_type",
    "question",
    "answer",
    "question_date",
    "haystack_dates",
    "haystack_sessions",
)
_SIMPLE = ("prompt", "question", "answer")

_LEAD = (
    "I will give you several history chats between you and a user. Please answer the question based on the relevant "
    "chat history."
)
_STEPS = (
    " Answer the question step by step: first extract all the relevant information, and then reason over the "
    "information to get the answer."
)
_HISTORY = "\n\n\nHistory Chats:\n\n"
_SESSION = "\n### Session {number}:\nSession Date: {date}\nSession Content:\n\n{turns}\n"


@dataclass(frozen=True)
class LongMemEval:
    """The history of chats as JSON, then the date and the question, in the words of the published long-context run.

    Rows have the published schema (any of the files S, M, oracle), or `prompt` (all that the user says), `question` and
    `answer`. `length` bounds prompt and answer; a longer sample is left out. `meta` adds what
    `swaa.tasks.datafile.choose` does, `question`, and for the published schema `question_id`, `question_type` and
    `abstention`.

    Attributes:
        path: local file or hub id, see `swaa.tasks.datafile.read_rows`.
    """

    path: str | None = None
    kind: ClassVar[Kind] = "generation"
    describe: ClassVar[str] = "LongMemEval (--data): answer from a long chat history; needs a judge"
    max_new_tokens: ClassVar[int] = 500
    judged: ClassVar[bool] = True

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

        def make(row: dict[str, Any], meta: dict[str, Any]) -> tuple[Sample | None, int]:
            said = _said(row, reasoning)
            # Without a chat template both would end with "Answer:".
            ending = after.removeprefix("\nAnswer:") if said.endswith("\nAnswer:") else after
            ids = encode(tokenizer, before + said + ending)
            needed = len(ids) + self.max_new_tokens
            facts = {"reasoning": reasoning, "question": row["question"], **_kind(row)}
            # Some answers are numbers.
            answer = str(row["answer"])
            sample = Sample(tuple(ids), (), (), answer, meta | facts, (answer,))
            return sample if needed <= length else None, needed

        return choose(rows, make, length=length, count=count, seed=seed, task=_NAME)

    def score(self, sample: Sample, text: str) -> None:
        """Return None: only a judge can tell."""


def _said(row: dict[str, Any], reasoning: Reasoning) -> str:
    if "prompt" in row:
        asked = "" if row["question"] in row["prompt"] else f"\n\nQuestion: {row['question']}"
        return f"{row['prompt']}{asked}"
    # The oracle file's sessions are not in the order of time.
    sessions = sorted(zip(row["haystack_dates"], row["haystack_sessions"], strict=True), key=lambda pair: pair[0])
    history = "".join(
        _SESSION.format(number=number, date=date, turns=json.dumps([_turn(turn) for turn in turns]))
        for number, (date, turns) in enumerate(sessions, 1)
    )
    lead = _LEAD + _STEPS if reasoning == "prompt" else _LEAD
    asked = f"\n\nCurrent Date: {row['question_date']}\nQuestion: {row['question']}"
    # An instruction to reason follows where the model is asked to.
    return f"{lead}{_HISTORY}{history}{asked}" + ("" if reasoning == "prompt" else "\nAnswer:")


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a turn without the mark `has_answer` on the evidence."""
    return {"role": turn["role"], "content": turn["content"]}


def _kind(row: dict[str, Any]) -> dict[str, Any]:
    if "question_id" not in row:
        return {"question_type": "", "abstention": False}
    identifier = str(row["question_id"])
    return {"question_id": identifier, "question_type": row["question_type"], "abstention": "_abs" in identifier}
