"""The plots of `swaa select`: layers' scores, what a budget of full layers buys, and the front of a policy search."""

from collections.abc import Mapping, Sequence
from typing import Any

from swaa.report.drawing import FAINT, GREY, INK, SMALL, TEXT, Figure, label_points, logarithmic_up, new_figure, quiet
from swaa.report.palette import KINDS, colours

__all__ = ["budget_curve", "layer_scores", "policy_front", "shares_of_full"]

# A layer, or a layer and one of its KV heads.
_Unit = int | tuple[int, int]

FULL, NONE = "full attention", "no full layer"


def layer_scores(choices: Mapping[str, tuple[Sequence[_Unit], Mapping[_Unit, float]]], *, title: str) -> Figure:
    """Draw each layer's or KV head's score as a bar, a panel a method; the chosen ones are dark.

    Args:
        choices: what is chosen and the scores, by the method's name; a head is a pair of its layer and its number.
        title: of the figure.
    """
    legend = {"stays full": KINDS["full"], "slides": KINDS["sliding"]}
    figure = new_figure(1.4 + 1.5 * len(choices), title, "Score of each; each method has its own scale", legend)
    panels = figure.subplots(len(choices), 1, squeeze=False).flatten()
    for axes, (name, (chosen, scores)) in zip(panels, choices.items(), strict=True):
        quiet(axes, spines=("left", "bottom"))
        shades = [KINDS["full"] if unit in chosen else KINDS["sliding"] for unit in scores]
        pairs = [(unit, 0) if isinstance(unit, int) else unit for unit in scores]
        layers, heads = max((layer for layer, _ in pairs), default=0), 1 + max((head for _, head in pairs), default=0)
        # The heads of a layer stand beside each other where its bar would be.
        places = [layer + 0.8 * ((head + 0.5) / heads - 0.5) for layer, head in pairs]
        axes.bar(places, list(scores.values()), color=shades, width=0.8 / heads)
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.set_title(name, fontsize=TEXT, color=INK, loc="left")
        axes.set_xlim(-0.6, layers + 0.6)
        axes.set_xticks(range(0, layers + 1, 1 if layers < 40 else 5))
    panels[-1].set_xlabel("layer", fontsize=TEXT, color=INK)
    return figure


def budget_curve(rows: Sequence[Mapping[str, Any]], *, title: str) -> Figure:
    """Plot accuracy and NLL against the number of full layers, a line a method.

    Args:
        rows: of `curve.csv`; without held-out measures only the calibration NLL is drawn.
        title: of the figure.
    """
    measured = "accuracy" in rows[0]
    panels = [("accuracy", "accuracy"), ("nll", "NLL of the answer (nats a token)")] if measured else []
    panels = panels or [("calibration_nll", "NLL of the answer (nats a token)")]
    note = "dotted: full attention" + ("  ·  bars: 95 % interval" if measured else "  ·  on the calibration data")
    figure = new_figure(4.2, title, note)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] not in (FULL, NONE)))
    colour = colours([FULL, *methods])
    (full,), (none,) = ([row for row in rows if row["method"] == name] for name in (FULL, NONE))
    for axes, (column, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        quiet(axes, spines=("left", "bottom"))
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.set_xlabel("full layers", fontsize=TEXT, color=INK)
        axes.set_ylabel(label, fontsize=TEXT, color=INK)
        axes.axhline(full[column], color=GREY, linewidth=0.9, linestyle=":")
        for number, method in enumerate(methods):
            line = sorted([none, *(row for row in rows if row["method"] == method)], key=lambda row: row["full_layers"])
            counts, values = [row["full_layers"] for row in line], [row[column] for row in line]
            style: dict[str, Any] = {"color": colour[method], "marker": "o", "markersize": 4, "linewidth": 1.4}
            axes.plot(counts, values, label=method, zorder=3, **style)
            if column == "accuracy":
                # Beside each other, so that bars of equal budgets can be told apart.
                shifted = [count + 0.12 * (number - (len(methods) - 1) / 2) for count in counts]
                below = [row["accuracy"] - row["accuracy_low"] for row in line]
                above = [row["accuracy_high"] - row["accuracy"] for row in line]
                bars: dict[str, Any] = {"fmt": "none", "ecolor": colour[method], "elinewidth": 1, "alpha": 0.35}
                axes.errorbar(shifted, values, [below, above], **bars)
        if column == "accuracy":
            axes.set_ylim(-0.02, 1.05)
        axes.set_xticks(sorted({row["full_layers"] for row in rows} - {full["full_layers"]}))
    figure.get_axes()[-1].legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL, labelcolor=INK
    )
    return figure


def shares_of_full(lines: Mapping[str, Mapping[str, Mapping[float, float]]], *, title: str, note: str = "") -> Figure:
    """Plot the share of full attention's accuracy over the number of full layers, a panel a length, a line a recipe.

    Args:
        lines: shares by number of full layers, by recipe, by length.
        title: of the figure.
        note: below the title.
    """
    figure = new_figure(4.2, title, "share of full attention's accuracy" + (f"  ·  {note}" if note else ""))
    colour = colours(["full attention", *dict.fromkeys(recipe for panel in lines.values() for recipe in panel)])
    every = figure.subplots(1, len(lines), squeeze=False, sharey=True)[0]
    for axes, (length, panel) in zip(every, lines.items(), strict=True):
        quiet(axes, spines=("left", "bottom"))
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.axhline(1, color=GREY, linewidth=0.9, linestyle=":")
        axes.set_title(length, fontsize=TEXT, color=INK, loc="left")
        axes.set_xlabel("full layers", fontsize=TEXT, color=INK)
        for recipe, shares in panel.items():
            counts = sorted(shares)
            values = [shares[count] for count in counts]
            axes.plot(counts, values, label=recipe, color=colour[recipe], marker="o", markersize=4, linewidth=1.4)
        axes.set_xticks(sorted({count for shares in panel.values() for count in shares}))
    handles = {line.get_label(): line for axes in every for line in axes.get_lines() if line.get_marker() == "o"}
    every[-1].legend(
        list(handles.values()),
        list(handles),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
    )
    return figure


def policy_front(rows: Sequence[Mapping[str, Any]], *, cost: str, label: str, title: str) -> Figure:
    """Plot the answers' NLL of all measured recipes over a cost; the front is dark and named.

    Args:
        rows: of `policy.csv`: "recipe", "calibration_nll", "on_front" and the cost.
        cost: the column of the cost.
        label: of the cost axis.
        title: of the figure.
    """
    figure = new_figure(5.0, title, "dark: nothing measured is as good and as cheap in prefill and memory")
    axes = figure.add_subplot()
    quiet(axes, spines=("left", "bottom"))
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, fontsize=TEXT, color=INK)
    axes.set_ylabel("NLL of the answer (nats a token), calibration data", fontsize=TEXT, color=INK)
    logarithmic_up(axes)
    for wanted, shade in ((False, KINDS["sliding"]), (True, KINDS["full"])):
        some = [row for row in rows if bool(row["on_front"]) == wanted]
        axes.scatter([row[cost] for row in some], [row["calibration_nll"] for row in some], color=shade, s=18, zorder=3)
    axes.margins(x=0.15, y=0.15)
    front = {row["recipe"]: (row[cost], row["calibration_nll"]) for row in rows if row["on_front"]}
    label_points(axes, front, colours(front), [])
    return figure
