"""Layer selection of the default model: every method at every budget, at three lengths, under four recipes; KV heads.

    python benchmarks/selection.py --jobs 4 --minutes 9     # again and again until it says "complete"
    python benchmarks/selection.py --cells 2k-fa,8k-release # these only; --list shows them, the most telling first
    python benchmarks/selection_table.py results/selection  # write benchmarks/selection/

A cell is a folder of `swaa select` that continues where it was, so a time limit or a kill costs one batch at most. With
`--jobs` cells run side by side on one GPU, each in a process of its own, with its output in `CELL.log`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from beside import Progress, add_options, chosen, run_cells

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
BUDGETS = {"2k": (1, 2, 4, 8, 15), "4k": (2, 4, 8, 15), "8k": (1, 2, 4, 8, 15)}

# Taking layers away costs as much as all other methods; exchanging them, more. So these get cells of their own, with
# the budgets of the aims, and what they are compared with.
METHODS = tuple(name for name in SELECTORS if name not in ("backward", "swap"))
EXCHANGES = ("greedy", "backward", "swap")
# Among three times as many KV heads at a bearable cost.
HEAD_METHODS = ("periodic", "nll", "nll-won", "gates")
# KV heads of a layer.
KV_HEADS = 3


class Mode(NamedTuple):
    """A recipe: FA decode, the dense tail, whether there are many sinks or 10; what is chosen, how many, and how."""

    fa_decode: bool
    dense_tail: int = 0
    many_sinks: bool = False
    budgets: tuple[int, ...] = ()  # those of the length
    methods: tuple[str, ...] = METHODS
    unit: str = "layers"


MODES = {
    "fa": Mode(True),
    "release": Mode(False),
    # What few layers can do at best.
    "fa-tail-sinks": Mode(True, 64, True),
    "release-tail-sinks": Mode(False, 64, True),
    "fa-exchanged": Mode(True, 0, False, (4,), EXCHANGES),
    "release-exchanged": Mode(False, 0, False, (8,), EXCHANGES),
    "fa-tail-sinks-exchanged": Mode(True, 64, True, (4,), EXCHANGES),
    "release-tail-sinks-exchanged": Mode(False, 64, True, (8,), EXCHANGES),
    "release-heads": Mode(False, 0, False, (4, 8), HEAD_METHODS, "heads"),
    "release-tail-sinks-heads": Mode(False, 64, True, (4, 8), HEAD_METHODS, "heads"),
}
# The most telling first.
ORDER = (
    *("8k-release-tail-sinks", "8k-fa-tail-sinks", "2k-release-tail-sinks", "2k-fa-tail-sinks", "4k-fa-tail-sinks"),
    *("2k-release-tail-sinks-heads", "2k-fa", "2k-release", "8k-release-tail-sinks-heads", "4k-release-tail-sinks"),
    *("2k-fa-exchanged", "8k-fa", "8k-release", "4k-fa", "4k-release", "2k-release-heads"),
    *("8k-release-tail-sinks-exchanged", "8k-fa-exchanged", "8k-release-exchanged", "8k-fa-tail-sinks-exchanged"),
    *("2k-release-tail-sinks-exchanged", "2k-release-exchanged", "2k-fa-tail-sinks-exchanged", "4k-release-exchanged"),
    *("4k-fa-exchanged", "4k-release-tail-sinks-exchanged", "4k-fa-tail-sinks-exchanged"),
)
# Tokens that a pass holds.
PASS_TOKENS = 1 << 16


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
    methods = options.methods.split(",") if options.methods else wanted.methods
    budgets = [int(text) for text in options.budgets.split(",")] if options.budgets else wanted.budgets or BUDGETS[name]
    # As much memory as so many layers.
    size = KV_HEADS if wanted.unit == "heads" else 1
    settings = SelectSettings(
        methods=tuple(methods),
        budgets=tuple(size * budget for budget in budgets),
        calibration=Calibration(tokens, options.samples or length.prompts, seed=0),
        tasks=tuple(options.tasks.split(",")),
        test_samples=options.test_samples,
        batch_size=options.batch_size or max(PASS_TOKENS // tokens, 1),
        unit=wanted.unit,
        compiled=model.device.type == "cuda",
    )
    progress = Progress(cell, stop, "prompts")
    folder = options.output / cell
    outcome = select(model, tokenizer, recipe, settings, folder, name=MODEL, progress=progress)
    save_plots(folder, outcome, f"{MODEL}, {tokens} tokens, window {recipe.config.window}: {mode}")
    for row in outcome.rows:
        ratio = row["accuracy_ratio"]
        shown_ratio = "-" if ratio is None else f"{ratio:.2f}"
        numbers = f"{row['calibration_nll']:.3f} {row['accuracy']:.3f} ({shown_ratio}x)"
        print(f"{cell:18} {row['method']:15} {row['full_layers']:5.4g} {numbers} {row['layers']}")
    progress.complete()


def main() -> None:
    """Run cells, or list them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "results/selection")
    own = [
        parser.add_argument("--methods", help="comma list; by cell otherwise"),
        parser.add_argument("--budgets", help="comma list; by cell otherwise"),
        parser.add_argument("--tasks", default="needle,needle-multikey"),
        parser.add_argument("--samples", type=int, help="calibration prompts; by length otherwise"),
        parser.add_argument("--test-samples", type=int, default=200),
        parser.add_argument("--batch-size", type=int, help=f"otherwise {PASS_TOKENS} tokens a pass"),
        parser.add_argument("--tokens", type=int, help="of a prompt; by length otherwise"),
        parser.add_argument("--window", type=int, help="by length otherwise"),
    ]
    options = parser.parse_args()
    cells = chosen(parser, options, ORDER)
    if options.list:
        print("\n".join(cells))
        return

    def here(cells: Sequence[str], stop: float) -> None:
        with quiet_transformers():
            model, tokenizer = load_model(device=options.device)
            for cell in cells:
                run_cell(model, tokenizer, cell, options, stop)

    if run_cells(cells, options, [action.dest for action in own], here):
        print("complete")
    elif options.jobs > 1:
        sys.exit("not complete: start again to continue, after a look at what failed")


if __name__ == "__main__":
    main()
