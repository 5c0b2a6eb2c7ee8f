"""Writing a report: the HTML page, and the same tables as Markdown and CSV."""

from collections.abc import Sequence
from pathlib import Path

from swaa.report.means import lengths
from swaa.report.reading import Run
from swaa.report.tables import Table, csv_rows, describe, length_text, overview_table, results_table
from swaa.results import write_csv

# How a file starts that a report may overwrite.
_MARKS = {
    ".html": "<!doctype html><!-- swaa report -->",
    ".md": "<!-- swaa report -->",
    ".csv": "run,model,recipe,task,",
}


def write_report(runs: Sequence[Run], output: Path, *, markdown: bool = False, csv: bool = False) -> list[Path]:
    """Write the HTML page, and beside it what else is asked for; return the files.

    Args:
        runs: at least one.
        output: path of the page; the others have its name with .md and .csv. An older report is replaced.
        markdown: write the tables as Markdown too.
        csv: write every row of results as CSV too.

    Raises:
        ValueError: `output` does not end in .html, or a file is there that is no report.
        ModuleNotFoundError: jinja2 is missing.
    """
    from swaa.report.html import page

    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{output}: the report is a web page, give it a name that ends in .html")
    paths = [output, *[output.with_suffix(".md")] * markdown, *[output.with_suffix(".csv")] * csv]
    for path in paths:
        if path.exists() and not _is_report(path):
            raise ValueError(f"{path} exists and is no report of swaa: move it, or choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(f"{_MARKS['.html']}\n{page(runs)}", encoding="utf-8")
    if markdown:
        output.with_suffix(".md").write_text(f"{_MARKS['.md']}\n{to_markdown(runs)}", encoding="utf-8")
    if csv:
        write_csv(output.with_suffix(".csv"), csv_rows(runs))
    return paths


def to_markdown(runs: Sequence[Run]) -> str:
    """Return the overview of each run and the table of all results as Markdown."""
    parts = ["# Evaluation"]
    for run in runs:
        longest = length_text(lengths(run)[-1])
        parts += [
            f"## {_escape(run.name)}: {_escape(run.model)}",
            f"Mean score over the tasks in percent, by length; the costs are those of {longest}.",
            _markdown_table(overview_table(run)),
            "\n".join(f"- **{_escape(name)}**: {_escape(describe(recipe))}" for name, recipe in run.recipes.items()),
            _fenced(run.command),
        ]
    return "\n\n".join([*parts, "## All results", _markdown_table(results_table(runs))]) + "\n"


def _markdown_table(table: Table) -> str:
    lines = [[column.heading for column in table.columns], ["---:" if c.numeric else "---" for c in table.columns]]
    lines += [[_escape(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape(text: str) -> str:
    """Keep Markdown and HTML out of a name."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return " ".join(text.split())


def _fenced(text: str) -> str:
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"


def _is_report(path: Path) -> bool:
    mark = _MARKS[".html" if path.suffix.lower() == ".htm" else path.suffix.lower()]
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(len(mark)) == mark
