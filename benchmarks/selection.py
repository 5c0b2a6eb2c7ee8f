"""Layer selection of the default model: every method and budget, at three lengths, under six recipes.

    python benchmarks/selection.py --jobs 4 --minutes 9     # again and again until it says "complete"
    python benchmarks/selection.py --cells 2k-fa,8k-release # these only; --list shows them, the most telling first
    python benchmarks/selection.py --collect                # write benchmarks/selection/

A cell is a folder of `swaa select` that continues where it was, so a time limit or a kill costs one batch at most. With
`--jobs` cells run side by side on one GPU, each in a process of its own, with its output in `CELL.log`. `--collect`
copies curves, plots and layer plans, and writes `table.csv` (every cell and budget: the plan that the calibration data
prefers, beside periodic layers) and `aims.csv` (the plans that the calibration data prefers under a budget, whatever
the recipe).
"""

import argparse
import csv
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from swaa.cli.selection import save_plots
from swaa.models import load_model, quiet_transformers
from swaa.recipes import load_recipe
from swaa.results import command_line, environment, write_csv, write_json
from swaa.select import SELECTORS, Calibration
from swaa.select.plan import LayerPlan
from swaa.select.run import SelectSettings, select

HERE = Path(__file__).parent / "selection"
MODEL = "SmolLM2-135M-Instruct"


class Length(NamedTuple):
    """A length of prompts: tokens, window, calibration prompts, and the sinks of the recipes with many.

    Long prompts cost more and vary less, so there are fewer.
    """

    tokens: int
    window: int
    prompts: int
    sinks: int


LENGTHS = {"2k": Length(2048, 256, 64, 64), "4k": Length(4096, 512, 32, 128), "8k": Length(8000, 512, 16, 512)}
# FA decode; the dense tail; whether there are many sinks, or 10.
MODES = {
    "fa": (True, 0, False),
    "release": (False, 0, False),
    "fa-tail": (True, 32, False),
    "release-tail": (False, 32, False),
    "fa-tail-sinks": (True, 64, True),
    "release-tail-sinks": (False, 64, True),
}
# What few layers can do at best comes first, then the recipes without tail, then the tail alone.
ORDER = (
    *("2k-fa-tail-sinks", "8k-release-tail-sinks", "8k-fa-tail-sinks", "2k-release-tail-sinks"),
    *("2k-fa", "2k-release", "4k-fa-tail-sinks", "8k-fa", "8k-release", "4k-fa", "4k-release"),
    *("2k-fa-tail", "2k-release-tail", "8k-fa-tail", "8k-release-tail"),
    *("4k-fa-tail", "4k-release-tail", "4k-release-tail-sinks"),
)
BUDGETS = (1, 2, 4, 8, 15)
# FA decode, most full layers, share of full attention's accuracy, by length.
AIMS = (("fa", 4, {"2k": 0.98, "4k": 0.98, "8k": 0.98}), ("release", 8, {"2k": 0.9, "8k": 0.8}))
# Tokens that a pass holds.
PASS_TOKENS = 1 << 16
MEASURES = ("layers", "full_layers", "accuracy", "accuracy_low", "accuracy_high", "accuracy_ratio", "nll")


class OutOfTime(Exception):
    """The time is over; what is scored is on the disk."""


