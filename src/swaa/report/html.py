"""The web page: one file without a single external address. Its templates, styles and scripts are in page/."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the report needs jinja2: pip install 'swaa[report]'", name=error.name) from error

import yaml

import swaa
from swaa.report.charts import chart_data, heat_maps, layer_maps, used_kinds
from swaa.report.means import MEAN, REASONING, lengths, overview, reasonings, recipe_names, scored_tasks
from swaa.report.palette import DARK_KINDS, DARK_PALETTE, KINDS, PALETTE
from swaa.report.reading import Run
from swaa.report.tables import (
    UNKNOWN,
    describe,
    length_text,
    overview_table,
    percent,
    results_table,
    seconds_text,
)

_FOLDER = Path(__file__).parent / "page"
# In this order they make one script.
_SCRIPTS = ("dom.js", "tooltip.js", "tables.js", "choice.js", "labels.js", "scatter.js", "bars.js", "page.js")


def page(runs: Sequence[Run]) -> str:
    """Return the report as an HTML page that needs nothing else.

    Args:
        runs: at least one.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters |= {"tokens": length_text, "percent": percent, "describe": describe}
    names = list(dict.fromkeys(name for run in runs for name in [*run.recipes, *recipe_names(run)]))
    colour = {name: f"var(--recipe-{index % len(PALETTE)})" for index, name in enumerate(names)}
    script = f'(() => {{\n"use strict";\n{"".join(_read(name) for name in _SCRIPTS)}}})();\n'
    return environment.get_template("page.html.j2").render(
        runs=[_sections(run, f"run-{number}", colour) for number, run in enumerate(runs, 1)],
        results=results_table(runs),
        colour=colour,
        shades={name: f"var(--kind-{index})" for index, name in enumerate(KINDS)},
        reasoning=REASONING,
        version=swaa.__version__,
        style=Markup(_colours() + _read("style.css")),
        # The page runs this script and no other: a name in the results can never become one.
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _sections(run: Run, key: str, colour: Mapping[str, str]) -> dict[str, Any]:
    """Return what the templates of one run print."""
    data, layers = chart_data(run), layer_maps(run)
    labels = {
        "task": {MEAN: "mean of all tasks"},
        "length": {str(length): length_text(length) for length in lengths(run)},
        "reasoning": REASONING,
        "measure": data["measures"],
    }
    return {
        "key": key,
        "run": run,
        "cards": _cards(run),
        "overview": overview_table(run),
        "data": data | {"colours": [colour[name] for name in data["recipes"]], "labels": labels},
        "scored": bool(data["views"]),
        "costed": bool(data["measures"]),
        "heat_maps": heat_maps(run),
        "layer_maps": layers,
        "kinds": used_kinds(layers),
        "facts": _facts(run.facts),
        "sessions": [_facts(session) for session in run.sessions] if len(run.sessions) > 1 else [],
        "settings": _facts(run.settings),
        "environment": _facts(run.environment),
        "model": _facts({"name": run.model} | run.model_config),
        "yaml": {name: yaml.safe_dump(recipe, sort_keys=False, width=80) for name, recipe in run.recipes.items()},
    }


def _cards(run: Run) -> list[tuple[str, str, str]]:
    """Return the figures at the top: what is measured, its value, and a note."""
    longest = lengths(run)[-1]
    at, tasks = length_text(longest), scored_tasks(run, longest, reasonings(run)[0])
    over = f"mean of {len(tasks)} tasks" if len(tasks) > 1 else "".join(tasks)
    rows = [row for row in overview(run) if row.reasoning == reasonings(run)[0]]
    scored = [(row, score.value) for row in rows if (score := row.scores[longest])]
    cards = [
        ("full attention", percent(value, " %"), f"{over} at {at}") for row, value in scored if row.recipe == run.full
    ]
    others = [(row, value) for row, value in scored if row.recipe != run.full]
    if others:
        # Of equal scores the one with the faster prefill.
        best, value = max(others, key=lambda item: (item[1], -(item[0].cost["prefill_seconds"] or 0)))
        note = over if best.ratio is None else f"{percent(best.ratio)} % of full attention's score"
        cards.append((f"best adapted: {best.recipe}", percent(value, " %"), note))
        if share := best.cost_ratio["prefill_seconds"]:
            time = seconds_text(best.cost["prefill_seconds"])
            cards.append(
                ("prefill of the best adapted", f"{1 / share:.2f}x", f"as fast as full attention: {time} at {at}")
            )
    missing = {key: sum(row[key] or 0 for row in run.rows) for key in ("unparsed", "truncated")}
    counted = [row["count"] for row in run.rows if row["score"] is not None]
    note = f"{len(recipe_names(run))} recipes; {missing['unparsed']} unparsed, {missing['truncated']} cut off"
    return [*cards, ("scored samples", f"{sum(counted):,}", note)] if counted else cards


def _facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the entries of a mapping as text, lists with commas."""
    return [(str(key).replace("_", " "), _fact(value)) for key, value in content.items()]


def _fact(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(_fact, value))
    elif isinstance(value, dict):
        value = ", ".join(f"{key}: {_fact(each)}" for key, each in value.items())
    elif not isinstance(value, str | None):
        value = json.dumps(value)
    return value or UNKNOWN


def _colours() -> str:
    """Return the colours of recipes and layers as CSS variables, for both themes."""
    pairs = {f"recipe-{i}": pair for i, pair in enumerate(zip(PALETTE, DARK_PALETTE, strict=True))}
    pairs |= {f"kind-{i}": (KINDS[kind], DARK_KINDS[kind]) for i, kind in enumerate(KINDS)}
    lines = [f"  --{name}: light-dark({light}, {dark});\n" for name, (light, dark) in pairs.items()]
    return f":root {{\n{''.join(lines)}}}\n"


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
