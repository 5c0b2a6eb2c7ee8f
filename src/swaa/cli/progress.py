"""How far a long run is, and how long it will still take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from swaa.cli.common import notes

_LINE_SECONDS = 60


@contextmanager
def time_left(*, shown: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with the time left on a terminal, and a line a minute elsewhere.

    Args:
        shown: False: nothing at all (all processes of a run but one).

    Yields:
        a callback: what is done now, the work done so far, the work in all.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = notes()
    if not (shown and console.is_terminal):
        yield minute_lines(time.monotonic) if shown else lambda text, done, total: None
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    # One batch may take minutes: the speed is that of the last ten.
    with Progress(*columns, console=console, transient=True, speed_estimate_period=600) as bars:
        bar = bars.add_task("starting", total=None)
        yield lambda text, done, total: bars.update(bar, description=text, completed=done, total=total)


def minute_lines(clock: Callable[[], float]) -> Callable[[str, int, int], None]:
    """Return a callback that prints at most a line a minute.

    Args:
        clock: seconds since some moment.
    """
    begin = last = clock()

    def show(text: str, done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last < _LINE_SECONDS or not done:
            return
        last = now
        left = timedelta(seconds=round((now - begin) * (total - done) / done))
        notes().print(f"{done / total:.0%} done, about {left} left ({text})")

    return show
