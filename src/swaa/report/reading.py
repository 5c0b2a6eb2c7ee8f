"""Reading result folders, of `swaa eval` and of `swaa compare`, into one form: a `Run`."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

# What a row of results says, in the order of the tables.
FIELDS = (
    *("recipe", "task", "length", "reasoning", "count", "score", "low", "high", "score_ratio", "nll", "perplexity"),
    *("unparsed", "truncated", "judge_agreement", "prefill_seconds", "kv_bytes"),
)
FORMAT = 1


class ResultsError(ValueError):
    """A path that holds no results, or damaged ones; the message names it and the fix."""


@dataclass(frozen=True)
class Run:
    """One run: what was measured, and all that is needed to make it again.

    Attributes:
        name: of its folder, unique in a report.
        command: that made it.
        model: name or path.
        settings: what was asked for.
        recipes: content of each recipe's file (`Recipe.to_dict`), by name.
        rows: one a recipe, task, length and reasoning, with the keys `FIELDS`; None is not known.
        costs: prefill_seconds, prefill_flops_ratio (to full attention) and kv_bytes, by recipe and length.
        layers: "full", "sliding" or "native" for each layer, by recipe; empty: not recorded.
        model_config: depth and kind of the model.
        environment: versions and hardware.
        depths: (recipe, task, length, reasoning, depth, score) of each sample with a needle; depth and score 0 to 1.
        sessions: the starts that filled the folder, where it was continued.
        facts: what else the folder says about the run, such as its seed.
    """

    name: str
    command: str
    model: str
    settings: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    rows: list[dict[str, Any]]
    costs: dict[str, dict[int, dict[str, float | None]]]
    layers: dict[str, list[str]] = field(default_factory=dict)
    model_config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    depths: list[tuple[str, str, int, str, float, float]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> str | None:
        """Name of the recipe that is full attention, None if there is none."""
        configs = {name: recipe.get("config", {}) for name, recipe in self.recipes.items()}
        return next((name for name, config in configs.items() if config.get("window") is None), None)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read result folders; folders of the same name are told apart by their parents, or by a number.

    Raises:
        ResultsError: a folder holds no results, unfinished ones or damaged ones, or is given twice.
    """
    folders = [Path(path) for path in paths]
    places = Counter(folder.resolve() for folder in folders)
    if twice := [folder for folder in folders if places[folder.resolve()] > 1]:
        raise ResultsError(f"{twice[0]} is given twice: name every result folder once")
    runs: list[Run] = []
    names = Counter(folder.resolve().name for folder in folders)
    for folder in folders:
        place = folder.resolve()
        name = place.name if names[place.name] == 1 else f"{place.parent.name}/{place.name}"
        taken = sum(run.name.partition(" (")[0] == name for run in runs)
        runs.append(_read_run(folder, f"{name} ({taken + 1})" if taken else name))
    return runs


def _read_run(folder: Path, name: str) -> Run:
    if not folder.exists():
        raise ResultsError(f"{folder} does not exist: give a folder that `swaa eval` or `swaa compare` wrote")
    if not folder.is_dir():
        raise ResultsError(f"{folder} is a file: give the folder that `swaa eval` or `swaa compare` wrote")
    if (folder / "run.json").exists():
        return _evaluation(folder, name)
    if (folder / "results.json").exists():
        return _comparison(folder, name)
    inside = sorted(path.parent for kind in ("run.json", "results.json") for path in folder.glob(f"*/{kind}"))
    hint = "give a folder that `swaa eval` or `swaa compare` wrote"
    if inside:
        hint = f"give the result folders inside, such as {inside[0]}" + f" ({len(inside)} there)" * (len(inside) > 1)
    raise ResultsError(f"{folder} holds no results (no run.json, no results.json): {hint}")


def _evaluation(folder: Path, name: str) -> Run:
    path = folder / "run.json"
    content = _json(path)
    if content.get("format") != FORMAT:
        raise ResultsError(
            f"{path}: format {content.get('format')!r} is not the format {FORMAT} that this version of swaa reads: "
            "make the report with the version that made the results"
        )
    summary = folder / "summary.json"
    if not summary.exists():
        raise ResultsError(f"{folder} is not finished (no summary.json): run its `swaa eval` again, which continues it")
    table = _json(summary, list)
    if not table:
        raise ResultsError(f"{summary} has no rows: run its `swaa eval` again, which continues it")
    known = {"command", "model", "settings", "recipes", "layers", "model_config", "environment", "cost", "format"}
    known |= {"sessions"}
    return Run(
        name=name,
        command=_get(content, "command", path, str),
        model=_get(content, "model", path, str),
        settings=_get(content, "settings", path, dict),
        recipes=_get(content, "recipes", path, dict),
        rows=[_row(row, summary) for row in table],
        costs=_costs(content.get("cost") or {}, path),
        layers=content.get("layers") or {},
        model_config=content.get("model_config") or {},
        environment=content.get("environment") or {},
        depths=list(_depths(folder / "samples.jsonl")),
        sessions=content.get("sessions") or [],
        facts={key: value for key, value in content.items() if key not in known},
    )


