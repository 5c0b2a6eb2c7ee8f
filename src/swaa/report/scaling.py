"""The plots of `swaa bench`: how time and memory grow with the length, on logarithmic axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from swaa.report.drawing import FAINT, INK, SMALL, TEXT, Figure, logarithmic, new_figure, quiet
from swaa.report.palette import colours

__all__ = ["against_length", "lines"]

Line = list[tuple[int, float]]


def lines(rows: Sequence[Mapping[str, Any]], name: str, value: str) -> dict[str, Line]:
    """Collect the points of each line: (length, value) by name. A row without a value has none; the last one counts.

    Args:
        rows: with "length" and the two columns.
        name: the column that names the lines.
        value: the column that is drawn.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row[value]:
            found.setdefault(str(row[name]), {})[row["length"]] = row[value]
    return {key: sorted(points.items()) for key, points in found.items()}


def against_length(
    measured: Mapping[str, Line], *, title: str, subtitle: str, label: str, floors: Mapping[str, Line] | None = None
) -> Figure:
    """Plot lines over the length, floors dashed.

    Args:
        measured: points by name; a floor of the same name gets the colour of its line.
        title: of the figure.
        subtitle: one small line.
        label: of the vertical axis.
        floors: points by name.
    """
    floors = floors or {}
    figure = new_figure(5.4, title, subtitle)
    axes = figure.add_subplot()
    quiet(axes, spines=("left", "bottom"))
    lengths = sorted({length for points in measured.values() for length, _ in points})
    logarithmic(axes, {length: _tokens(length) for length in lengths})
    axes.set_xlabel("tokens", fontsize=TEXT, color=INK)
    axes.set_ylabel(label, fontsize=TEXT, color=INK)
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    colour = colours([*measured, *(name for name in floors if name not in measured)])
    for name, points in measured.items():
        axes.plot(*zip(*points, strict=True), color=colour[name], marker="o", markersize=5, linewidth=1.4, label=name)
    for name, points in floors.items():
        style: dict[str, Any] = {"color": colour[name], "linewidth": 1.0, "linestyle": "--", "marker": "_"}
        axes.plot(*zip(*points, strict=True), zorder=1, label=f"floor: {name}", **style)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL, labelcolor=INK)
    return figure


def _tokens(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)
