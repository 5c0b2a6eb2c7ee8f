"""A language model as judge of free answers: any OpenAI-compatible endpoint, with a cache and a strict reading."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from swaa.endpoint import Endpoint, Messages
from swaa.results import append_lines, read_lines
from swaa.tasks.base import remove_thinking

KEY_NAMES = ("SWAA_JUDGE_KEY", "OPENAI_API_KEY")

_EQUIVALENT = (
    "It is right if it contains the correct answer, is equivalent to it, or contains every intermediate step that "
    "leads to it. It is wrong if it contains only a part of what the correct answer says."
)
_OFF_BY_ONE = (
    " Where a number of days, weeks, months or the like is asked for, being off by one (19 days for 18) is no mistake."
)
_UPDATED = (
    "It is right if it contains the correct answer. Where it repeats older information beside the updated answer, it "
    "is right as long as the updated answer is the correct one."
)
_PREFERENCE = (
    "It is right if it satisfies the rubric. It need not cover every point of it: it is right as long as it recalls "
    "the user's personal information and uses it correctly."
)
_ABSTENTION = (
    "It is right if it recognises that the question cannot be answered: it may say that information is missing, or "
    "that something else is known but not what is asked."
)
# What counts as right, by LongMemEval's types of questions (arXiv 2410.10813, appendix A.4), in our words.
RULES = {
    "single-session-user": _EQUIVALENT,
    "single-session-assistant": _EQUIVALENT,
    "multi-session": _EQUIVALENT,
    "temporal-reasoning": _EQUIVALENT + _OFF_BY_ONE,
    "knowledge-update": _UPDATED,
    "single-session-preference": _PREFERENCE,
}
_CLEAR_LINE = re.compile(r"\W*(?:(?:verdict|answer|final answer)\W+)?(yes|no)\W*", re.IGNORECASE)
_CLEAR_START = re.compile(r"\W*(yes|no)\b\s*[.,;:!\u2013\u2014-]", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one answer.

    Args:
        correct: True or False; None if no reply, or no majority of the votes, was clear.
        agreement: the share of the votes that are like the verdict; 0 if there is none.
        replies: what the judge wrote, a reply a vote.
    """

    correct: bool | None
    agreement: float
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Agreement:
    """How a judge's verdicts compare with labels that are known to be right.

    Args:
        count: how many were compared.
        unparsed: verdicts that were not clear; they count as "wrong answer", as in every score.
        accuracy: share of the verdicts that are the label.
        kappa: Cohen's kappa (Cohen 1960): 1 is full agreement, 0 what chance gives; None where it is not defined.
    """

    count: int
    unparsed: int
    accuracy: float
    kappa: float | None


class Judge:
    """Asks a language model whether answers are right.

    Args:
        model: its name at the endpoint.
        url: base URL of the endpoint, such as `http://localhost:8000/v1`; None: OpenAI's.
        votes: how often each question is asked; more than once with temperature 1, and the majority wins.
        parallel: questions asked at the same time.
        retries: how often a request is sent again after a failure that may pass.

    Raises:
        EndpointError: the package `openai` or the key is missing.
        ValueError: `votes` is not positive.
    """

    def __init__(
        self,
        model: str,
        url: str | None = None,
        *,
        votes: int = 1,
        parallel: int = 8,
        retries: int = 6,
    ):
        if votes < 1:
            raise ValueError(f"votes={votes}: ask the judge at least once")
        self.model, self.url, self.votes, self.parallel = model, url, votes, parallel
        # LongMemEval's judge gets 10 tokens; a judge that thinks needs room.
        options = {"temperature": 0 if votes == 1 else 1, "max_tokens": 2048}
        self._endpoint = Endpoint(model, url, role="judge", keys=KEY_NAMES, retries=retries, options=options)
        self._cache: Path | None = None
        self._replies: dict[str, str] = {}
        self._lock = threading.Lock()

    def keep(self, cache: Path) -> None:
        """Keep replies in a JSONL file from now on, and ask nothing again that it already answers."""
        self._cache = cache
        self._replies = {row["key"]: row["reply"] for row in read_lines(cache)}

    def verdicts(
        self, questions: Sequence[Messages], progress: Callable[[int], None] = lambda done: None
    ) -> list[Verdict]:
        """Ask for a verdict on each question (`judge_messages`), several at a time.

        Raises:
            EndpointError: a request failed for good. Replies so far are in the cache.
        """
        found: list[Verdict] = []
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = [pool.submit(self.verdict, question) for question in questions]
            try:
                for future in futures:
                    found.append(future.result())
                    progress(len(found))
            finally:
                for future in futures:
                    future.cancel()
        return found

    def verdict(self, messages: Messages) -> Verdict:
        """Ask for a verdict on one question.

        Raises:
            EndpointError: the request failed for good.
        """
        return majority([self._reply(messages, vote) for vote in range(self.votes)])

    def _reply(self, messages: Messages, vote: int) -> str:
        key = hashlib.sha256(json.dumps([self.model, messages, self.votes > 1, vote]).encode()).hexdigest()
        if key not in self._replies:
            reply = self._endpoint.ask(messages).text
            with self._lock:
                self._replies[key] = reply
                if self._cache:
                    append_lines(self._cache, [{"key": key, "model": self.model, "reply": reply}])
        return self._replies[key]


