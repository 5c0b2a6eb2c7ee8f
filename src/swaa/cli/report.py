"""`swaa report`: results as a web page."""

from pathlib import Path
from typing import Annotated

import typer

from swaa.cli.common import output


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...",
            help="Folders that `swaa eval` or `swaa compare` wrote, one or more, as in `results/eval-*`.",
            show_default=False,
        ),
    ],
    page: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page, as in `-o smollm2.html`. An older report there is replaced, anything else is not.",
        ),
    ] = Path("report.html"),
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the tables as Markdown too, beside the page: `report.md`.")
    ] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="Write all rows of results as CSV too, beside the page: `report.csv`.")
    ] = False,
) -> None:
    """Make one web page of results, complete in itself: it opens offline, and can be mailed or put on any server.

    It holds a table to sort and filter, scores against prefill cost with the Pareto front, bars with intervals task
    by task, scores with and without chain of thought, needles by depth and length, what each layer does, and the
    set-up of each run.

    **Examples**

    - `swaa report results/eval-20250601-093000`
    - `swaa report results/eval-small results/eval-large -o both.html --markdown --csv`
    - `swaa compare && swaa report results/compare-*`
    """
    from swaa.report.export import write_report
    from swaa.report.reading import read_runs

    runs = read_runs(results)
    try:
        paths = write_report(runs, page, markdown=markdown, csv=csv)
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    for path in paths:
        output().print(str(path), soft_wrap=True)
