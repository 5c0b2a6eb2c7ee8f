"""Layer selection of the default model: every method and budget, at three lengths, with and without FA decode and tail.

    python benchmarks/selection.py --output results/selection --minutes 9     # again and again until it says "complete"
    python benchmarks/selection.py --output results/selection --cells 2k-fa   # one cell; --list shows them
    python benchmarks/selection.py --output results/selection --collect       # write benchmarks/selection/

Each cell is a folder of `swaa select` that continues where it was, so a time limit or a kill costs one batch at most.
`--collect` copies curves, plots and layer plans and writes `table.csv`: the best method of each cell and budget beside
periodic layers, as a share of full attention's accuracy.
"""

import argparse
import csv
import shutil
import time
from pathlib import Path

from swaa.cli.selection import save_plots
from swaa.compare import choose_recipes
from swaa.models import load_model, quiet_transformers
from swaa.recipes import load_recipe
from swaa.results import command_line, environment, write_csv, write_json
from swaa.select import SELECTORS, Calibration
from swaa.select.run import SelectSettings, select

HERE = Path(__file__).parent / "selection"
# Tokens of a prompt, window, calibration prompts (fewer long ones: they cost more and vary less).
LENGTHS = {"2k": (2048, 256, 64), "4k": (4096, 512, 32), "8k": (8000, 512, 16)}
BUDGETS = (1, 2, 4, 8, 15)
# The aims come first: few full layers with FA decode, and layers that release their memory without it.
CELLS = {
    f"{length}-{mode}": (length, {"fa_decode": "fa" in mode, "dense_tail": 32 if "tail" in mode else 0})
    for mode in ("fa", "release", "fa-tail", "release-tail")
    for length in LENGTHS
}
# Tokens that a pass holds.
PASS_TOKENS = 1 << 16


class OutOfTime(Exception):
    pass


def run_cell(model, tokenizer, cell, options, stop):
    length, changes = CELLS[cell]
    tokens, window, prompts = LENGTHS[length]
    recipe = load_recipe("sinks").replace(window=window, sinks=10, **changes)
    settings = SelectSettings(
        methods=tuple(options.methods.split(",")),
        budgets=tuple(int(budget) for budget in options.budgets.split(",")),
        calibration=Calibration(tokens, options.samples or prompts, seed=0),
        tasks=tuple(options.tasks.split(",")),
        test_samples=options.test_samples,
        batch_size=options.batch_size or max(PASS_TOKENS // tokens, 1),
    )
    begin = shown = time.monotonic()

    def progress(text, done, total):
        nonlocal shown
        now = time.monotonic()
        if now > stop:
            raise OutOfTime
        if now - shown > 20:
            shown = now
            print(f"{cell}: {text}, {done / total:.0%}, {now - begin:.0f} s", flush=True)

    folder = options.output / cell
    outcome = select(model, tokenizer, recipe, settings, folder, name="SmolLM2-135M-Instruct", progress=progress)
    save_plots(folder, outcome, f"SmolLM2-135M-Instruct, {tokens} tokens, window {window}: {cell}")
    for row in outcome.rows:
        accuracy, ratio = row.get("accuracy", float("nan")), row.get("accuracy_ratio") or 0
        print(f"{cell:16} {row['method']:15} {row['full_layers']:3} {accuracy:.3f} ({ratio:.2f}) {row['layers']}")
    print(f"{cell}: {time.monotonic() - begin:.0f} s", flush=True)


def collect(options):
    """Copy what is published, and say which plan is best for each cell and budget."""
    HERE.mkdir(exist_ok=True)
    table = []
    for cell in CELLS:
        folder = options.output / cell
        if not (folder / "curve.csv").exists():
            continue
        shutil.copy(folder / "curve.csv", HERE / f"{cell}.csv")
        shutil.copy(folder / "curve.png", HERE / f"{cell}.png")
        with (folder / "curve.csv").open() as file:
            rows = list(csv.DictReader(file))
        for budget in BUDGETS:
            plans = {row["method"]: row for row in rows if row["method"] in SELECTORS}
            plans = {
                method: next((r for r in rows if r["method"] == method and _plan(folder, r, budget)), None)
                for method in plans
            }
            plans = {method: row for method, row in plans.items() if row}
            if not plans:
                continue
            # Chosen by the calibration data, never by the held-out samples that are reported.
            best = min(plans, key=lambda method: float(plans[method]["calibration_nll"]))
            periodic = plans.get("periodic", {})
            columns = ("full_layers", "layers", "accuracy", "accuracy_low", "accuracy_high", "accuracy_ratio", "nll")
            row = {"cell": cell, "budget": budget, "method": best} | {name: plans[best][name] for name in columns}
            table.append(row | {"periodic_accuracy_ratio": periodic.get("accuracy_ratio", "")})
            shutil.copy(folder / f"{best}-{budget}.json", HERE / f"{cell}-{budget}.json")
    write_csv(HERE / "table.csv", table)
    write_json(HERE / "table.json", {"command": command_line(), "environment": environment()})


def _plan(folder, row, budget):
    """Tell whether a row is that of the plan with this budget (a periodic pattern may have fewer layers)."""
    path = folder / f"{row['method']}-{budget}.json"
    return (
        path.exists()
        and " ".join(map(str, choose_recipes([str(path)], length=1)[1].config.full_layers)) == row["layers"]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/selection"))
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--methods", default=",".join(SELECTORS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--tasks", default="needle,needle-multikey")
    parser.add_argument("--samples", type=int, help="calibration prompts; by length otherwise")
    parser.add_argument("--test-samples", type=int, default=200)
    parser.add_argument("--batch-size", type=int, help=f"otherwise {PASS_TOKENS} tokens a pass")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long; start again to continue")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")
    parser.add_argument("--collect", action="store_true", help="write benchmarks/selection/ from --output")
    options = parser.parse_args()
    if options.list:
        print("\n".join(CELLS))
        return
    if options.collect:
        collect(options)
        return
    stop = time.monotonic() + 60 * options.minutes
    with quiet_transformers():
        model, tokenizer = load_model()
        try:
            for cell in options.cells.split(","):
                run_cell(model, tokenizer, cell, options, stop)
        except OutOfTime:
            print("out of time: start again to continue")
            return
    print("complete")


if __name__ == "__main__":
    main()
