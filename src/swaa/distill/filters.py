"""Which answers become training data: finished ones, right ones."""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.distill.prompts import Prompt
from swaa.distill.teachers import Request
from swaa.endpoint import Reply
from swaa.judge import Judge, judge_messages
from swaa.registry import suggestion
from swaa.tasks.base import final_answer, remove_thinking

NAMES = ("length", "exact", "judge")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Filters:
    """What an answer must pass. Cheap filters come first: a judge is asked only about what passes the others.

    Args:
        names: `"length"`: the model ended it itself, and it has `min_tokens`; `"exact"`: it is the right answer (all of
            it, or what follows its last `Answer:`), capitals, punctuation, articles and spaces aside (as SQuAD counts,
            arXiv 1606.05250); `"judge"`: a language model says that it is right.
        min_tokens: what an answer has at least; the most is where it was cut off.
        judge: needed for `"judge"`.

    Raises:
        ValueError: a name is unknown, or the judge is missing.
    """

    names: tuple[str, ...] = ("length",)
    min_tokens: int = 1
    judge: Judge | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in self.names:
            if name not in NAMES:
                raise ValueError(f"unknown filter {name!r}.{suggestion(name, NAMES)} Known: {', '.join(NAMES)}")
        if "judge" in self.names and self.judge is None:
            raise ValueError("the filter 'judge' needs a judge: name its model")
        if self.min_tokens < 1:
            raise ValueError(f"min_tokens={self.min_tokens}: use 1 or more")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise `ValueError` if a prompt has no right answer that a filter needs."""
        if needing := [name for name in ("exact", "judge") if name in self.names]:
            missing = next((prompt.row for prompt in prompts if not prompt.reference), None)
            if missing is not None:
                raise ValueError(
                    f"the filter {needing[0]!r} needs the right answer, and row {missing + 1} has no `answer`: add it, "
                    "or filter by length only"
                )

    def describe(self) -> dict[str, Any]:
        """Return what the record says about them: JSON values."""
        judge = {"model": self.judge.model, "votes": self.judge.votes} if self.judge else None
        return {"names": list(self.names), "min_tokens": self.min_tokens, "judge": judge}

    def apply(
        self,
        prompts: Sequence[Prompt],
        replies: Mapping[Request, Reply],
        progress: Callable[[str, int, int], None] = lambda text, done, total: None,
    ) -> dict[Request, dict[str, bool]]:
        """Judge answers by each filter in turn, until one is not passed.

        Args:
            prompts: what was asked.
            replies: the answers to it.
            progress: called with a text, the verdicts of the judge so far, and all of them.

        Returns:
            for each answer the verdicts, by name of the filter; the last one says whether it is kept.

        Raises:
            EndpointError: the judge cannot be reached.
        """
        of_row = {prompt.row: prompt for prompt in prompts}
        # Nobody can learn from nothing.
        verdicts = {request: {"length": bool(reply.text.strip())} for request, reply in replies.items()}
        if "length" in self.names:
            for request, reply in replies.items():
                verdicts[request]["length"] &= reply.finished and (reply.tokens or self.min_tokens) >= self.min_tokens
        if "exact" in self.names:
            for request in _passed(verdicts):
                right = str(of_row[request.row].reference)
                verdicts[request]["exact"] = is_exact(replies[request].text, right)
        if "judge" in self.names and self.judge:
            waiting = _passed(verdicts)
            questions = [
                judge_messages(prompt.question, str(prompt.reference), replies[request].text)
                for request in waiting
                for prompt in (of_row[request.row],)
            ]
            found = self.judge.verdicts(questions, lambda done: progress("judging", done, len(waiting)))
            for request, verdict in zip(waiting, found, strict=True):
                verdicts[request]["judge"] = bool(verdict.correct)
        return verdicts


def _passed(verdicts: Mapping[Request, dict[str, bool]]) -> list[Request]:
    return [request for request, found in verdicts.items() if all(found.values())]


def is_exact(text: str, reference: str) -> bool:
    """Tell whether an answer, or what follows its last `Answer:`, is the right one but for the way it is written.

    Args:
        text: what the model said. Thinking text is left out.
        reference: the right answer.
    """
    said, (last, _) = remove_thinking(text), final_answer(text, "prompt")
    return simplify(reference) in {simplify(answer) for answer in (said, last) if answer}


def simplify(text: str) -> str:
    """Return `text` without capitals, punctuation, articles and superfluous spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())
