"""What all plots share: header, colours, quiet axes, labels that do not overlap. The only importer of matplotlib."""

from collections.abc import Mapping, Sequence
from typing import Any

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Patch
    from matplotlib.path import Path
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator
    from matplotlib.transforms import Bbox
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("plots need matplotlib: pip install 'swaa[demo]'", name=error.name) from error

# Inches, and points for the fonts: at 900 pixels the smallest text is 11 pixels high.
WIDTH, DPI = 9.0, 150
TITLE, TEXT, SMALL = 12, 9, 8
# A label further than this above or below its point, in points, gets a line that leads back.
NEAR = 5
INK, GREY, FAINT = "#222222", "#666666", "#D4D4D4"


def colour_map(shades: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments that make an image of integers take the shades in their order."""
    return {"cmap": ListedColormap(list(shades.values())), "vmin": 0, "vmax": len(shades) - 1}


def new_figure(height: float, title: str, subtitle: str, legend: Mapping[str, str] | None = None) -> Figure:
    """Make an empty figure with a header at a fixed distance from the top; the layout fills what is below it.

    Args:
        height: in inches; the width is fixed.
        title: in bold.
        subtitle: one or more small lines.
        legend: shades by label.
    """
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left, below = 0.1 / WIDTH, 0.36
    figure.text(left, 1 - 0.1 / height, title, fontsize=TITLE, color=INK, weight="bold", va="top")
    figure.text(left, 1 - below / height, subtitle, fontsize=SMALL, color=GREY, va="top", linespacing=1.4)
    below += 0.18 * (subtitle.count("\n") + 1)
    if legend:
        figure.legend(
            handles=[Patch(facecolor=shade, label=label) for label, shade in legend.items()],
            loc="upper left",
            bbox_to_anchor=(0, 1 - below / height),
            ncols=len(legend),
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            handlelength=1.2,
            columnspacing=1.6,
        )
        below += 0.3
    rect = (0, 0, 1, 1 - (below + 0.05) / height)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=rect, w_pad=0.08, h_pad=0.08, wspace=0.02, hspace=0.02))
    return figure


def quiet(axes: Axes, spines: Sequence[str]) -> None:
    """Make ticks and the named spines grey and thin, and hide the other spines."""
    axes.tick_params(labelsize=SMALL, colors=GREY, length=3)
    for side, spine in axes.spines.items():
        spine.set(visible=side in spines, color=GREY, linewidth=0.6)


def logarithmic(axes: Axes, ticks: Mapping[float, str]) -> None:
    """Make both axes logarithmic: labels at the given places below, and at 1, 2 and 5 of each decade at the left."""
    axes.set(xscale="log")
    logarithmic_up(axes, (1, 2, 5))
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()


def logarithmic_up(axes: Axes, places: Sequence[float] = (1, 1.5, 2, 3, 5, 7)) -> None:
    """Make the vertical axis logarithmic, with plain numbers at the given places of each decade."""
    axes.set(yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=places))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def label_points(
    axes: Axes,
    points: Mapping[str, tuple[float, float]],
    colour: Mapping[str, str],
    lines: Sequence[tuple[float, float, float, float]],
) -> None:
    """Write each name beside its point, nudged to a free place; a thin line leads back from a far one.

    Args:
        axes: with final limits; nothing may be added to the figure afterwards that changes the layout.
        points: in data coordinates.
        colour: of the points.
        lines: (x, y, x, y) of vertical or horizontal lines that a label should rather not lie on.
    """
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    centres = {name: tuple(axes.transData.transform(xy)) for name, xy in points.items()}
    sizes = {}
    for name in points:
        probe = figure.text(0, 0, name, fontsize=TEXT)
        sizes[name] = probe.get_window_extent().size
        probe.remove()
    avoided = [Bbox(axes.transData.transform([line[:2], line[2:]])).padded(DPI / 72) for line in lines]
    # Placing is greedy, so which label comes first matters: try a few orders.
    keys = [lambda name, axis=axis, sign=sign: sign * points[name][axis] for axis in (0, 1) for sign in (1, -1)]
    orders = [sorted(points, key=key) for key in keys]
    tried = [_place(order, centres, sizes, axes.get_window_extent(), avoided) for order in orders]
    for name, (side, across, up) in min(tried, key=lambda attempt: attempt[0])[1].items():
        leader = {"arrowstyle": "-", "color": colour[name], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4}
        label = axes.annotate(
            name,
            points[name],
            xytext=(side * across, up),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=TEXT,
            color=INK,
            zorder=5,
            arrowprops=leader | {"relpos": (0 if side > 0 else 1, 0.5)} if abs(up) > NEAR else None,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        label.set_in_layout(False)


def _place(
    order: Sequence[str],
    centres: Mapping[str, tuple[float, float]],
    sizes: Mapping[str, tuple[float, float]],
    inside: Bbox,
    avoided: Sequence[Bbox],
) -> tuple[float, dict[str, tuple[int, float, int]]]:
    """Give each name in turn its cheapest place: the total cost, and (side, points across, points up) by name."""
    pixels, total, places = DPI / 72, 0.0, {}
    markers = {name: Bbox.from_bounds(x, y, 0, 0).padded(5 * pixels) for name, (x, y) in centres.items()}
    taken = list(markers.values())
    for name in order:
        (x, y), (width, height) = centres[name], sizes[name]
        others = [box for box in taken if box is not markers[name]]
        options = []
        for up in range(-140, 141, 4):
            for side in (1, -1):
                across = 9 + 0.2 * abs(up)
                edge = x + side * across * pixels
                box = Bbox.from_bounds(min(edge, edge + side * width), y + up * pixels - height / 2, width, height)
                out = not (inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1)
                leader = Path([(edge, y + up * pixels), (x, y)])
                crossed = sum(leader.intersects_bbox(other) for other in others) if abs(up) > NEAR and not out else 0
                cost = 1000 * (box.count_overlaps(taken) + out) + 100 * crossed + 10 * box.count_overlaps(avoided)
                # Right of the point before left of it, where both are as good.
                options.append((cost + abs(up) - side, (side, across, up), box))
        cost, places[name], box = min(options, key=lambda option: option[0])
        total += cost
        taken.append(box)
    return total, places
