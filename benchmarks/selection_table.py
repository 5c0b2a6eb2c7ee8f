"""What `benchmarks/selection.py` found, as tables, plots and layer plans in `benchmarks/selection/`.

    python benchmarks/selection_table.py results/selection

Writes of each cell its curve (CSV and plot) and, for each budget, the plan that the calibration data prefers;
`table.csv` with these plans beside periodic layers; `aims.csv` with the plans that it prefers under a budget, whatever
the recipe; and `overview.png`. What is published already and not among the results stays.
"""

import csv
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selection import LENGTHS, MODEL, ORDER

from swaa.cli.loading import load_config
from swaa.models import DEFAULT_MODEL
from swaa.recipes import model_shape
from swaa.report import plots
from swaa.report.selection import FULL, NONE, budget_curve, shares_of_full
from swaa.results import write_csv, write_json
from swaa.select import SELECTORS
from swaa.select.plan import LayerPlan
from swaa.select.problem import UNITS, unit_name

EXCHANGED = "-exchanged"
COMMAND = "python benchmarks/selection.py --jobs 6"
HERE = Path(__file__).parent / "selection"
# FA decode, most full layers, share of full attention's accuracy, by length.
AIMS = (("fa", 4, {"2k": 0.98, "4k": 0.98, "8k": 0.98}), ("release", 8, {"2k": 0.9, "8k": 0.8}))


def collect(results: Path) -> None:
    """Write what is published, and say which plans the calibration data prefers."""
    HERE.mkdir(exist_ok=True)
    # So that a plan that ships as a recipe refuses other models.
    shape = model_shape(load_config(DEFAULT_MODEL))
    table, preferred, sessions = [], {}, []
    published = _published("table.csv")
    for cell in ORDER:
        earlier = [row for row in published if row["cell"] == cell]
        for row in (row for row in earlier if row["method"] not in (FULL, NONE)):
            row["budget"] = int(row["budget"])
            preferred[cell, row["budget"]] = LayerPlan.load(HERE / f"{cell}-{row['budget']}.json")
        folder = results / cell
        if not (folder / "curve.csv").exists():
            table += earlier
            continue
        sessions += json.loads((folder / "run.json").read_text())["sessions"][-1:]
        with (folder / "curve.csv").open() as file:
            # Full attention, and no full layer. A later run with fewer methods leaves the other plans where they are.
            rows = [_measures(row) for row in list(csv.DictReader(file))[:2]]
        found = [LayerPlan.load(path) for path in sorted(folder.glob("*-*.json"))]
        full = rows[0]["accuracy"]
        _save_curve(cell, rows, [_of_plan(plan, full) for plan in found])
        table += [{"cell": cell, "budget": 0 if row["method"] == NONE else ""} | row for row in rows]
        budgets = {plan.budget for plan in found}
        new = {budget: _best(cell, [plan for plan in found if plan.budget == budget], full) for budget in budgets}
        for budget, (best, _) in new.items():
            preferred[cell, budget] = best
            dataclasses.replace(best, shape=shape).save(HERE / f"{cell}-{budget}.json")
        kept = {row["budget"]: row for row in earlier if row["method"] not in (FULL, NONE)}
        of_budgets = kept | {budget: row for budget, (_, row) in new.items()}
        table += [of_budgets[budget] for budget in sorted(of_budgets)]
    if not table:
        sys.exit(f"{results} holds no complete cell: run it first")
    write_csv(HERE / "table.csv", _even(table))
    write_csv(HERE / "aims.csv", _even(_aims(preferred, table)))
    _overview(table)
    file = HERE / "table.json"
    there = json.loads(file.read_text())["environments"] if file.exists() else []
    environments = {json.dumps(found): found for found in [*there, *(session["environment"] for session in sessions)]}
    write_json(file, {"command": COMMAND, "environments": list(environments.values())})


def _published(name: str) -> list[dict[str, Any]]:
    file = HERE / name
    if not file.exists():
        return []
    with file.open() as lines:
        return [_measures(row) for row in csv.DictReader(lines)]


