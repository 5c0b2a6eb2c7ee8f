"""What `benchmarks/reproduce.py` measured, in `benchmarks/reproduce/`: tables, plots and the HTML report.

`table.csv` has all, `table.md` the means over lengths, `paper.md` and `report-WINDOW.html` the recipes of the paper's
table and ours beside them; `NAME-arithmetic.png`, `-prefill.png` and `-kv.png` set accuracy against cost. What is
published already, of models and windows that are not among the results, stays. `reproduce.py` calls it.
"""

import contextlib
import csv
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from reproduce import FULL, ORIGINAL, PARTS, TIMING, Cell, Variant, grid

from swaa.models import DEFAULT_MODEL
from swaa.report import plots
from swaa.report.export import write_report
from swaa.report.pareto import pareto_front
from swaa.report.reading import Run, read_runs
from swaa.results import read_lines, replace_json, replace_lines, write_csv, write_json
from swaa.runs.summary import summarise

# As in arXiv 2512.10411, then what it does not have. `sinks` of 100 stand for a quarter of the window here.
PAPER = [
    *(("none", 0, False), ("none", 10, False), ("none", 0, True), ("1 in 2", 0, False), ("none", 100, True)),
    *(("1 in 2", 0, True), ("1 in 4", 0, True), ("1 in 4", 10, True), ("1 in 2", 10, True), ("1 in 2", 100, True)),
]
OURS = [
    *(("none", 10, True, 1), ("none", 100, True, 1), ("1 in 2", 100, True, 1)),
    *(("4 chosen", 10, True, 0), ("4 chosen", 100, True, 1)),
    *(("4 chosen to release", 100, False, 1), ("8 chosen to release", 100, False, 1)),
]
# A task's column in the short tables.
TASKS = {
    "needle": "needle",
    "needle-multikey": "multi-key",
    "ruler-niah-multiquery": "multi-query",
    "ruler-vt": "variables",
}


def collect(cells: Sequence[Cell], results: Path, publish: Path, command: str) -> None:
    """Write what is published, from cells that may still lack recipes; `command` measured them."""
    begun = [cell for cell in cells if cell.part != TIMING and (results / cell.name / "samples.jsonl").exists()]
    if not begun and not (publish / "table.csv").exists():
        print("nothing is complete yet: there is nothing to collect")
        return
    publish.mkdir(parents=True, exist_ok=True)
    timed = {
        cell.window: {(row["recipe"], row["length"]): row for row in read_lines(results / f"{cell.name}.jsonl")}
        for cell in cells
        if cell.part == TIMING
    }
    tables = _published(publish / "table.csv")
    folders: dict[int, list[Path]] = {}
    file = publish / "table.json"
    there = json.loads(file.read_text()) if file.exists() else {"commands": [], "environments": []}
    environments = {json.dumps(found): found for found in there["environments"]}
    for weights, window in dict.fromkeys((cell.weights, cell.window) for cell in begun):
        own = [cell for cell in begun if (cell.weights, cell.window) == (weights, window)]
        folder = results / "runs" / f"{weights}-{window}"
        content, summary = _merge(own, results, folder, timed.get(window, {}), command)
        folders.setdefault(window, []).append(folder)
        earlier = tables.get((weights, window), [])
        tables[weights, window] = _table(weights, window, summary, content["cost"], earlier)
        for session in content["sessions"]:
            environments[json.dumps(session["environment"])] = session["environment"]
    for row in (row for rows in timed.values() for row in rows.values()):
        environments[json.dumps(row["environment"])] = row["environment"]
    order = list(dict.fromkeys((cell.weights, cell.window) for cell in cells))
    keys = sorted(tables, key=lambda key: order.index(key) if key in order else len(order))
    for weights, window in keys:
        rows = tables[weights, window]
        for row in rows:
            _add_times(row, timed.get(window, {}))
        _plots(rows, f"{DEFAULT_MODEL}, {weights} weights, window {window}", publish / f"{weights}-{window}")
    table = [row for key in keys for row in tables[key]]
    columns = list(dict.fromkeys(name for row in table for name in row))
    write_csv(publish / "table.csv", [{name: row.get(name) for name in columns} for row in table])
    (publish / "table.md").write_text(markdown(table), encoding="utf-8")
    (publish / "paper.md").write_text(markdown([row for row in table if row["listed"]]), encoding="utf-8")
    left = [cell.name for cell in cells if cell.part != TIMING and not _complete(cell, tables.get(cell[:2], []))]
    commands = [*dict.fromkeys([*there["commands"], command])]
    write_json(file, {"commands": commands, "not_complete": left, "environments": [*environments.values()]})
    runs = {cell[:2] for cell in begun}
    for window, paths in folders.items():
        page = publish / f"report-{window}.html"
        lacking = [x for x in cells if x.window == window and x.part != TIMING and x[:2] in runs and x not in begun]
        if page.exists() and lacking:
            print(f"{page} stays: {results} lacks {lacking[0].name}")
        else:
            write_report([_short(run, window) for run in read_runs(paths)], page)
    print(f"{len(begun)} cells collected in {publish}, {len(left)} are not complete")


