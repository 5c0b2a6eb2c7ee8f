"""The plots of `swaa compare`: pure functions from data to a matplotlib Figure. pyplot and its state are never used."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swaa.adapting import plan_layers
from swaa.config import LayerRule, SWAAConfig
from swaa.geometry import Geometry, build_geometry
from swaa.mask import oracle_mask
from swaa.report.drawing import (
    DPI,
    FAINT,
    GREY,
    INK,
    SMALL,
    TEXT,
    WIDTH,
    Figure,
    colour_map,
    label_points,
    new_figure,
    quiet,
)
from swaa.report.palette import KINDS, colours, layer_kind
from swaa.report.pareto import pareto_front

if TYPE_CHECKING:
    from swaa.compare import Comparison

__all__ = [
    "KINDS",
    "REASONS",
    "accuracy_against_time",
    "colours",
    "layer_map",
    "mask_grid",
    "reasons",
    "save",
    "save_comparison",
]

# Why a key is visible; each case is part of the one before it (`reasons`). Blues darken with what is visible, so the
# pictures survive any colour vision and a grey printer.
REASONS = {
    "the future": "#FFFFFF",
    "not visible": "#ECECEC",
    "dense row: FA decode, tail or full layer": "#173B68",
    "sink token": "#E69F00",
    "in the window": "#7FB9E2",
}


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=DPI, format="png")


def save_comparison(outcome: "Comparison", folder: Path) -> list[Path]:
    """Write the plots of `swaa compare` into an existing folder; return the files."""
    settings, recipes = outcome.settings, outcome.recipes
    configs = {recipe.name: recipe.config for recipe in recipes}
    title = f"{outcome.model}: {settings.task}, {settings.length} tokens, {settings.samples} samples"
    time_label = f"prefill of {settings.length} tokens (s)"
    figures = {
        "accuracy-prefill": accuracy_against_time(
            outcome.rows, title=title, full=recipes[0].name, time_label=time_label
        ),
        "masks": mask_grid(configs, outcome.model_config.num_hidden_layers),
        "layers": layer_map(configs, outcome.model_config),
    }
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    return [folder / f"{name}.png" for name in figures]


def accuracy_against_time(
    rows: Sequence[Mapping[str, Any]], *, title: str, time_label: str, full: str = "full"
) -> Figure:
    """Plot what each recipe costs and gives: accuracy over prefill time, with the Pareto front.

    Args:
        rows: one a recipe, with "recipe", "accuracy" (0 to 1), "prefill_seconds", and where known "accuracy_low" and
            "accuracy_high" (95 % interval).
        title: of the figure.
        time_label: of the time axis.
        full: the recipe that is full attention: it gets its own marker and reference lines.
    """
    names = [row["recipe"] for row in rows]
    points = {row["recipe"]: (row["prefill_seconds"], row["accuracy"]) for row in rows}
    bars, colour = {row["recipe"]: _bar(row) for row in rows}, colours(names)
    notes = ["bars: 95 % interval"] * any(map(any, bars.values())) + ["thin line: Pareto front"]
    notes += ["dotted: full attention"] * (full in points)
    figure = new_figure(5.4, title, "  ·  ".join(notes))
    axes = figure.add_subplot()
    quiet(axes, spines=("left", "bottom"))
    axes.set_xlabel(time_label, fontsize=TEXT, color=INK)
    axes.set_ylabel("accuracy", fontsize=TEXT, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    fastest, slowest = min(x for x, _ in points.values()), max(x for x, _ in points.values())
    # Room for labels on both sides; times that are all but equal must not look far apart.
    span = max(slowest - fastest, 0.1 * slowest)
    axes.set(xlim=(max(fastest - 0.45 * span, 0), slowest + 0.4 * span), ylim=(0, 1.05))

    front = [points[name] for name in pareto_front(points)]
    corners = [front[0]]
    for x, y in [*front[1:], (axes.get_xlim()[1], front[-1][1])]:
        corners += [(x, corners[-1][1]), (x, y)]
    axes.plot(*zip(*corners, strict=True), color=GREY, linewidth=0.8, zorder=2, label="Pareto front")
    lines = [(*a, *b) for a, b in pairwise(corners)]
    if full in points:
        reference: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "linestyle": ":", "zorder": 1}
        (left, right), (x, y) = axes.get_xlim(), points[full]
        axes.axvline(x, **reference)
        axes.axhline(y, **reference)
        lines += [(x, 0, x, 1.05), (left, y, right, y)]
    for name, (x, y) in points.items():
        low, high = bars[name]
        lines.append((x, y - low, x, y + high))
        style: dict[str, Any] = {"fmt": "D", "markersize": 8.5} if name == full else {"fmt": "o", "markersize": 8}
        # A recipe at accuracy 0 sits on the axis: clipped, half of its marker would be missing.
        style |= {"markeredgecolor": "white", "markeredgewidth": 0.8, "clip_on": False, "zorder": 4, "label": name}
        yerr = [[low], [high]] if low or high else None
        drawn = axes.errorbar([x], [y], yerr, color=colour[name], elinewidth=1.4, **style)
        for bar in drawn.lines[2]:
            bar.set(alpha=0.4, zorder=3)
    label_points(axes, points, colour, lines)
    return figure


def mask_grid(recipes: Mapping[str, SWAAConfig], num_layers: int, *, prompt: int = 48, new: int = 16) -> Figure:
    """Draw what the rows of each recipe's sliding layers see, on a small schematic prompt.

    Where they differ (FA decode in some layers only), the commonest kind is drawn; full heads are causal.

    Args:
        recipes: configurations by name.
        num_layers: depth of the model.
        prompt: prompt tokens of the schematic.
        new: generated tokens of the schematic.
    """
    columns = 4 if max(map(len, recipes)) <= 24 else 3
    lines = -(-len(recipes) // columns)
    subtitle = (
        "A row is a query, a column a key; the line parts prompt rows from generated rows. Full layers are causal.\n"
        f"Schematic, not to scale: {prompt} prompt and {new} generated tokens, with window, sinks and tail shrunk so "
        "that all parts show."
    )
    legend = {reason: REASONS[reason] for reason in reversed(REASONS) if reason != "the future"}
    height = 1.3 + lines * (WIDTH / columns + 0.5)
    figure = new_figure(height, "What a row sees in the sliding layers of each recipe", subtitle, legend)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes in panels[len(recipes) :]:
        axes.set_axis_off()
    colour, geometry = colours(recipes), build_geometry(batch=1, past=0, rows=prompt + new, prompt_end=prompt)
    for index, (name, config) in enumerate(recipes.items()):
        axes = panels[index]
        plain = [replace(rule, full_heads=()) for rule in config.resolve(num_layers)]
        sliding = Counter(rule for rule in plain if rule.window is not None)
        rule = sliding.most_common(1)[0][0] if sliding else LayerRule()
        codes = reasons(geometry, _shrunk(rule, list(recipes.values()), prompt))
        axes.imshow(codes.numpy(), interpolation="nearest", **colour_map(REASONS))
        axes.axhline(prompt - 0.5, color="#D55E00", linewidth=1)
        quiet(axes, spines=("left", "right", "top", "bottom"))
        axes.set_xticks([])
        axes.set_yticks([(prompt - 1) / 2, prompt + (new - 1) / 2], ["prompt", "new"], rotation=90, va="center")
        axes.tick_params(length=0, labelleft=index % columns == 0)
        note = f"{_numbers(config)}\n{num_layers - sliding.total()} of {num_layers} layers full"
        if isinstance(config.fa_decode, tuple):
            note += f", FA decode in {len(config.fa_decode)}"
        if config.full_heads:
            note += f", some heads of {len(config.full_heads)}"
        corner: dict[str, Any] = {"xy": (0, 1), "xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(note, xytext=(0, 4), fontsize=SMALL, color=GREY, **corner)
        axes.annotate("●", xytext=(0, 28), fontsize=TEXT, color=colour[name], **corner)
        axes.annotate(name, xytext=(10, 28), fontsize=TEXT, color=INK, weight="bold", **corner)
    return figure


def layer_map(recipes: Mapping[str, SWAAConfig], model_config: Any) -> Figure:
    """Draw what each layer of a model does under each recipe.

    Args:
        recipes: configurations by name.
        model_config: the (text) configuration of the model.

    Raises:
        AdaptError: the model has no layer to adapt.
        ConfigError: a recipe does not fit the model.
    """
    plans = {name: [layer_kind(rule) for rule in plan_layers(model_config, config)] for name, config in recipes.items()}
    used = {kind for plan in plans.values() for kind in plan}
    legend = {kind: shade for kind, shade in KINDS.items() if kind in used}
    depth, kinds, colour = model_config.num_hidden_layers, list(KINDS), colours(recipes)
    subtitle = f"{depth} layers; right: how many of them see everything"
    figure = new_figure(1.4 + 0.4 * len(recipes), "What each layer does", subtitle, legend)
    axes = figure.add_subplot()
    codes = [[kinds.index(kind) for kind in plan] for plan in plans.values()]
    axes.pcolormesh(codes, edgecolors="white", linewidth=1.2 if depth <= 40 else 0.6, **colour_map(KINDS))
    axes.hlines(range(len(plans) + 1), 0, depth, color="white", linewidth=8)
    axes.invert_yaxis()
    quiet(axes, spines=())
    step = next(step for step in (1, 2, 5, 10, 20, depth) if depth <= 16 * step)
    numbered = range(0, depth, step)
    axes.set_xticks([layer + 0.5 for layer in numbered], [str(layer) for layer in numbered])
    axes.set_yticks([])
    axes.set_xlabel("layer", fontsize=TEXT, color=INK)
    axes.tick_params(length=0)
    for index, (name, plan) in enumerate(plans.items()):
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        left = {"xy": (0, index + 0.5), "ha": "right", **place}
        axes.annotate("●", xytext=(-3, 5), fontsize=TEXT, color=colour[name], **left)
        axes.annotate(name, xytext=(-14, 5), fontsize=TEXT, color=INK, weight="bold", **left)
        axes.annotate(_numbers(recipes[name]), xytext=(-14, -6), fontsize=SMALL, color=GREY, **left)
        count = f"{plan.count('full')} full"
        if heads := recipes[name].full_heads:
            count += f", {len(heads)} in part"
        axes.annotate(count, (1, index + 0.5), xytext=(6, 0), fontsize=SMALL, color=GREY, **place)
    return figure


def reasons(geometry: Geometry, rule: LayerRule) -> Tensor:
    """Tell why each key is visible: `[rows, columns]` numbers of the entries of `REASONS`, from the oracle alone."""
    masks = [oracle_mask(geometry, LayerRule()), oracle_mask(geometry, rule)]
    if rule.window is not None:
        masks += [oracle_mask(geometry, LayerRule(rule.window, sinks)) for sinks in (rule.sinks, 0)]
    return torch.stack([mask[0] for mask in masks]).sum(0)


def _shrunk(rule: LayerRule, configs: Sequence[SWAAConfig], prompt: int) -> LayerRule:
    """Shrink a rule to a schematic prompt, where the largest value among the recipes gets a fixed share of it."""
    small = {}
    for name, share in {"window": 5, "sinks": 12, "dense_tail": 9}.items():
        value, largest = getattr(rule, name), max(getattr(config, name) or 0 for config in configs)
        if value:
            # The root keeps a value visible beside one ten times as large.
            small[name] = min(value, max(1, round(prompt / share * (value / largest) ** 0.3)))
    return replace(rule, **small)


def _numbers(config: SWAAConfig) -> str:
    if config.window is None:
        return "full attention"
    counts = {f"{config.sinks} sinks": config.sinks, f"tail {config.dense_tail}": config.dense_tail}
    return ", ".join([f"window {config.window}", *(text for text, count in counts.items() if count)])


def _bar(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return the lengths of an error bar below and above its point; one that is not known has length 0."""
    accuracy, low, high = row["accuracy"], row.get("accuracy_low"), row.get("accuracy_high")
    return 0.0 if low is None else max(accuracy - low, 0.0), 0.0 if high is None else max(high - accuracy, 0.0)
