"""The paper's full grid on the default model, with our dense tail and chosen layers beside it.

    python benchmarks/reproduce.py --list                   # the cells, the most telling first, and what each costs
    python benchmarks/reproduce.py --jobs 10 --minutes 9     # again and again until it says "complete"
    python benchmarks/reproduce.py --jobs 10 --minutes 9 --adapters results/finetune/a-kl/adapter   # fine-tuned too

Every window, number of sinks, choice of full layers, with and without FA decode and a dense tail: needle,
needle-multikey, RULER's multi-query and variable tracking, and perplexity, at 1k to 8k tokens. A cell is a folder of
`swaa eval` (one model, window, length and kind of task) that continues where it was. Prefill and decode are timed in
cells that run alone. What is complete is collected into `--publish`: tables, plots and the HTML report
(`benchmarks/reproduce_table.py`, at the end of a run of all cells or with `--jobs`).
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beside import Progress, add_options, chosen, run_cells

from swaa import SWAAConfig
from swaa.adapters import read_adapter
from swaa.bench import decode, prefill
from swaa.bench.floors import measure_floors
from swaa.bench.timing import Effort
from swaa.models import DEFAULT_MODEL, load_model, quiet_transformers
from swaa.recipes import Recipe, load_recipe
from swaa.results import append_lines, command_line, environment, read_lines
from swaa.runs import RunFolder, RunSettings, run
from swaa.tasks import TASKS

ORIGINAL, FULL, TIMING = "original", "full", "timing"
WINDOWS, LENGTHS = (256, 512), (2048, 8000, 4096, 1024)
# Layers that stay full, as the tables call them.
PERIODIC = {"none": "none", "1 in 4": "1/4", "1 in 2": "odd"}
# Those of other offsets than the paper's.
OFFSETS = {"1 in 4 from 3": "1/4@3", "even": "even"}
# Plans of `benchmarks/selection`: chosen for FA decode, and for layers that release, which are others.
CHOSEN_FOR_FA = {"4 chosen": "2k-fa-tail-sinks-4"}
CHOSEN_TO_RELEASE = {"4 chosen to release": "2k-release-tail-sinks-4", "8 chosen to release": "2k-release-tail-sinks-8"}
PLANS = CHOSEN_FOR_FA | CHOSEN_TO_RELEASE
SELECTION = Path(__file__).parent / "selection"
TAIL = 64


class Part(NamedTuple):
    """What a cell measures: tasks, and samples by length. Long prompts cost more and vary less, so there are fewer."""

    tasks: tuple[str, ...]
    samples: dict[int, int]


PARTS = {
    "answers": Part(("needle", "needle-multikey"), {1024: 64, 2048: 64, 4096: 48, 8000: 32}),
    "queries": Part(("ruler-niah-multiquery",), {1024: 32, 2048: 32, 4096: 24, 8000: 16}),
    "tracking": Part(("ruler-vt",), {1024: 32, 2048: 32, 4096: 24, 8000: 16}),
    "perplexity": Part(("perplexity",), {1024: 12, 2048: 12, 4096: 12, 8000: 12}),
}
# Tokens that a pass holds, by kind of device.
PASS_TOKENS = {"cuda": 1 << 17, "cpu": 1 << 12}
# For the estimates of --list, of one H200: prompt tokens a second, seconds of a generated token (of a batch), of a
# timed recipe, and of loading the model.
TOKENS_A_SECOND, STEP_SECONDS, TIMED_SECONDS, LOAD_SECONDS = 500_000, 0.04, 3.0, 15.0


class Variant(NamedTuple):
    """A point of the grid."""

    layers: str
    sinks: int
    fa_decode: bool
    tail: int

    @property
    def name(self) -> str:
        """What tables call it."""
        words = [f"{self.sinks} sinks"] * bool(self.sinks) + [self.layers] * (self.layers != "none")
        words += ["FA decode"] * self.fa_decode + [f"tail {self.tail}"] * bool(self.tail)
        return " + ".join(words) or "naive"

    def recipe(self, window: int) -> Recipe:
        """Return the recipe under a window."""
        layers: Any
        if self.layers in PLANS:
            layers = load_recipe(SELECTION / f"{PLANS[self.layers]}.json").config.full_layers
        else:
            layers = (PERIODIC | OFFSETS)[self.layers]
        config = SWAAConfig(
            window=window, sinks=self.sinks, full_layers=layers, fa_decode=self.fa_decode, dense_tail=self.tail
        )
        return Recipe(self.name, config)


def grid(window: int) -> list[Variant]:
    """Return the points under a window, whose many sinks are a quarter of it."""
    kinds = {False: (*PERIODIC, *CHOSEN_TO_RELEASE), True: (*PERIODIC, *CHOSEN_FOR_FA)}
    points = [
        Variant(layers, sinks, fa_decode, tail)
        for fa_decode, names in kinds.items()
        for layers in names
        for sinks in sorted({0, 10, window // 4})
        for tail in (0, TAIL)
    ]
    return points + [Variant(layers, 10, True, 0) for layers in OFFSETS]


class Cell(NamedTuple):
    """A folder of results: whose weights, window, length, and one of `PARTS`; or all timings of a window."""

    weights: str
    window: int
    length: int
    part: str

    @property
    def name(self) -> str:
        """Name of the folder."""
        if self.part == TIMING:
            return f"{TIMING}-{self.window}"
        return f"{self.weights}-{self.window}-{self.length}-{self.part}"

    def recipes(self) -> list[Recipe]:
        """Return what is measured, full attention first.

        Perplexity has no generated rows and too few last ones to matter: FA decode and tail are left out there.
        """
        points = grid(self.window)
        if self.part == "perplexity":
            points = list(dict.fromkeys(point._replace(fa_decode=False, tail=0) for point in points))
        return [load_recipe(FULL), *(point.recipe(self.window) for point in points)]

    def samples(self, options: argparse.Namespace) -> int:
        """Return the samples of each task."""
        return options.samples or PARTS[self.part].samples.get(self.length, 32)

    def seconds(self, options: argparse.Namespace) -> float:
        """Estimate the time on one H200 with nothing beside it."""
        if self.part == TIMING:
            return LOAD_SECONDS + TIMED_SECONDS * len(self.recipes())
        tasks, count = PARTS[self.part].tasks, len(self.recipes())
        steps = sum(TASKS[task].max_new_tokens for task in tasks if TASKS[task].kind == "generation")
        tokens = count * len(tasks) * self.samples(options) * self.length
        return LOAD_SECONDS + tokens / TOKENS_A_SECOND + count * steps * STEP_SECONDS


def weights_name(path: Path) -> str:
    """Return what an adapter is called: its folder, or that of its training run (`benchmarks/finetune.py`)."""
    path = path.resolve()
    return path.parent.name if path.name == "adapter" else path.name


def order(options: argparse.Namespace) -> dict[str, Cell]:
    """Return the cells, the most telling first: the first window, fine-tuned models, then other windows and timings.

    A fine-tuned model's first window is the one that it was trained for.
    """
    first = {ORIGINAL: options.windows[0]}
    for path in options.adapters:
        first[weights_name(path)] = read_adapter(path).config.window or options.windows[0]
    runs = [*first.items()]
    runs += [(weights, window) for weights in first for window in options.windows if window != first[weights]]
    cells = [
        Cell(weights, window, length, part) for weights, window in runs for part in PARTS for length in options.lengths
    ]
    cells += [Cell(ORIGINAL, window, max(options.lengths), TIMING) for window in options.windows]
    return {cell.name: cell for cell in cells}


def run_cell(loaded: tuple[Any, Any], cell: Cell, options: argparse.Namespace, stop: float) -> None:
    """Measure a cell, or go on with it."""
    model, tokenizer = loaded
    if cell.part == TIMING:
        time_recipes(model, cell, options, stop)
        return
    settings = RunSettings(
        tasks=PARTS[cell.part].tasks,
        lengths=(cell.length,),
        samples=cell.samples(options),
        batch_size=max(PASS_TOKENS["cuda" if model.device.type == "cuda" else "cpu"] // cell.length, 1),
        prefill_runs=0,
        static_cache=model.device.type == "cuda",
    )
    progress = Progress(cell.name, stop, "tokens")
    folder = RunFolder(options.output / cell.name)
    name = DEFAULT_MODEL if cell.weights == ORIGINAL else cell.weights
    for row in run(model, tokenizer, cell.recipes(), settings, folder, name=name, progress=progress):
        value = f"perplexity {row['perplexity']:.2f}" if row["score"] is None else f"{row['score']:.3f}"
        print(f"{row['recipe']:45} {row['task']:22} {row['length']:5} {value}")
    progress.complete()


def time_recipes(model: Any, cell: Cell, options: argparse.Namespace, stop: float) -> None:
    """Time prefill at every length, and decode after the longest prompt; one line a recipe and length."""
    file = options.output / f"{cell.name}.jsonl"
    done = {row["recipe"] for row in read_lines(file)}
    recipes, progress = cell.recipes(), Progress(cell.name, stop, "recipes")
    floors = measure_floors(model.device, model.dtype)
    for count, recipe in enumerate(recipes):
        progress(recipe.name, count, len(recipes))
        if recipe.name not in done:
            append_lines(file, list(timings(model, recipe, floors, options)))
    progress.complete()


def timings(model: Any, recipe: Recipe, floors: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    lengths, where = tuple(options.lengths), environment()
    settings = prefill.Settings((recipe,), lengths, compiled=(False,), baselines=())
    step = {}
    # The tail is over when decoding begins.
    if not recipe.config.dense_tail:
        wanted = decode.Settings((recipe,), (max(lengths),), new_tokens=options.new_tokens, caches=("static",))
        (step,) = decode.rows(model, wanted, floors, lambda text: None)
    for row in prefill.rows(model, settings, floors, Effort(repeats=3, seconds=0.1), lambda text: None):
        found = {"recipe": recipe.name, "length": row["length"], "prefill_seconds": row.get("seconds")}
        found |= {"kv_bytes": row["kv_mb"] and round(1e6 * row["kv_mb"])} if "kv_mb" in row else {}
        notes = [row.get("note")]
        if row["length"] == max(lengths):
            found |= {"decode_ms": step.get("ms"), "decode_floor_ms": step.get("floor_ms")}
            notes.append(step.get("note"))
        yield found | {"note": "; ".join(filter(None, notes)) or None, "environment": where}


def listing(cells: Sequence[Cell], options: argparse.Namespace) -> None:
    """Print the cells with their estimates."""
    print(f"{'cell':45} recipes samples  seconds on one H200, alone")
    for cell in cells:
        samples = "" if cell.part == TIMING else str(cell.samples(options))
        print(f"{cell.name:45} {len(cell.recipes()):7} {samples:>7} {cell.seconds(options):8.0f}")
    alone = sum(cell.seconds(options) for cell in cells if cell.part == TIMING)
    beside = [cell for cell in cells if cell.part != TIMING]
    seconds = sum(cell.seconds(options) for cell in beside)
    print(
        f"{len(cells)} cells: {seconds / 60:.0f} minutes one after the other, and {alone / 60:.0f} of timing alone; "
        "side by side, loading and single tokens overlap"
    )


def main() -> None:
    """Run cells and collect, or list them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "results/reproduce")
    parser.add_argument("--publish", type=Path, default=Path(__file__).parent / "reproduce", help="where tables go")
    own = [
        parser.add_argument("--adapters", type=Path, nargs="*", default=[], help="folders that `swaa train` wrote"),
        parser.add_argument("--windows", type=int, nargs="+", default=list(WINDOWS), help="the first for adapters"),
        parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS)),
        parser.add_argument("--samples", type=int, help="of each task; by length otherwise"),
        parser.add_argument("--new-tokens", type=int, default=32, help="whose time is taken"),
    ]
    options = parser.parse_args()
    known = order(options)
    cells = chosen(parser, options, list(known))
    if options.list:
        listing([known[cell] for cell in cells], options)
        return

    @functools.lru_cache(maxsize=1)
    def loaded(weights: str) -> tuple[Any, Any]:
        paths = {weights_name(path): str(path) for path in options.adapters}
        return load_model(paths.get(weights, DEFAULT_MODEL), device=options.device)

    def here(names: Sequence[str], stop: float) -> None:
        with quiet_transformers():
            for name in names:
                run_cell(loaded(known[name].weights), known[name], options, stop)

    alone = [name for name, cell in known.items() if cell.part == TIMING]
    complete = run_cells(cells, options, [action.dest for action in own], here, alone=alone)
    if options.jobs > 1 or not options.cells:
        from reproduce_table import collect

        collect(list(known.values()), options.output, options.publish, f"python benchmarks/{command_line()}")
    if complete:
        print("complete")
    elif options.jobs > 1:
        sys.exit("not complete: start again to continue, after a look at what failed")


if __name__ == "__main__":
    main()