def _complete(cell: Cell, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether a table has all of a cell, which fills a column of each of its tasks."""
    return bool(rows) and all(row.get(f"{PARTS[cell.part].tasks[0]}_{cell.length}") is not None for row in rows)


def _published(file: Path) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Return the rows of a table that was written before, by weights and window."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    if file.exists():
        with file.open(encoding="utf-8") as lines:
            for texts in csv.DictReader(lines):
                row = {name: _value(text) for name, text in texts.items()}
                found.setdefault((row["weights"], row["window"]), []).append(row)
    return found


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _add_times(row: dict[str, Any], times: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Add what was timed of a row's recipe.

    The tail is over when decoding begins, so the recipe without it was timed there.
    """
    full = row["recipe"] == FULL
    stands_for = FULL if full else Variant(row["layers"], row["sinks"], row["fa_decode"], 0).name
    for (recipe, length), measured in times.items():
        if recipe == row["recipe"] and row.get(f"prefill_flops_ratio_{length}") is not None:
            known = {key: measured[key] for key in ("prefill_seconds", "kv_bytes") if measured.get(key)}
            row |= {f"{key}_{length}": value for key, value in known.items()}
        if recipe == stands_for and measured.get("decode_ms"):
            row["decode_ms"] = measured["decode_ms"]


def _short(run: Run, window: int) -> Run:
    """Leave only the recipes of the short table: a page of all would be too long to read, and 6 MB."""
    names = {FULL, *(point.name for point in grid(window) if _listed(point, window))}
    return dataclasses.replace(
        run,
        recipes={name: recipe for name, recipe in run.recipes.items() if name in names},
        rows=[row for row in run.rows if row["recipe"] in names],
        costs={name: costs for name, costs in run.costs.items() if name in names},
        layers={name: layers for name, layers in run.layers.items() if name in names},
        depths=[depth for depth in run.depths if depth[0] in names],
    )


def _merge(
    cells: Sequence[Cell], results: Path, folder: Path, times: Mapping[tuple[str, int], Mapping[str, Any]], command: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make one run, as `swaa report` reads it, of the cells of one model and window; return its content and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [json.loads((results / cell.name / "run.json").read_text()) for cell in cells]
    recipes = {name: recipe for part in parts for name, recipe in part["recipes"].items()}
    # FA decode and tail are not measured on prose: the recipe without them stands for it.
    plain = {FULL: FULL} | {x.name: x._replace(fa_decode=False, tail=0).name for x in grid(cells[0].window)}
    costs: dict[str, dict[str, dict[str, Any]]] = {}
    for part in parts:
        for name, by_length in part["cost"].items():
            for length, cost in by_length.items():
                measured = times.get((name, int(length)), {})
                known = {key: measured[key] for key in ("prefill_seconds", "kv_bytes") if measured.get(key)}
                costs.setdefault(name, {})[length] = cost | known
    measured_rows: dict[str, list[dict[str, Any]]] = {}
    for cell, part in zip(cells, parts, strict=True):
        for row in summarise(read_lines(results / cell.name / "samples.jsonl"), part):
            if row["count"] == part["settings"]["samples"]:
                measured_rows.setdefault(row["recipe"], []).append(row)
    summary = []
    for name, stands_for in plain.items():
        own = [row for row in measured_rows.get(name, []) if row["task"] != "perplexity"]
        prose = [row | {"recipe": name} for row in measured_rows.get(stands_for, []) if row["task"] == "perplexity"]
        # A recipe that is in no finished cell has no costs either.
        summary += sorted(own + prose, key=lambda row: row["length"]) if name in costs else []
    for row in summary:
        cost = costs[row["recipe"]].get(str(row["length"]), {})
        row |= {key: cost.get(key) for key in ("prefill_seconds", "kv_bytes")}
    settings = parts[0]["settings"] | {
        "tasks": list(dict.fromkeys(cell_task for cell in cells for cell_task in PARTS[cell.part].tasks)),
        "lengths": sorted({cell.length for cell in cells}),
        "samples": "by task and length",
    }
    content = parts[0] | {"recipes": {name: recipes[name] for name in plain if name in recipes}, "settings": settings}
    content |= {"cost": costs, "sessions": [session for part in parts for session in part["sessions"]]}
    layers = {name: words for part in parts for name, words in part["layers"].items()}
    content |= {"layers": {name: words for name, words in layers.items() if name in plain}}
    content |= {"command": command}
    replace_lines(
        folder / "samples.jsonl", (row for cell in cells for row in read_lines(results / cell.name / "samples.jsonl"))
    )
    replace_json(folder / "summary.json", summary)
    replace_json(folder / "run.json", content)
    return content, summary


def _table(
    weights: str,
    window: int,
    summary: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[str, Mapping[str, Any]]],
    earlier: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row a recipe; what is not measured now is taken from the rows that were published earlier."""
    found = {(row["recipe"], row["task"], row["length"]): row for row in summary}
    lengths = sorted({row["length"] for row in summary})
    asked = sorted({(row["task"], row["length"]) for row in summary if row["score"] is not None})
    there = {row["recipe"]: row for row in earlier}
    table: list[dict[str, Any]] = []
    for point in (None, *grid(window)):
        name = point.name if point else FULL
        if name not in there and not any(key[0] == name for key in found):
            continue
        row: dict[str, Any] = {"weights": weights, "window": window, "recipe": name, "listed": _listed(point, window)}
        row |= point._asdict() if point else {"layers": "all", "sinks": 0, "fa_decode": False, "tail": 0}
        row |= {f"{task}_{length}": found.get((name, task, length), {}).get("score") for task, length in asked}
        row |= dict.fromkeys(("mean", "of_full", "longest_mean"))
        for length in lengths:
            prose, cost = found.get((name, "perplexity", length)), costs.get(name, {}).get(str(length), {})
            row |= {f"perplexity_{length}": prose and prose["perplexity"]}
            row |= {f"{key}_{length}": cost.get(key) for key in ("prefill_flops_ratio", "prefill_seconds", "kv_bytes")}
        row |= {"decode_ms": None, "longest": max(lengths + [other["longest"] for other in earlier])}
        row |= {key: value for key, value in there.get(name, {}).items() if row.get(key) is None}
        table.append(row)
    columns = {key for row in table for key, value in row.items() if _task(key) in TASKS and value is not None}
    for row in table:
        row["mean"] = _mean(row.get(key) for key in sorted(columns))
        row["of_full"] = row["mean"] / table[0]["mean"] if row["mean"] is not None and table[0]["mean"] else None
        row["longest_mean"] = _mean(row.get(key) for key in sorted(columns) if key.endswith(f"_{row['longest']}"))
    return table


def _task(column: str) -> str:
    return column.rpartition("_")[0]


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of what is known, None if anything is not: it would be another mean than that of other rows."""
    known = [*values]
    return None if not known or None in known else fmean(x for x in known if x is not None)


def _listed(point: Variant | None, window: int) -> bool:
    """Tell whether a recipe is in the short table: one of the paper's, or of ours beside them."""
    if point is None:
        return True
    sinks = 100 if point.sinks == window // 4 else point.sinks
    paper = (point.layers, sinks, point.fa_decode) in PAPER and not point.tail
    return paper or (point.layers, sinks, point.fa_decode, int(point.tail > 0)) in OURS


def markdown(table: Sequence[Mapping[str, Any]]) -> str:
    """Return rows in the shape of the paper's table: settings, mean scores over the lengths in percent, costs."""
    head = ["weights", "window", "full layers", "sinks", "FA decode", "tail", *TASKS.values(), "mean", "of full"]
    head += ["perplexity", "arithmetic", "prefill, ms", "token, ms", "KV, MB"]
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3)]
    measured: dict[tuple[str, int], set[str]] = {}
    for row in table:
        known = {name for name, value in row.items() if value is not None}
        measured.setdefault((row["weights"], row["window"]), set()).update(known)
    for row in table:
        full, longest = row["recipe"] == FULL, row["longest"]
        line = ["original" if row["weights"] == ORIGINAL else row["weights"], "full" if full else str(row["window"])]
        line += [row["layers"], str(row["sinks"]), "-" if full else "yes" if row["fa_decode"] else "no"]
        line.append(str(row["tail"]))
        for task in TASKS:
            columns = [x for x in measured[row["weights"], row["window"]] if _task(x) == task]
            line.append(_number(_mean(row.get(name) for name in columns), 100, 1))
        line += [_number(row["mean"], 100, 1), _number(row["of_full"], 1, 2)]
        line.append(_number(row[f"perplexity_{longest}"], 1, 1))
        line.append(_number(row[f"prefill_flops_ratio_{longest}"], 1, 2))
        line.append(_number(row[f"prefill_seconds_{longest}"], 1e3, 1))
        line += [_number(row["decode_ms"], 1, 2), _number(row[f"kv_bytes_{longest}"], 1e-6, 1)]
        lines.append(line)
    longest = max((row["longest"] for row in table), default=0)
    note = (
        f"{DEFAULT_MODEL}. Scores in percent, means over the lengths of each run; perplexity and costs at the longest "
        f"({longest} tokens at most); arithmetic of the prefill as a fraction of full attention's."
    )
    return "\n".join([note, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:.{digits}f}"


def _plots(table: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plot accuracy at the longest length against each cost that is known: the front, and the short table's recipes."""
    longest = table[0]["longest"]
    costs = {
        "arithmetic": (f"prefill_flops_ratio_{longest}", 1.0, "prefill arithmetic, fraction of full attention's"),
        "prefill": (f"prefill_seconds_{longest}", 1e3, f"prefill of {longest} tokens (ms)"),
        "kv": (f"kv_bytes_{longest}", 1e-6, f"keys and values of {longest} tokens (MB)"),
    }
    for kind, (column, factor, label) in costs.items():
        known = [row for row in table if row[column] is not None and row["longest_mean"] is not None]
        if len(known) < 2:
            continue
        points = {row["recipe"]: (row[column] * factor, row["longest_mean"]) for row in known}
        kept = {*pareto_front(points), *(row["recipe"] for row in known if row["listed"])}
        rows = [
            {"recipe": name, "accuracy": score, "prefill_seconds": cost}
            for name, (cost, score) in points.items()
            if name in kept
        ]
        figure = plots.accuracy_against_time(rows, title=f"{title}, {longest} tokens", time_label=label, full=FULL)
        plots.save(figure, path.with_name(f"{path.name}-{kind}.png"))
