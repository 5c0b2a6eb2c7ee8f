"""The report's tables, as cells of text with a value to sort by; HTML and Markdown print the same cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swaa.cli.wording import quantity, short_form
from swaa.config import ConfigError, SWAAConfig
from swaa.report.means import Score, lengths, overview, reasonings, row_score
from swaa.report.reading import FIELDS, Run

UNKNOWN = "–"


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        heading: its name.
        numeric: aligned to the right, and sorted by number with the largest first.
        hint: what it means.
    """

    heading: str
    numeric: bool = True
    hint: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what is read.
        value: what is sorted by; None comes last.
        note: shown on demand.
        share: 0 to 1, shown as a shade; None: no shade.
    """

    text: str
    value: str | float | None = None
    note: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: columns and lines of as many cells; `recipes` names the recipe of each line."""

    columns: list[Column]
    rows: list[list[Cell]]
    recipes: list[str]


def overview_table(run: Run) -> Table:
    """Return one line a recipe and kind of reasoning: mean scores by length, and what the longest length costs."""
    rows, several = overview(run), len(reasonings(run)) > 1
    longest = length_text(lengths(run)[-1])
    columns = [Column("recipe", False), *([Column("reasoning", False)] if several else [])]
    columns += [Column(length_text(x), hint=f"mean score over the tasks at {x:,} tokens") for x in lengths(run)]
    columns += [
        Column("of full", hint=f"score at {longest} as a share of full attention's"),
        Column("perplexity", hint="of prose, at the longest length that has one"),
        Column("prefill", hint=f"time of the prefill at {longest}, and how many times full attention's it is"),
        Column("KV", hint=f"keys and values held at {longest}, and how many times full attention's they are"),
    ]
    lines = []
    for row in rows:
        adaptation = describe(run.recipes.get(row.recipe, {}))
        line = [Cell(row.recipe, row.recipe, adaptation)]
        line += [Cell(row.reasoning, row.reasoning)] if several else []
        line += [_score_cell(score) for score in row.scores.values()]
        seconds, size = row.cost["prefill_seconds"], row.cost["kv_bytes"]
        line += [
            Cell(percent(row.ratio, " %"), row.ratio),
            Cell(number(row.perplexity), row.perplexity),
            Cell(_with_ratio(seconds_text(seconds), row.cost_ratio["prefill_seconds"]), seconds),
            Cell(_with_ratio(bytes_text(size), row.cost_ratio["kv_bytes"]), size),
        ]
        lines.append(line)
    return _without_unknown(Table(columns, lines, [row.recipe for row in rows]))


def results_table(runs: Sequence[Run]) -> Table:
    """Return every row of results of all runs; columns in which nothing is known are left out."""
    columns = [
        *(Column("run", False), Column("recipe", False), Column("task", False), Column("length")),
        *(Column("reasoning", False), Column("samples")),
        Column("score", hint="percent of the samples, or mean score"),
        Column("95 %", hint="interval of the score"),
        Column("of full", hint="score as a share of full attention's"),
        Column("answer NLL", hint="mean negative log-likelihood of the gold answer's tokens"),
        *(Column("perplexity"), Column("prefill"), Column("KV")),
        Column("unparsed", hint="no answer, or no verdict of the judge, that could be read: they score 0"),
        Column("cut off", hint="samples whose reasoning did not end in time: they score 0"),
        Column("votes agree", hint="mean share of the judge's votes that agree"),
    ]
    lines = [_result_line(run, row) for run in runs for row in run.rows]
    return _without_unknown(Table(columns, lines, [row["recipe"] for run in runs for row in run.rows]), len(runs) > 1)


def csv_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of results with exact numbers and the names of run and model, for a CSV file."""
    return [
        {"run": run.name, "model": run.model} | {key: row[key] for key in FIELDS} for run in runs for row in run.rows
    ]


def describe(recipe: dict[str, Any]) -> str:
    """Return a recipe's adaptation in a few words."""
    try:
        return short_form(SWAAConfig.from_dict(recipe.get("config", {})))
    except (ConfigError, TypeError):
        return "a configuration of another version"


def length_text(tokens: int) -> str:
    """Write a number of tokens as the command line takes it: `4k`, `1000`."""
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)


def percent(value: float | None, unit: str = "") -> str:
    """Write a share in percent with one digit."""
    return UNKNOWN if value is None else f"{100 * value:.1f}{unit}"


def number(value: float | None) -> str:
    """Write a number with three digits, or all in front of the point."""
    return UNKNOWN if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def seconds_text(seconds: float | None) -> str:
    """Write a time in seconds or milliseconds."""
    return UNKNOWN if seconds is None else f"{seconds:#.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def bytes_text(size: float | None) -> str:
    """Write a number of bytes with a decimal prefix."""
    return UNKNOWN if size is None else quantity(size, "B")


def interval_text(score: Score) -> str:
    """Write the 95 % interval of a score."""
    return UNKNOWN if score.low is None or score.high is None else f"{percent(score.low)}–{percent(score.high)}"


def _result_line(run: Run, row: dict[str, Any]) -> list[Cell]:
    score = row_score(row)
    return [
        *(Cell(run.name, run.name), Cell(row["recipe"], row["recipe"]), Cell(row["task"], row["task"])),
        *(Cell(length_text(row["length"]), row["length"]), Cell(row["reasoning"], row["reasoning"])),
        Cell(str(row["count"]), row["count"]),
        Cell(percent(row["score"]), row["score"], share=row["score"]),
        Cell(interval_text(score) if score else UNKNOWN, row["low"]),
        Cell(percent(row["score_ratio"], " %"), row["score_ratio"]),
        *(Cell(number(row["nll"]), row["nll"]), Cell(number(row["perplexity"]), row["perplexity"])),
        Cell(seconds_text(row["prefill_seconds"]), row["prefill_seconds"]),
        Cell(bytes_text(row["kv_bytes"]), row["kv_bytes"]),
        *(Cell(str(row[key] or 0), row[key] or 0) for key in ("unparsed", "truncated")),
        Cell(percent(row["judge_agreement"], " %"), row["judge_agreement"]),
    ]


def _score_cell(score: Score | None) -> Cell:
    if score is None:
        return Cell(UNKNOWN, note="some task of this length has no score here")
    note = f"95 %: {interval_text(score)}\n{score.count} samples"
    note += f"\n{score.unparsed} unparsed" if score.unparsed else ""
    note += f"\n{score.truncated} cut off" if score.truncated else ""
    return Cell(percent(score.value), score.value, note, score.value)


def _with_ratio(text: str, ratio: float | None) -> str:
    return text if ratio is None else f"{text} ({ratio:.2f}x)"


def _without_unknown(table: Table, several_runs: bool = True) -> Table:
    """Leave out the columns that say nothing: all unknown, never cut off, or one run's name over and over."""
    kept = []
    for index, column in enumerate(table.columns):
        empty = {UNKNOWN, "0"} if column.heading in ("unparsed", "cut off") else {UNKNOWN}
        if not column.numeric or any(row[index].text not in empty for row in table.rows):
            kept.append(index)
    if not several_runs:
        kept = [index for index in kept if table.columns[index].heading != "run"]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows], table.recipes)
