"""Scores from a judge, for the samples of a run whose task leaves them open."""

from collections.abc import Callable, Sequence
from typing import Any

from swaa.judge import Judge, judge_messages
from swaa.tasks import TASKS


def is_open(row: dict[str, Any]) -> bool:
    """Tell whether a line of `samples.jsonl` waits for a judge."""
    return row["score"] is None and TASKS[row["task"]].kind != "perplexity"


def check_judge(model: str, tasks: Sequence[str]) -> None:
    """Raise `ValueError` if a judge has been named, but none of the tasks leaves its scores to one."""
    if not any(map(_needs_judge, tasks)):
        raise ValueError(
            f"--judge-model {model}: nothing is left to a judge by the tasks {', '.join(tasks)}; leave it out, or "
            f"choose one that needs a judge: {', '.join(filter(_needs_judge, TASKS))}"
        )


def _needs_judge(name: str) -> bool:
    return getattr(TASKS[name], "judged", False)


def judge_rows(
    rows: list[dict[str, Any]], judge: Judge, progress: Callable[[str, int, int], None] = lambda text, done, total: None
) -> None:
    """Give every open line its score: 1, or 0 where the judge says no or says nothing clear (`unparsed`).

    `meta["judge"]` keeps the replies and the share of the votes that agree with the verdict.

    Args:
        rows: lines of `samples.jsonl`; changed only when all verdicts are there.
        judge: the judge.
        progress: called with a text, the verdicts so far, and all of them.

    Raises:
        EndpointError: the judge cannot be reached. Verdicts so far are in its cache.
    """
    waiting = [row for row in rows if is_open(row)]
    if not waiting:
        return
    questions = [
        judge_messages(
            row["meta"]["question"],
            row["references"][0],
            row["answer"],
            question_type=row["meta"].get("question_type", ""),
            abstention=row["meta"].get("abstention", False),
        )
        for row in waiting
    ]
    verdicts = judge.verdicts(questions, lambda done: progress("judge", done, len(waiting)))
    for row, verdict in zip(waiting, verdicts, strict=True):
        row["score"], row["unparsed"] = float(bool(verdict.correct)), verdict.correct is None
        row["meta"] = row["meta"] | {"judge": {"replies": list(verdict.replies), "agreement": verdict.agreement}}
