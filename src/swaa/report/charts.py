"""What the page's charts show, as plain data: points, bars, heat maps and layer maps. How they look is in page/."""

import math
from dataclasses import dataclass
from typing import Any

from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.report.means import (
    MEAN,
    Score,
    cost_of,
    lengths,
    reasonings,
    recipe_names,
    score_of,
    scored_tasks,
)
from swaa.report.palette import KINDS, layer_kind
from swaa.report.pareto import pareto_front
from swaa.report.reading import Run

COSTS = {
    "prefill_seconds": "prefill time (s)",
    "prefill_flops_ratio": "prefill arithmetic (of full attention)",
    "kv_bytes": "KV memory (bytes)",
}


@dataclass(frozen=True)
class HeatMap:
    """One recipe's scores of needles, by depth and length.

    Attributes:
        recipe: its name.
        depths: label of each line, the start of the text first.
        lengths: of the columns.
        cells: (mean score, samples), by line and column; None: no sample there.
    """

    recipe: str
    depths: list[str]
    lengths: list[int]
    cells: list[list[tuple[float, int] | None]]


@dataclass(frozen=True)
class LayerMap:
    """One recipe's layers.

    Attributes:
        recipe: its name.
        kinds: an entry of `KINDS` for each layer.
        notes: what each layer does, in words.
    """

    recipe: str
    kinds: list[str]
    notes: list[str]


def chart_data(run: Run) -> dict[str, Any]:
    """Return what the interactive charts of a run draw, ready for JSON; lists are by recipe.

    Each view is one length, kind of reasoning and task (`MEAN`: the mean over all), with the recipes on its Pareto
    front for each cost.
    """
    names = recipe_names(run)
    costs = {
        length: {key: [cost_of(run, name, length)[key] for name in names] for key in COSTS} for length in lengths(run)
    }
    views = []
    for length in lengths(run):
        for reasoning in reasonings(run):
            tasks = scored_tasks(run, length, reasoning)
            for task in [MEAN, *tasks] if len(tasks) > 1 else tasks:
                over = tasks if task == MEAN else [task]
                scores = [score_of(run, name, over, length, reasoning) for name in names]
                view = {"length": length, "reasoning": reasoning, "task": task, **_columns(scores)}
                views.append(view | {"front": _fronts(costs[length], scores)})
    used = {key: label for key, label in COSTS.items() if any(x is not None for by in costs.values() for x in by[key])}
    data = {"recipes": names, "full": names.index(run.full) if run.full in names else None, "costs": costs}
    return data | {"measures": used, "views": views, "thought": chain_of_thought(run)}


def chain_of_thought(run: Run) -> list[dict[str, Any]]:
    """Return scores by kind of reasoning, over the tasks that were run with each kind; empty for a run with one kind.

    Source: method 4 of arXiv 2512.10411.
    """
    modes, compared = reasonings(run), []
    if len(modes) < 2:
        return []
    for length in lengths(run):
        tasks = [x for x in scored_tasks(run, length) if all(x in scored_tasks(run, length, mode) for mode in modes)]
        for task in [MEAN, *tasks] if len(tasks) > 1 else tasks:
            over = tasks if task == MEAN else [task]
            scores = {m: _columns([score_of(run, name, over, length, m) for name in recipe_names(run)]) for m in modes}
            compared.append({"length": length, "task": task, "modes": scores})
    return compared


