"""The summary of a run: a row a recipe, task, length and chain of thought, with 95 % intervals."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swaa.evaluate import accuracy_interval, exponential, mean_nll
from swaa.results import replace_json, write_csv
from swaa.runs.folder import key_of
from swaa.runs.settings import Cell, RunSettings
from swaa.tasks import TASKS

_RESAMPLES = 10_000


def summarise(rows: Sequence[dict[str, Any]], run: dict[str, Any]) -> list[dict[str, Any]]:
    """Summarise the lines of `samples.jsonl`.

    Args:
        rows: the lines.
        run: the content of `run.json`.

    Returns:
        rows of one set of keys. `score` is the mean over all samples that have one; samples without a readable answer
        count as 0 (`unparsed`, `truncated`). `nll` is the mean, `perplexity` its exponential in tasks without scores,
        both None where one sample's is not finite (`overflows`). `judge_agreement` is the mean share of the judge's
        votes that agree, `score_ratio` is to full attention.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["task"], row["length"], row["reasoning"]), []).append(row)
    names = list(run["recipes"])
    ordered = sorted(groups, key=lambda key: names.index(key[0]))
    summary = [_summary_row(key, groups[key], run["cost"]) for key in ordered]
    full = {(x["task"], x["length"], x["reasoning"]): x["score"] for x in summary if x["recipe"] == names[0]}
    for row in summary:
        base = full.get((row["task"], row["length"], row["reasoning"]))
        row["score_ratio"] = row["score"] / base if base and row["score"] is not None else None
    return summary


def overflows(
    summary: Sequence[dict[str, Any]], rows: Iterable[dict[str, Any]], settings: RunSettings
) -> Iterator[str]:
    """Yield a line for each row of the summary that has no NLL or no perplexity, because it is no finite number.

    Args:
        summary: from `summarise`.
        rows: the lines of `samples.jsonl`.
        settings: of the run.
    """
    keys = [key_of(row) for row in rows if row["nll"] is None]
    lost = Counter((key.recipe, key.cell) for key in keys)
    for row in summary:
        cell = Cell(row["task"], row["length"], row["reasoning"])
        what = f"{row['recipe']}, {cell.task} at {cell.length} tokens"
        count = 0 if settings.is_free(cell) else lost[row["recipe"], cell]
        if count:
            yield f"{what}: the NLL of {count} of {row['count']} samples is not finite, so the row has none"
        elif TASKS[cell.task].kind == "perplexity" and row["perplexity"] is None:
            yield f"{what}: the perplexity is not finite at an NLL of {row['nll']:.0f}, so the row has none"


def score_interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of a mean score.

    Wilson's for scores that are all 0 or 1. Otherwise the percentile bootstrap with 10,000 resamples and a fixed seed
    (Efron and Tibshirani 1993, section 13.3). Where all scores are the same, a resample cannot differ: Wilson's again,
    which is wide enough because no scores between 0 and 1 vary more than those that are 0 or 1.

    Args:
        scores: 0 to 1 each, at least one.
    """
    if len(set(scores)) == 1 or all(score in (0, 1) for score in scores):
        return accuracy_interval(math.fsum(scores), len(scores))
    random, values = np.random.default_rng(0), np.asarray(scores, dtype=np.float64)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def write_summary(folder: Path, summary: Sequence[dict[str, Any]]) -> None:
    """Write `summary.json` and `summary.csv`."""
    replace_json(folder / "summary.json", list(summary))
    write_csv(folder / "summary.csv", summary)


def _summary_row(key: tuple[Any, ...], rows: Sequence[dict[str, Any]], costs: dict[str, Any]) -> dict[str, Any]:
    recipe, task, length, reasoning = key
    scores = [row["score"] for row in rows if row["score"] is not None]
    votes = [row["meta"]["judge"]["agreement"] for row in rows if "judge" in row["meta"]]
    low, high = score_interval(scores) if scores else (None, None)
    nll = mean_nll([row["nll"] for row in rows])
    cost = costs.get(recipe, {}).get(str(length), {})
    return {
        "recipe": recipe,
        "task": task,
        "length": length,
        "reasoning": reasoning,
        "count": len(rows),
        "score": math.fsum(scores) / len(scores) if scores else None,
        "low": low,
        "high": high,
        "nll": nll,
        "perplexity": None if scores else exponential(nll),
        "unparsed": sum(row["unparsed"] for row in rows),
        "truncated": sum(row["truncated"] for row in rows),
        "judge_agreement": math.fsum(votes) / len(votes) if votes else None,
        "prefill_seconds": cost.get("prefill_seconds"),
        "kv_bytes": cost.get("kv_bytes"),
    }