def run_cell(model: Any, tokenizer: Any, cell: str, options: argparse.Namespace, stop: float) -> None:
    """Select under one recipe at one length.

    Raises:
        OutOfTime: `stop`, of `time.monotonic`, has come.
    """
    name, mode = cell.split("-", 1)
    length, (fa_decode, tail, many) = LENGTHS[name], MODES[mode]
    tokens = options.tokens or length.tokens
    recipe = load_recipe("sinks").replace(
        window=options.window or length.window,
        sinks=length.sinks if many else 10,
        fa_decode=fa_decode,
        dense_tail=tail,
    )
    settings = SelectSettings(
        methods=tuple(options.methods.split(",")),
        budgets=tuple(int(budget) for budget in options.budgets.split(",")),
        calibration=Calibration(tokens, options.samples or length.prompts, seed=0),
        tasks=tuple(options.tasks.split(",")),
        test_samples=options.test_samples,
        batch_size=options.batch_size or max(PASS_TOKENS // tokens, 1),
    )
    begin = shown = time.monotonic()

    def progress(text: str, done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now > stop:
            raise OutOfTime
        if now - shown > 20:
            shown = now
            print(f"{cell}: {text}, {done} of {total} prompts, {now - begin:.0f} s", flush=True)

    folder = options.output / cell
    outcome = select(model, tokenizer, recipe, settings, folder, name=MODEL, progress=progress)
    save_plots(folder, outcome, f"{MODEL}, {tokens} tokens, window {recipe.config.window}: {mode}")
    for row in outcome.rows:
        ratio = row["accuracy_ratio"]
        shown_ratio = "-" if ratio is None else f"{ratio:.2f}"
        numbers = f"{row['calibration_nll']:.3f} {row['accuracy']:.3f} ({shown_ratio}x)"
        print(f"{cell:18} {row['method']:15} {row['full_layers']:3} {numbers} {row['layers']}")
    print(f"{cell}: complete, {time.monotonic() - begin:.0f} s", flush=True)


def run_here(cells: Sequence[str], options: argparse.Namespace, stop: float) -> bool:
    """Run cells one after the other; tell whether all are complete."""
    with quiet_transformers():
        model, tokenizer = load_model(device=options.device)
        try:
            for cell in cells:
                run_cell(model, tokenizer, cell, options, stop)
        except OutOfTime:
            print("out of time: start again to continue", flush=True)
            return False
    return True


def run_beside(cells: Sequence[str], options: argparse.Namespace, stop: float) -> bool:
    """Run each cell in a process of its own, `--jobs` at a time; tell whether all are complete."""
    options.output.mkdir(parents=True, exist_ok=True)
    passed = ["methods", "budgets", "tasks", "samples", "test_samples", "batch_size", "device", "tokens", "window"]
    passed.append("output")
    given = [x for name in passed if (value := getattr(options, name)) is not None for x in (_flag(name), str(value))]

    def run(cell: str) -> bool:
        left = (stop - time.monotonic()) / 60
        if left <= 0:
            print(f"{cell}: not begun", flush=True)
            return False
        command = [sys.executable, __file__, "--cells", cell, "--minutes", f"{left:.2f}", *given]
        log = options.output / f"{cell}.log"
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        lines = log.read_text().splitlines()
        # Progress is in the file.
        said = [line for line in lines if " prompts, " not in line] if code == 0 else ["FAILED", *lines[-15:]]
        print("\n".join([f"== {cell}", *said]), flush=True)
        return code == 0 and f"{cell}: complete" in log.read_text()

    with ThreadPoolExecutor(options.jobs) as pool:
        return all(list(pool.map(run, cells)))


def collect(options: argparse.Namespace) -> None:
    """Copy what is published, and say which plans the calibration data prefers."""
    HERE.mkdir(exist_ok=True)
    table, plans = [], {}
    for cell in ORDER:
        folder = options.output / cell
        if not (folder / "curve.csv").exists():
            continue
        for name in ("curve.csv", "curve.png"):
            shutil.copy(folder / name, HERE / f"{cell}{Path(name).suffix}")
        with (folder / "curve.csv").open() as file:
            full, none = list(csv.DictReader(file))[:2]
        for row in (full, none):
            table.append({"cell": cell, "budget": "", "method": row["method"]} | _measures(row))
        found = [LayerPlan.load(path) for path in sorted(folder.glob("*-*.json"))]
        for budget in sorted({plan.budget for plan in found}):
            rows = {plan.method: plan for plan in found if plan.budget == budget}
            # By the calibration data, never by the held-out samples that are reported.
            best = min(rows.values(), key=lambda plan: float(plan.measured["calibration_nll"]))
            plans[cell, budget] = best
            row = {"cell": cell, "budget": budget, "method": best.method} | _measures(_of_plan(best, full))
            if "periodic" in rows:
                periodic = _of_plan(rows["periodic"], full)
                row |= {f"periodic_{name}": periodic[name] for name in ("layers", "accuracy", "accuracy_ratio")}
            table.append(row)
            best.save(HERE / f"{cell}-{budget}.json")
    if not table:
        sys.exit(f"{options.output} holds no complete cell: run it first")
    columns = list(dict.fromkeys(name for row in table for name in row))
    table = [{name: row.get(name, "") for name in columns} for row in table]
    write_csv(HERE / "table.csv", table)
    write_csv(HERE / "aims.csv", _aims(plans, table))
    _overview(table)
    write_json(HERE / "table.json", {"command": command_line(), "environment": environment()})


def _aims(plans: Mapping[tuple[str, int], LayerPlan], table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each aim, the plan that the calibration data prefers among those within the budget."""
    found = []
    for mode, most, wanted in AIMS:
        for length, share in wanted.items():
            fitting = {
                key: plan
                for key, plan in plans.items()
                if key[0].startswith(f"{length}-{mode}") and len(plan.layers) <= most
            }
            if not fitting:
                continue
            key = min(fitting, key=lambda key: float(fitting[key].measured["calibration_nll"]))
            (row,) = [row for row in table if (row["cell"], row["budget"]) == key]
            reached = "yes" if float(row["accuracy_ratio"]) >= share else "no"
            found.append({"aim": f"{length}-{mode}", "most_layers": most, "wanted": share, "reached": reached} | row)
            print(f"{length}-{mode}: {float(row['accuracy_ratio']):.3f} of {share}, {row['cell']}: {row['layers']}")
    return found


def _overview(table: Sequence[dict[str, Any]]) -> None:
    """Plot the share of full attention's accuracy that the preferred plan of each budget keeps, a line a recipe."""
    from swaa.report import plots
    from swaa.report.selection import shares_of_full

    lines = {
        length: {
            mode: {
                int(row["full_layers"]): float(row["accuracy_ratio"])
                for row in table
                if row["cell"] == f"{length}-{mode}" and row["method"] != "full attention"
            }
            for mode in MODES
        }
        for length in LENGTHS
    }
    windows = ", ".join(f"{name}: {length.window}" for name, length in LENGTHS.items())
    figure = shares_of_full(lines, title=f"{MODEL}: what full layers buy", note=f"windows {windows}")
    plots.save(figure, HERE / "overview.png")


def _of_plan(plan: LayerPlan, full: Mapping[str, str]) -> dict[str, Any]:
    accuracy = float(full["accuracy"])
    ratio = plan.measured["accuracy"] / accuracy if accuracy else ""
    layers = " ".join(map(str, plan.layers))
    return plan.measured | {"layers": layers, "full_layers": len(plan.layers), "accuracy_ratio": ratio}


def _measures(row: Mapping[str, Any]) -> dict[str, Any]:
    tasks = [name for name in row if name.startswith("accuracy_") and name not in MEASURES]
    return {name: row[name] for name in (*MEASURES, *tasks)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def main() -> None:
    """Run cells, list them, or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/selection"))
    parser.add_argument("--cells", default=",".join(ORDER), help="comma list, in this order")
    parser.add_argument("--methods", default=",".join(SELECTORS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--tasks", default="needle,needle-multikey")
    parser.add_argument("--samples", type=int, help="calibration prompts; by length otherwise")
    parser.add_argument("--test-samples", type=int, default=200)
    parser.add_argument("--batch-size", type=int, help=f"otherwise {PASS_TOKENS} tokens a pass")
    parser.add_argument("--tokens", type=int, help="of a prompt; by length otherwise")
    parser.add_argument("--window", type=int, help="by length otherwise")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time, a process each")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long; start again to continue")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    parser.add_argument("--collect", action="store_true", help="write benchmarks/selection/ from --output")
    options = parser.parse_args()
    cells = options.cells.split(",")
    if unknown := [cell for cell in cells if cell not in ORDER]:
        parser.error(f"no such cells: {', '.join(unknown)}; --list shows them")
    if options.list:
        print("\n".join(cells))
    elif options.collect:
        collect(options)
    else:
        stop = time.monotonic() + 60 * options.minutes
        run = run_beside if options.jobs > 1 else run_here
        if run(cells, options, stop):
            print("complete")
        elif options.jobs > 1:
            sys.exit("not complete: start again to continue, after a look at what failed")


if __name__ == "__main__":
    main()