def heat_maps(run: Run) -> dict[tuple[str, str], list[HeatMap]]:
    """Return the heat maps of a run's needles, one a recipe, by (task, reasoning)."""
    maps: dict[tuple[str, str], list[HeatMap]] = {}
    for task, reasoning in dict.fromkeys((task, reasoning) for _, task, _, reasoning, *_ in run.depths):
        points = [(r, x, d, s) for r, t, x, m, d, s in run.depths if (t, m) == (task, reasoning)]
        columns = sorted({length for _, length, *_ in points})
        known = sorted({depth for *_, depth, _ in points})
        # All recipes answer the same samples. Depths of a grid come back, and each is a line of its own; drawn ones do
        # not, and are put into bins, wide enough for more than one or two samples in a cell.
        samples = len(points) / len({recipe for recipe, *_ in points})
        bins = None if 2 * len(known) <= samples else 5 if samples / len(columns) < 50 else 10
        lines = sorted({_line(depth, bins) for depth in known})
        found: dict[tuple[str, float, int], list[float]] = {}
        for recipe, length, depth, score in points:
            found.setdefault((recipe, _line(depth, bins), length), []).append(score)
        maps[task, reasoning] = [
            HeatMap(
                recipe,
                [_depth_label(line, bins) for line in lines],
                columns,
                [[_cell(found.get((recipe, line, length), [])) for length in columns] for line in lines],
            )
            for recipe in recipe_names(run)
            if any(r == recipe for r, *_ in points)
        ]
    return maps


def layer_maps(run: Run) -> list[LayerMap]:
    """Return what each layer does under each recipe; empty if the run did not record it."""
    maps = []
    for recipe, layers in run.layers.items():
        try:
            rules = SWAAConfig.from_dict(run.recipes[recipe]["config"]).resolve(len(layers))
        except (KeyError, TypeError, ConfigError):
            # Made by another version: what the run wrote down itself is still true.
            rules = tuple(LayerRule(None if layer == "full" else 1) for layer in layers)
            kinds = ["native window, left alone" if layer == "native" else layer for layer in layers]
            maps.append(LayerMap(recipe, kinds, kinds))
            continue
        ours = [None if layer == "native" else rule for layer, rule in zip(layers, rules, strict=True)]
        maps.append(LayerMap(recipe, [layer_kind(rule) for rule in ours], [_layer_note(rule) for rule in ours]))
    return maps


def used_kinds(maps: list[LayerMap]) -> list[str]:
    """Return the kinds of layers that occur, in the order of `KINDS`."""
    found = {kind for each in maps for kind in each.kinds}
    return [kind for kind in KINDS if kind in found]


def _columns(scores: list[Score | None]) -> dict[str, list[Any]]:
    names = {"score": "value", "low": "low", "high": "high", "count": "count", "unparsed": "unparsed"}
    names |= {"truncated": "truncated"}
    return {key: [getattr(score, name, None) for score in scores] for key, name in names.items()}


def _fronts(costs: dict[str, list[float | None]], scores: list[Score | None]) -> dict[str, list[int]]:
    fronts = {}
    for key, column in costs.items():
        both = {
            str(index): (cost, score.value)
            for index, (cost, score) in enumerate(zip(column, scores, strict=True))
            if cost is not None and score is not None
        }
        fronts[key] = [int(index) for index in pareto_front(both)]
    return fronts


def _line(depth: float, bins: int | None) -> float:
    return depth if bins is None else min(math.floor(depth * bins), bins - 1) / bins


def _depth_label(line: float, bins: int | None) -> str:
    return f"{100 * line:.0f} %" if bins is None else f"{100 * line:.0f}–{100 * (line + 1 / bins):.0f} %"


def _cell(scores: list[float]) -> tuple[float, int] | None:
    return (math.fsum(scores) / len(scores), len(scores)) if scores else None


def _layer_note(rule: LayerRule | None) -> str:
    if rule is None or rule.window is None:
        return layer_kind(rule)
    parts = [f"window {rule.window}"]
    parts += [f"{rule.sinks} sinks"] * bool(rule.sinks) + [f"dense tail {rule.dense_tail}"] * bool(rule.dense_tail)
    parts += [f"KV heads {', '.join(map(str, rule.full_heads))} full"] * bool(rule.full_heads)
    parts += ["FA decode"] * (bool(rule.full_heads) and rule.fa_decode)
    return f"{layer_kind(rule)}: {', '.join(parts)}"