def judge_messages(
    question: str, answer: str, response: str, *, question_type: str = "", abstention: bool = False
) -> Messages:
    """Return the messages that ask whether a response is right.

    Args:
        question: what the model was asked.
        answer: the correct answer; the rubric for `"single-session-preference"`, and the explanation for `abstention`.
        response: what the model said. Thinking text is left out.
        question_type: one of `RULES`; another one gets the rule of most.
        abstention: the question cannot be answered from the text.
    """
    said = remove_thinking(response)
    kind = (
        "Explanation" if abstention else "Rubric" if question_type == "single-session-preference" else "Correct answer"
    )
    rule = _ABSTENTION if abstention else RULES.get(question_type, _EQUIVALENT)
    name = "a question that cannot be answered, an explanation why" if abstention else f"a question, a {kind.lower()}"
    text = (
        f"You get {name}, and the response of a model. Decide whether the response is right. {rule}\n\n"
        f"Question: {question}\n\n{kind}: {answer}\n\nResponse: {said or ''}\n\n"
        "Is the response right? Reply with one word, yes or no."
    )
    return [{"role": "user", "content": text}]


def read_verdict(reply: str) -> bool | None:
    """Read a judge's reply: yes, no, or None if it is not clear.

    Clear is one word alone on the first or the last line, or at the start before a punctuation mark, if the other word
    does not occur at all. Thinking text does not count.
    """
    rest = (remove_thinking(reply) or "").strip()
    lines = rest.splitlines() or [""]
    marks = [_CLEAR_LINE.fullmatch(lines[0]), _CLEAR_LINE.fullmatch(lines[-1]), _CLEAR_START.match(rest)]
    words = {match[1].lower() for match in marks if match}
    said = {word.lower() for word in re.findall(r"\b(?:yes|no)\b", rest, re.IGNORECASE)}
    return words == {"yes"} if len(words) == 1 and said == words else None


def majority(replies: Sequence[str]) -> Verdict:
    """Make one verdict of the replies of several votes; none without a strict majority of all of them."""
    votes = [read_verdict(reply) for reply in replies]
    for correct in (True, False):
        if 2 * votes.count(correct) > len(votes):
            return Verdict(correct, votes.count(correct) / len(votes), tuple(replies))
    return Verdict(None, 0.0, tuple(replies))


def agreement(verdicts: Sequence[bool | None], labels: Sequence[bool]) -> Agreement:
    """Compare verdicts with labels, of people say.

    Raises:
        ValueError: there are none, or not as many of both.
    """
    if not verdicts or len(verdicts) != len(labels):
        raise ValueError(f"{len(verdicts)} verdicts and {len(labels)} labels cannot be compared: give a label each")
    count, judged = len(labels), [bool(verdict) for verdict in verdicts]
    accuracy = sum(a == b for a, b in zip(judged, labels, strict=True)) / count
    right, yes = sum(judged) / count, sum(labels) / count
    chance = right * yes + (1 - right) * (1 - yes)
    kappa = (accuracy - chance) / (1 - chance) if chance < 1 else None
    return Agreement(count, sum(verdict is None for verdict in verdicts), accuracy, kappa)