def _save_curve(cell: str, references: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> None:
    """Write a cell's rows, those published before that are not among them too, and plot them."""
    order = {name: place for place, name in enumerate(SELECTORS)}
    # Files hold six digits.
    known = {(row["method"], round(row["full_layers"], 4)): row for row in [*_published(f"{cell}.csv")[2:], *rows]}
    # A budget's periodic layers may be one fewer: they come first.
    curve = sorted(known.values(), key=lambda row: (round(row["full_layers"], 4), order[row["method"]]))
    write_csv(HERE / f"{cell}.csv", [*references, *curve])
    length, mode = cell.split("-", 1)
    figure = budget_curve([*references, *curve], title=f"{MODEL}, {length} tokens: {mode}")
    plots.save(figure, HERE / f"{cell}.png")


def _best(cell: str, plans: Sequence[LayerPlan], full: float) -> tuple[LayerPlan, dict[str, Any]]:
    """Return the plan of a budget that the calibration data prefers, and its row, beside periodic layers.

    By the calibration data, never by the held-out samples that are reported.
    """
    best = min(plans, key=lambda plan: (float(plan.measured["calibration_nll"]), list(SELECTORS).index(plan.method)))
    row = {"cell": cell, "budget": best.budget} | _of_plan(best, full)
    for plan in plans:
        if plan.method == "periodic":
            periodic = _of_plan(plan, full)
            row |= {f"periodic_{name}": periodic[name] for name in ("layers", "accuracy", "accuracy_ratio")}
    return best, row


def _aims(preferred: Mapping[tuple[str, int], LayerPlan], table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each aim, the plan that the calibration data prefers among those within the budget.

    KV heads for as much memory as that many layers are told apart: the aims are about layers.
    """
    found = []
    for (mode, most, wanted), unit in itertools.product(AIMS, UNITS):
        for length, share in wanted.items():
            fitting = {
                key: plan
                for key, plan in preferred.items()
                if key[0].startswith(f"{length}-{mode}")
                and plan.unit == unit
                and plan.measured["full_layers"] <= most + 1e-3
            }
            if not fitting:
                continue
            key = min(fitting, key=lambda key: float(fitting[key].measured["calibration_nll"]))
            (row,) = [row for row in table if (row["cell"], row["budget"]) == key and row["method"] != NONE]
            reached = "yes" if row["accuracy_ratio"] >= share else "no"
            aim = {"aim": f"{length}-{mode}", "unit": unit, "most_layers": most, "wanted": share, "reached": reached}
            found.append(aim | row)
            kept = f"{row['accuracy_ratio']:.3f} of full attention's accuracy (aim {share})"
            limit = f"at most {most} layers{' in heads' * (unit == 'heads')}"
            print(f"{length}-{mode}, {limit}: {kept}: {row['cell']}, {row['method']}, {row['layers']}")
    return found


def _overview(table: Sequence[dict[str, Any]]) -> None:
    """Plot the share of full attention's accuracy that the preferred plan of each budget keeps, a line a recipe."""
    lines: dict[str, dict[str, dict[float, float]]] = {}
    for row in sorted(table, key=lambda row: list(LENGTHS).index(row["cell"].split("-")[0])):
        if row["method"] != FULL:
            length, mode = row["cell"].split("-", 1)
            if mode.endswith(EXCHANGED):
                continue  # one budget is no line
            lines.setdefault(length, {}).setdefault(mode, {})[row["full_layers"]] = row["accuracy_ratio"]
    windows = ", ".join(f"{name}: {LENGTHS[name].window}" for name in lines)
    figure = shares_of_full(lines, title=f"{MODEL}: what full layers buy", note=f"windows {windows}")
    plots.save(figure, HERE / "overview.png")


def _of_plan(plan: LayerPlan, full: float) -> dict[str, Any]:
    layers, ratio = " ".join(map(unit_name, plan.chosen)), plan.measured["accuracy"] / full if full else math.nan
    return {"method": plan.method, "layers": layers, **plan.measured, "accuracy_ratio": ratio, "passes": plan.passes}


def _measures(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of a file with its numbers as such, but for the seconds, which depend on what ran beside."""
    first = [name for name in ("cell", "budget", "method", "layers") if name in row]
    texts = (*first, "periodic_layers")
    known = {name: row[name] for name in dict.fromkeys([*first, *row])}
    known = {name: text for name, text in known.items() if name in texts or (text and name != "seconds")}
    return {name: text if name in texts else float(text) for name, text in known.items()}


def _even(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in columns} for row in rows]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    collect(Path(sys.argv[1]))
