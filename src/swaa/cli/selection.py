"""What `swaa select` prints and draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from swaa.cli.common import output
from swaa.cli.wording import short_form
from swaa.recipes import Recipe
from swaa.select.plan import LayerPlan
from swaa.select.problem import unit_name
from swaa.select.run import Selection

_BAR = 40


def print_plans(title: str, outcome: Selection) -> None:
    """Print each method's scores at its largest budget as bars, and what every plan measured."""
    for plan in _largest(outcome).values():
        output().print(_scores(plan))
    rows = outcome.rows
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("method", no_wrap=True)
    measured = "accuracy" in rows[0]
    for heading in (
        "full layers",
        "calibration NLL",
        *(("accuracy", "95 %", "NLL") if measured else ()),
        "prompts scored",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("layers")
    for row in rows:
        cells = [row["method"], str(row["full_layers"]), f"{row['calibration_nll']:.3f}"]
        if measured:
            ratio = row["accuracy_ratio"]
            cells.append(f"{row['accuracy']:.2f} ({'-' if ratio is None else f'{ratio:.2f}x'})")
            cells += [f"{row['accuracy_low']:.2f}-{row['accuracy_high']:.2f}", f"{row['nll']:.3f}"]
        table.add_row(*cells, str(row["passes"] or "-"), row["layers"].replace(" ", ","))
    output().print(table)


def print_policies(model: str, recipes: Sequence[Recipe], rows: Sequence[dict[str, Any]]) -> None:
    """Print full attention and the front of a policy search, the cheapest prefill first."""
    table = Table(title=f"{model}: the front (costs: of full attention's)", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("recipe", no_wrap=True)
    for heading in ("prefill", "KV", "calibration NLL", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("adaptation")
    known = {row["recipe"]: row for row in rows}
    for name, summary in [("full", "full attention"), *((x.name, short_form(x.config)) for x in recipes)]:
        row = known[name]
        accuracy = f"{row['accuracy']:.2f}" if row.get("accuracy") is not None else "-"
        table.add_row(
            name, f"{row['flops']:.2f}", f"{row['kv']:.2f}", f"{row['calibration_nll']:.3f}", accuracy, summary
        )
    output().print(table)


def save_plots(folder: Path, outcome: Selection, title: str) -> None:
    """Draw `scores.png` and `curve.png`."""
    from swaa.report import plots, selection

    choices = {
        f"{method}, {plan.budget} full": (plan.chosen, plan.scores) for method, plan in _largest(outcome).items()
    }
    plots.save(selection.layer_scores(choices, title=title), folder / "scores.png")
    plots.save(selection.budget_curve(outcome.rows, title=title), folder / "curve.png")


def save_policy_plots(folder: Path, rows: Sequence[dict[str, Any]], title: str) -> None:
    """Draw `policy-flops.png` and `policy-kv.png`."""
    from swaa.report import plots, selection

    tried = [row for row in rows if row["recipe"] != "full"]
    labels = {"flops": "prefill arithmetic (1: full attention)", "kv": "KV bytes (1: full attention)"}
    for cost, label in labels.items():
        figure = selection.policy_front(tried, cost=cost, label=label, title=title)
        plots.save(figure, folder / f"policy-{cost}.png")


def _largest(outcome: Selection) -> dict[str, LayerPlan]:
    """Return each method's plan of the largest budget."""
    return {plan.method: plan for plan in sorted(outcome.plans.values(), key=lambda plan: plan.budget)}


def _scores(plan: LayerPlan) -> Table:
    table = Table(title=f"{plan.method}: {plan.budget} full", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("head" if plan.unit == "heads" else "layer", "score"):
        table.add_column(heading, justify="right")
    table.add_column("")
    most = max((abs(score) for score in plan.scores.values()), default=0.0) or 1.0
    full = set(plan.chosen)
    for unit, score in plan.scores.items():
        # A score below zero (it is better sliding) gets a hollow bar.
        bar = ("█" if score > 0 else "░") * round(_BAR * abs(score) / most)
        chosen = unit in full
        table.add_row(
            unit_name(unit), f"{score:.4f}", Text(bar + (" full" if chosen else ""), "bold" if chosen else "")
        )
    return table
