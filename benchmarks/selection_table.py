"""What `benchmarks/selection.py` found, as tables, plots and layer plans in `benchmarks/selection/`.

    python benchmarks/selection_table.py results/selection

Writes of each cell its curve (CSV and plot) and, for each budget, the plan that the calibration data prefers;
`table.csv` with these plans beside periodic layers; `aims.csv` with the plans that it prefers under a budget, whatever
the recipe; and `overview.png`.
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

COMMAND = "python benchmarks/selection.py --jobs 6"
HERE = Path(__file__).parent / "selection"
# FA decode, most full layers, share of full attention's accuracy, by length.
AIMS = (("fa", 4, {"2k": 0.98, "4k": 0.98, "8k": 0.98}), ("release", 8, {"2k": 0.9, "8k": 0.8}))


def collect(results: Path) -> None:
    """Write what is published, and say which plans the calibration data prefers."""
    HERE.mkdir(exist_ok=True)
    # So that a plan that ships as a recipe refuses other models.
    shape = model_shape(load_config(DEFAULT_MODEL))
    table, preferred = [], {}
    for cell in ORDER:
        folder = results / cell
        if not (folder / "curve.csv").exists():
            continue
        with (folder / "curve.csv").open() as file:
            # Full attention, and no full layer. A later run with fewer methods leaves the other plans where they are.
            rows = [_measures(row) for row in list(csv.DictReader(file))[:2]]
        found = [LayerPlan.load(path) for path in sorted(folder.glob("*-*.json"))]
        order = {name: place for place, name in enumerate(SELECTORS)}
        found.sort(key=lambda plan: (plan.budget, order[plan.method]))
        rows += [_of_plan(plan, rows[0]["accuracy"]) for plan in found]
        write_csv(HERE / f"{cell}.csv", rows)
        length, mode = cell.split("-", 1)
        plots.save(budget_curve(rows, title=f"{MODEL}, {length} tokens: {mode}"), HERE / f"{cell}.png")
        table += [{"cell": cell, "budget": 0 if row["method"] == NONE else ""} | row for row in rows[:2]]
        for budget in sorted({plan.budget for plan in found}):
            plans = {plan.method: plan for plan in found if plan.budget == budget}
            # By the calibration data, never by the held-out samples that are reported.
            best = min(plans.values(), key=lambda plan: float(plan.measured["calibration_nll"]))
            preferred[cell, budget] = best
            row = {"cell": cell, "budget": budget} | _of_plan(best, rows[0]["accuracy"])
            if "periodic" in plans:
                periodic = _of_plan(plans["periodic"], rows[0]["accuracy"])
                row |= {f"periodic_{name}": periodic[name] for name in ("layers", "accuracy", "accuracy_ratio")}
            table.append(row)
            dataclasses.replace(best, shape=shape).save(HERE / f"{cell}-{budget}.json")
    if not table:
        sys.exit(f"{results} holds no complete cell: run it first")
    write_csv(HERE / "table.csv", _even(table))
    write_csv(HERE / "aims.csv", _even(_aims(preferred, table)))
    _overview(table)
    sessions = [
        json.loads((results / cell / "run.json").read_text())["sessions"][-1] for cell in {row["cell"] for row in table}
    ]
    environments = {json.dumps(session["environment"]): session["environment"] for session in sessions}
    write_json(HERE / "table.json", {"command": COMMAND, "environments": list(environments.values())})


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
            lines.setdefault(length, {}).setdefault(mode, {})[row["full_layers"]] = row["accuracy_ratio"]
    windows = ", ".join(f"{name}: {LENGTHS[name].window}" for name in lines)
    figure = shares_of_full(lines, title=f"{MODEL}: what full layers buy", note=f"windows {windows}")
    plots.save(figure, HERE / "overview.png")


def _of_plan(plan: LayerPlan, full: float) -> dict[str, Any]:
    layers, ratio = " ".join(map(unit_name, plan.chosen)), plan.measured["accuracy"] / full if full else math.nan
    return {"method": plan.method, "layers": layers, **plan.measured, "accuracy_ratio": ratio, "passes": plan.passes}


def _measures(row: Mapping[str, str]) -> dict[str, Any]:
    texts = ("method", "layers")
    numbers = {name: float(text or "nan") for name, text in row.items() if name not in (*texts, "seconds")}
    return {name: row[name] for name in texts} | numbers


def _even(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "") for name in columns} for row in rows]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    collect(Path(sys.argv[1]))
