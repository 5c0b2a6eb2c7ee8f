"""What benchmarks of many cells share: cells side by side on one GPU, time limits, and continuing where one stopped.

A cell runs in a process of its own, with its output in `CELL.log`, and prints `CELL: complete` when nothing is left.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

# How a line of progress begins: it stays in the log.
_PROGRESS = ".. "
_SECONDS = 20


class OutOfTime(Exception):
    """The time is over; what is measured is on the disk."""


class Progress:
    """Prints where a cell stands, now and then.

    Args:
        cell: its name.
        stop: when the time is over, of `time.monotonic`.
        unit: what is counted.

    Raises:
        OutOfTime: when it is called after `stop`.
    """

    def __init__(self, cell: str, stop: float, unit: str):
        self.cell, self.stop, self.unit = cell, stop, unit
        self.begin = self.shown = time.monotonic()

    def __call__(self, text: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now > self.stop:
            raise OutOfTime
        if now - self.shown > _SECONDS:
            self.shown = now
            print(
                f"{_PROGRESS}{self.cell}: {text}, {done} of {total} {self.unit}, {now - self.begin:.0f} s", flush=True
            )

    def complete(self) -> None:
        """Say that nothing is left."""
        print(f"{self.cell}: complete, {time.monotonic() - self.begin:.0f} s", flush=True)


def add_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Add what every such benchmark takes."""
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--cells", help="comma list, in this order; all otherwise")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="cells at the same time, a process each")
    parser.add_argument("--minutes", type=float, default=1e6, help="stop after so long; start again to continue")
    parser.add_argument("--list", action="store_true", help="show the cells and stop")


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace, order: Sequence[str]) -> list[str]:
    """Return the cells that are asked for, or end with an error."""
    cells = options.cells.split(",") if options.cells else list(order)
    if unknown := [cell for cell in cells if cell not in order]:
        parser.error(f"no such cells: {', '.join(unknown)}; --list shows them")
    return cells


def run_cells(
    cells: Sequence[str],
    options: argparse.Namespace,
    passed: Iterable[str],
    here: Callable[[Sequence[str], float], None],
    *,
    alone: Collection[str] = (),
) -> bool:
    """Run cells, side by side if `--jobs` says so; tell whether all are complete.

    Args:
        cells: their names.
        options: of the command line.
        passed: names of options that the process of a cell gets too, beside those of `add_options`.
        here: runs cells in this process until a time of `time.monotonic`, and raises `OutOfTime` then.
        alone: cells that run while no other does.
    """
    stop = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    if options.jobs == 1:
        try:
            here(cells, stop)
        except OutOfTime:
            print("out of time: start again to continue", flush=True)
            return False
        return True
    given = [
        word
        for name in (*passed, "output", "device")
        if (value := getattr(options, name)) is not None
        for word in ("--" + name.replace("_", "-"), *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]
    done = []
    for single, group in groupby(cells, key=lambda cell: cell in alone):
        jobs = 1 if single else options.jobs
        with ThreadPoolExecutor(jobs) as pool:
            done += list(pool.map(lambda cell, jobs=jobs: _in_process(cell, options, given, stop, jobs), group))
    return all(done)


def _in_process(cell: str, options: argparse.Namespace, given: Sequence[str], stop: float, jobs: int) -> bool:
    left = (stop - time.monotonic()) / 60
    if left <= 0:
        print(f"{cell}: not begun", flush=True)
        return False
    command = [sys.executable, sys.argv[0], "--cells", cell, "--minutes", f"{left:.2f}", *given]
    log = options.output / f"{cell}.log"
    threads = str(max((os.cpu_count() or 1) // jobs, 1))
    with log.open("w") as file:
        code = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
            env=os.environ | {"OMP_NUM_THREADS": threads},
        ).returncode
    lines = log.read_text().splitlines()
    said = [line for line in lines if not line.startswith(_PROGRESS)] if code == 0 else ["FAILED", *lines[-15:]]
    print("\n".join([f"== {cell}", *said]), flush=True)
    return code == 0 and any(line.startswith(f"{cell}: complete") for line in lines)
