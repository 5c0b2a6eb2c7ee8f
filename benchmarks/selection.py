"""Layer selection of the default model: every method and budget, at three lengths, under six recipes; and KV heads.

    python benchmarks/selection.py --jobs 4 --minutes 9     # again and again until it says "complete"
    python benchmarks/selection.py --cells 2k-fa,8k-release # these only; --list shows them, the most telling first
    python benchmarks/selection_table.py results/selection  # write benchmarks/selection/

A cell is a folder of `swaa select` that continues where it was, so a time limit or a kill costs one batch at most. With
`--jobs` cells run side by side on one GPU, each in a process of its own, with its output in `CELL.log`.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from swaa.cli.selection import save_plots
from swaa.models import load_model, quiet_transformers
from swaa.recipes import load_recipe
from swaa.select import SELECTORS, Calibration
from swaa.select.run import SelectSettings, select

MODEL = "SmolLM2-135M-Instruct"


class Length(NamedTuple):
    """A length of prompts: tokens, window, calibration prompts, and the sinks of the recipes with many.

    Long prompts cost more and vary less, so there are fewer.
    """

    tokens: int
    window: int
    prompts: int
    sinks: int


LENGTHS = {"2k": Length(2048, 256, 60, 64), "4k": Length(4096, 512, 30, 128), "8k": Length(8000, 512, 20, 512)}
CURVE = (1, 2, 4, 8, 15)


class Mode(NamedTuple):
    """A recipe: FA decode, the dense tail, whether there are many sinks or 10; what is chosen, and how many of them."""

    fa_decode: bool
    dense_tail: int = 0
    many_sinks: bool = False
    budgets: tuple[int, ...] = CURVE
    unit: str = "layers"


MODES = {
    "fa": Mode(True),
    "release": Mode(False),
    "fa-tail": Mode(True, 32),
    "release-tail": Mode(False, 32),
    # What few layers can do at best.
    "fa-tail-sinks": Mode(True, 64, True, (1, 2, 4)),
    "release-tail-sinks": Mode(False, 64, True, (2, 4, 8)),
    "release-heads": Mode(False, 0, False, (4, 8), "heads"),
    "release-tail-sinks-heads": Mode(False, 64, True, (4, 8), "heads"),
}
# The most telling first.
ORDER = (
    *("8k-release-tail-sinks", "8k-fa-tail-sinks", "2k-release-tail-sinks", "2k-fa-tail-sinks", "4k-fa-tail-sinks"),
    *("2k-release", "2k-fa", "2k-release-heads", "8k-release-tail-sinks-heads", "8k-release", "8k-fa"),
    *("4k-release", "4k-fa", "2k-release-tail", "2k-fa-tail", "8k-release-tail", "8k-fa-tail"),
    *("4k-release-tail", "4k-fa-tail", "4k-release-tail-sinks", "2k-release-tail-sinks-heads"),
)
# KV heads of a layer, and the methods that choose among three times as many of them at a bearable cost.
KV_HEADS, HEAD_METHODS = 3, ("periodic", "lazy", "nll", "nll-won", "backward")
# Tokens that a pass holds.
PASS_TOKENS = 1 << 16


class OutOfTime(Exception):
    """The time is over; what is scored is on the disk."""


def run_cell(model: Any, tokenizer: Any, cell: str, options: argparse.Namespace, stop: float) -> None:
    """Select under one recipe at one length.

    Raises:
        OutOfTime: `stop`, of `time.monotonic`, has come.
    """
    name, mode = cell.split("-", 1)
    length, wanted = LENGTHS[name], MODES[mode]
    tokens = options.tokens or length.tokens
    recipe = load_recipe("sinks").replace(
        window=options.window or length.window,
        sinks=length.sinks if wanted.many_sinks else 10,
        fa_decode=wanted.fa_decode,
        dense_tail=wanted.dense_tail,
    )
    methods = options.methods.split(",")
    budgets = [int(text) for text in options.budgets.split(",")] if options.budgets else wanted.budgets
    # As much memory as so many layers.
    size = KV_HEADS if wanted.unit == "heads" else 1
    settings = SelectSettings(
        methods=tuple(name for name in methods if wanted.unit == "layers" or name in HEAD_METHODS),
        budgets=tuple(size * budget for budget in budgets),
        calibration=Calibration(tokens, options.samples or length.prompts, seed=0),
        tasks=tuple(options.tasks.split(",")),
        test_samples=options.test_samples,
        batch_size=options.batch_size or max(PASS_TOKENS // tokens, 1),
        unit=wanted.unit,
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
        print(f"{cell:18} {row['method']:15} {row['full_layers']:5.4g} {numbers} {row['layers']}")
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

    threads = str(max((os.cpu_count() or 1) // options.jobs, 1))

    def run(cell: str) -> bool:
        left = (stop - time.monotonic()) / 60
        if left <= 0:
            print(f"{cell}: not begun", flush=True)
            return False
        command = [sys.executable, __file__, "--cells", cell, "--minutes", f"{left:.2f}", *given]
        log = options.output / f"{cell}.log"
        with log.open("w") as file:
            code = subprocess.run(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": threads},
            ).returncode
        lines = log.read_text().splitlines()
        # Progress is in the file.
        said = [line for line in lines if " prompts, " not in line] if code == 0 else ["FAILED", *lines[-15:]]
        print("\n".join([f"== {cell}", *said]), flush=True)
        return code == 0 and f"{cell}: complete" in log.read_text()

    with ThreadPoolExecutor(options.jobs) as pool:
        return all(list(pool.map(run, cells)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def main() -> None:
    """Run cells, list them, or collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/selection"))
    parser.add_argument("--cells", default=",".join(ORDER), help="comma list, in this order")
    parser.add_argument("--methods", default=",".join(SELECTORS))
    parser.add_argument("--budgets", help="comma list; by cell otherwise")
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
    options = parser.parse_args()
    cells = options.cells.split(",")
    if unknown := [cell for cell in cells if cell not in ORDER]:
        parser.error(f"no such cells: {', '.join(unknown)}; --list shows them")
    if options.list:
        print("\n".join(cells))
    else:
        stop = time.monotonic() + 60 * options.minutes
        run = run_beside if options.jobs > 1 else run_here
        if run(cells, options, stop):
            print("complete")
        elif options.jobs > 1:
            sys.exit("not complete: start again to continue, after a look at what failed")


if __name__ == "__main__":
    main()