def _comparison(folder: Path, name: str) -> Run:
    path = folder / "results.json"
    content = _json(path)
    settings, table = _get(content, "settings", path, dict), _get(content, "table", path, list)
    if not table:
        raise ResultsError(f"{path} has no rows: run its `swaa compare` again")
    try:
        task, length, count = settings["task"], settings["length"], settings["samples"]
        rows, costs = [], {}
        for row in table:
            cost = {key: row[key] for key in ("prefill_seconds", "kv_bytes")}
            shared = {"recipe": row["recipe"], "length": length, "reasoning": "none", **cost}
            accuracy = {"score": row["accuracy"], "low": row["accuracy_low"], "high": row["accuracy_high"]}
            accuracy |= {"nll": row["nll"], "score_ratio": row["accuracy_ratio"]}
            prose = {"count": settings["perplexity_samples"], "perplexity": row["perplexity"]}
            rows.append(_row({**shared, "task": task, "count": count, **accuracy}, path))
            rows.append(_row({**shared, "task": "perplexity", **prose}, path))
            costs[row["recipe"]] = {length: {"prefill_flops_ratio": row.get("prefill_flops_ratio"), **cost}}
        depths = [
            (each["recipe"], task, length, "none", each["meta"]["depth"], float(each["correct"]))
            for each in content.get("predictions", ())
            if _is_depth(each["meta"].get("depth"))
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is no results.json of `swaa compare`: {_reason(error)}") from error
    return Run(
        name=name,
        command=_get(content, "command", path, str),
        model=_get(content, "model", path, str),
        settings=settings,
        recipes=_get(content, "recipes", path, dict),
        rows=rows,
        costs=costs,
        layers=content.get("layers") or {},
        environment=content.get("environment") or {},
        depths=depths,
        facts={"seconds": content["seconds"]} if "seconds" in content else {},
    )


def _row(row: Any, path: Path) -> dict[str, Any]:
    """Return a row with all `FIELDS` in their order."""
    missing = [key for key in ("recipe", "task", "length", "reasoning", "count") if key not in row]
    if missing:
        raise ResultsError(f"{path}: a row has no {missing[0]!r}; make the results again with `swaa eval`")
    return {key: row.get(key, 0 if key in ("unparsed", "truncated") else None) for key in FIELDS}


def _costs(content: dict[str, Any], path: Path) -> dict[str, dict[int, dict[str, float | None]]]:
    try:
        return {recipe: {int(length): dict(cost) for length, cost in by.items()} for recipe, by in content.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ResultsError(f"{path}: 'cost' is no table of recipes and lengths ({error})") from error


def _depths(path: Path) -> Iterator[tuple[str, str, int, str, float, float]]:
    """Yield the samples whose needle has a known depth; without the file there are none."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                sample = json.loads(line)
                depth, score = (sample.get("meta") or {}).get("depth"), sample["score"]
                key = (sample["recipe"], sample["task"], sample["length"], sample["reasoning"])
            except (ValueError, KeyError, AttributeError) as error:
                raise ResultsError(f"{path}, line {number}: no sample of `swaa eval`: {_reason(error)}") from error
            if _is_depth(depth) and score is not None:
                yield (*key, float(depth), float(score))


def _is_depth(depth: Any) -> TypeGuard[float]:
    return isinstance(depth, int | float) and 0 <= depth <= 1


def _json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path}: {error}") from error
    if not isinstance(content, kind):
        raise ResultsError(f"{path} holds no {kind.__name__}: it was not written by `swaa eval` or `swaa compare`")
    return content


def _get(content: dict[str, Any], key: str, path: Path, kind: type) -> Any:
    if not isinstance(content.get(key), kind):
        raise ResultsError(f"{path} has no {key!r} ({kind.__name__}): it was not written by `swaa eval` or `compare`")
    return content[key]


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
