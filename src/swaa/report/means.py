"""Means over tasks, with intervals, and the overview table: one row a recipe."""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from swaa.report.reading import Run

# Name of the mean over all tasks that have a score; no task is called so.
MEAN = ""
REASONING = {"none": "no reasoning", "prompt": "reasoning asked for", "thinking": "thinking on"}


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval.

    Attributes:
        value: 0 to 1.
        low: lower end, None if not known.
        high: upper end, None if not known.
        count: samples.
        unparsed: samples without an answer, or without a verdict of the judge, that could be read.
        truncated: samples whose reasoning was cut off before an answer.
    """

    value: float
    low: float | None
    high: float | None
    count: int
    unparsed: int = 0
    truncated: int = 0


@dataclass(frozen=True)
class OverviewRow:
    """What the overview says about a recipe under one kind of reasoning; every cost is for the longest length.

    Attributes:
        recipe: its name.
        reasoning: "none", "prompt" or "thinking".
        scores: mean over the tasks, by length; None where it lacks a task that others have.
        ratio: score of the longest length to that of full attention.
        perplexity: of the longest length at which a recipe of the run has one.
        cost: prefill_seconds, prefill_flops_ratio, kv_bytes; None is not known.
        cost_ratio: prefill_seconds and kv_bytes to those of full attention.
    """

    recipe: str
    reasoning: str
    scores: dict[int, Score | None]
    ratio: float | None
    perplexity: float | None
    cost: dict[str, float | None]
    cost_ratio: dict[str, float | None]


def lengths(run: Run) -> list[int]:
    """Return the lengths of a run, ascending."""
    return sorted({row["length"] for row in run.rows})


def reasonings(run: Run) -> list[str]:
    """Return the kinds of reasoning of a run, without reasoning first."""
    found = {row["reasoning"] for row in run.rows}
    return sorted(found, key=[*REASONING, *sorted(found - set(REASONING))].index)


def scored_tasks(run: Run, length: int | None = None, reasoning: str | None = None) -> list[str]:
    """Return the tasks with a score in their order, all or those of one length and kind of reasoning."""
    chosen = [row for row in run.rows if length in (None, row["length"]) and reasoning in (None, row["reasoning"])]
    return list(dict.fromkeys(row["task"] for row in chosen if row["score"] is not None))


def row_score(row: dict[str, Any]) -> Score | None:
    """Return the score of one row of results."""
    if row["score"] is None:
        return None
    ends = row["low"], row["high"]
    return Score(row["score"], *ends, row["count"], row["unparsed"] or 0, row["truncated"] or 0)


def mean_score(scores: Sequence[Score]) -> Score:
    """Average scores of different tasks, each task counting alike.

    The interval is Zou and Donner's (Statistics in Medicine 27, 2008, "MOVER") for a sum of independent estimates: the
    distances of the ends add up in squares, so it keeps the asymmetry of intervals near 0 and 1.
    """
    value = math.fsum(score.value for score in scores) / len(scores)

    def end(sign: int, ends: Iterable[float | None]) -> float | None:
        far = [None if e is None else (e - score.value) / len(scores) for e, score in zip(ends, scores, strict=True)]
        known = [distance for distance in far if distance is not None]
        return value + sign * math.hypot(*known) if len(known) == len(far) else None

    low, high = end(-1, [score.low for score in scores]), end(1, [score.high for score in scores])
    counts = (sum(getattr(score, name) for score in scores) for name in ("count", "unparsed", "truncated"))
    return Score(value, low, high, *counts)


def score_of(run: Run, recipe: str | None, tasks: Collection[str], length: int, reasoning: str) -> Score | None:
    """Return a recipe's mean score over exactly these tasks; None if it lacks one, or there is none."""
    where = (recipe, length, reasoning)
    rows = [row for row in run.rows if (row["recipe"], row["length"], row["reasoning"]) == where]
    found = {row["task"]: score for row in rows if row["task"] in tasks and (score := row_score(row))}
    if not found or len(found) < len(tasks):
        return None
    return mean_score(list(found.values())) if len(found) > 1 else next(iter(found.values()))


def recipe_names(run: Run) -> list[str]:
    """Return the recipes with results, in the run's order."""
    return list(dict.fromkeys(row["recipe"] for row in run.rows))


def cost_of(run: Run, recipe: str | None, length: int) -> dict[str, float | None]:
    """Return what a prefill costs; from the rows where the run has no table of costs."""
    cost: dict[str, float | None] = {"prefill_seconds": None, "prefill_flops_ratio": None, "kv_bytes": None}
    for row in run.rows:
        if (row["recipe"], row["length"]) == (recipe, length):
            cost |= {key: row[key] for key in ("prefill_seconds", "kv_bytes") if row[key] is not None}
    return cost | {key: x for key, x in run.costs.get(recipe or "", {}).get(length, {}).items() if x is not None}


def overview(run: Run) -> list[OverviewRow]:
    """Return the overview of a run: one row a recipe and kind of reasoning."""
    all_lengths = lengths(run)
    longest, rows = all_lengths[-1], []
    for reasoning in reasonings(run):
        for recipe in recipe_names(run):
            if not any((row["recipe"], row["reasoning"]) == (recipe, reasoning) for row in run.rows):
                continue
            scores = {x: score_of(run, recipe, scored_tasks(run, x, reasoning), x, reasoning) for x in all_lengths}
            full = score_of(run, run.full, scored_tasks(run, longest, reasoning), longest, reasoning)
            cost, full_cost = cost_of(run, recipe, longest), cost_of(run, run.full, longest)
            rows.append(
                OverviewRow(
                    recipe,
                    reasoning,
                    scores,
                    ratio(getattr(scores[longest], "value", None), getattr(full, "value", None)),
                    _perplexity(run, recipe),
                    cost,
                    {key: ratio(cost[key], full_cost[key]) for key in ("prefill_seconds", "kv_bytes")},
                )
            )
    return rows


def ratio(value: float | None, full: float | None) -> float | None:
    """Return how many times `full` a value is; None if one is not known or `full` is 0."""
    return None if value is None or not full else value / full


def _perplexity(run: Run, recipe: str) -> float | None:
    # A recipe that has none at that length gets none: that of a shorter one compares with no other recipe's.
    rows = [row for row in run.rows if row["perplexity"] is not None]
    longest = max((row["length"] for row in rows), default=None)
    own = (row["perplexity"] for row in rows if (row["recipe"], row["length"]) == (recipe, longest))
    return next(own, None)
