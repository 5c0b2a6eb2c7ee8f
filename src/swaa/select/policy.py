"""The whole policy: window, sinks, dense tail, FA decode and full layers searched together under cost limits.

They trade against each other: a dense tail of 32 rows can replace 15 full layers under FA decode, and does nothing
without it. The search measures a spread of recipes first, and then the neighbours of the best ones (one setting a step
up or down), until its trials are spent. Which layers are full, for a number of them, is the order of `swaa.select.nll`,
once with FA decode and once without.
"""

import itertools
import random
from dataclasses import dataclass
from typing import Any, NamedTuple

from swaa.adapting import plan_layers
from swaa.config import SWAAConfig
from swaa.cost import RelativeCost, active_weights, relative_cost
from swaa.report.pareto import non_dominated
from swaa.select.nll import Nll
from swaa.select.problem import Problem
from swaa.select.scoring import Score, Scorer

# Recipes a generation, and the differences of NLL that are noise: a recipe is not better for less.
_GENERATION, _NOISE = 8, 0.01


class Point(NamedTuple):
    """A policy, as places in the lists of `Grid`: neighbours differ by 1 in one of them."""

    window: int
    sinks: int
    dense_tail: int
    fa_decode: int
    full: int


@dataclass(frozen=True)
class Grid:
    """The settings that are searched, each ascending.

    Args:
        window: tokens.
        sinks: tokens.
        dense_tail: prompt rows.
        fa_decode: off, on.
        full: numbers of full layers.
    """

    window: tuple[int, ...]
    sinks: tuple[int, ...] = (0, 10, 64)
    dense_tail: tuple[int, ...] = (0, 32, 128)
    fa_decode: tuple[bool, ...] = (False, True)
    full: tuple[int, ...] = (0, 1, 2, 4, 8)

    @classmethod
    def of(cls, length: int, layers: int) -> "Grid":
        """Return a grid for prompts of `length` tokens and so many layers: windows of 1/32 to 1/4 of the length."""
        windows = sorted({max(length // share, 1) for share in (32, 16, 8, 4)})
        return cls(tuple(windows), full=tuple(sorted({0, 1, 2, 4, 8, layers // 2} & set(range(layers)))))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many settings each field has, in the order of `Point`."""
        return tuple(len(getattr(self, name)) for name in Point._fields)

    def values(self, point: Point) -> dict[str, Any]:
        """Return the settings of a point by name."""
        return {name: getattr(self, name)[place] for name, place in zip(Point._fields, point, strict=True)}


@dataclass(frozen=True)
class Trial:
    """A policy that was measured.

    Attributes:
        config: the adaptation.
        score: on the calibration data.
        cost: as fractions of full attention's.
    """

    config: SWAAConfig
    score: Score
    cost: RelativeCost


class PolicySearch:
    """A search over policies.

    Args:
        scorer: scores on the calibration data.
        length: tokens of a prompt that costs are worked out for.
        grid: what is searched.
        max_flops: most arithmetic of the prefill, as a fraction of full attention's; None: any.
        max_kv: most bytes of keys and values, likewise.
        seed: of the first recipes.

    Raises:
        ValueError: no policy is cheap enough, or the model's costs are not known.
    """

    def __init__(
        self,
        scorer: Scorer,
        length: int,
        grid: Grid,
        *,
        max_flops: float | None = None,
        max_kv: float | None = None,
        seed: int = 0,
    ):
        self.scorer, self.length, self.grid, self.seed = scorer, length, grid, seed
        self._weights = active_weights(scorer.model)
        self._layers = tuple(layer for layer in Problem(scorer, SWAAConfig(window=1)).units if isinstance(layer, int))
        # Which layers are full changes no cost, only their number: so costs come before any ranking.
        orders = {False: self._layers, True: self._layers}
        points = [Point(*places) for places in itertools.product(*map(range, grid.sizes))]
        costs = {point: self.cost(self._config(point, orders)) for point in points}
        if any(cost.flops is None or cost.kv is None for cost in costs.values()):
            raise ValueError(
                "the costs of this model are not known, so there is no front: choose layers by another method"
            )
        self.allowed = [
            point for point, cost in costs.items() if _within(cost.flops, max_flops) and _within(cost.kv, max_kv)
        ]
        if not self.allowed:
            flops, kv = (min(x for cost in costs.values() if (x := cost[i]) is not None) for i in (0, 2))
            raise ValueError(
                f"no policy is within the limits: the cheapest needs {flops:.2f} of full attention's prefill "
                f"arithmetic and {kv:.2f} of its KV bytes at {length} tokens: raise --max-flops or --max-kv, or use "
                "longer prompts"
            )

    def cost(self, config: SWAAConfig) -> RelativeCost:
        """Return what a configuration costs."""
        model = self.scorer.model.config
        rules = plan_layers(model.get_text_config(), config)
        return relative_cost(model, rules, self.length, self._weights, release_kv=config.release_kv)

    def run(self, trials: int) -> list[Trial]:
        """Measure up to `trials` policies and return them in the order in which they were tried."""
        orders = self._orders()
        tried: dict[Point, Trial] = {}
        todo = self._spread(min(max(trials // 2, 1), len(self.allowed)))
        while todo and len(tried) < trials:
            generation = todo[: trials - len(tried)]
            configs = [self._config(point, orders) for point in generation]
            scores = self.scorer.score(configs, text=f"policies, {len(tried)} of {trials}")
            for point, config, score in zip(generation, configs, scores, strict=True):
                tried[point] = Trial(config, score, self.cost(config))
            todo = self._neighbours(tried)[:_GENERATION]
        return list(tried.values())

    def planned(self, trials: int) -> int:
        """Return about how many configurations will be scored."""
        return 2 * (len(self._layers) + 1) + min(trials, len(self.allowed))

    def _orders(self) -> dict[bool, tuple[int, ...]]:
        """Return the layers, the most important first, without and with FA decode."""
        found = {}
        used = {self.grid.fa_decode[point.fa_decode] for point in self.allowed if self.grid.full[point.full]}
        for fa_decode in sorted(used):
            middle = SWAAConfig(window=self.grid.window[len(self.grid.window) // 2], sinks=10, fa_decode=fa_decode)
            scores = Nll().scores(Problem(self.scorer, middle))
            found[fa_decode] = tuple(sorted(self._layers, key=lambda layer: (-scores[layer], layer)))
        return found

    def _config(self, point: Point, orders: dict[bool, tuple[int, ...]]) -> SWAAConfig:
        values = self.grid.values(point)
        full = orders.get(values["fa_decode"], ())[: values.pop("full")]
        return SWAAConfig(**values, full_layers=full)

    def _spread(self, count: int) -> list[Point]:
        return sorted(random.Random(f"policy/{self.seed}").sample(self.allowed, count))

    def _neighbours(self, tried: dict[Point, Trial]) -> list[Point]:
        """Return the untried neighbours of the front, those of the best policies first."""
        names = {str(tuple(point)): point for point in tried}
        front = [names[name] for name in front_of({name: tried[point] for name, point in names.items()})]
        allowed, found = set(self.allowed), dict[Point, None]()
        for point in sorted(front, key=lambda point: tried[point].score.nll):
            for field, step in itertools.product(range(len(point)), (-1, 1)):
                moved = list(point)
                moved[field] += step
                if (new := Point(*moved)) in allowed and new not in tried:
                    found[new] = None
        return list(found)


def front_of(trials: dict[str, Trial]) -> list[str]:
    """Return the names on the Pareto front of prefill arithmetic, KV bytes and NLL, the cheapest prefill first.

    An NLL that is better by less than 0.01 nats is no better.
    """
    costs = {
        name: (trial.cost.flops or 0.0, trial.cost.kv or 0.0, round(trial.score.nll / _NOISE) * _NOISE)
        for name, trial in trials.items()
    }
    return sorted(non_dominated(costs), key=lambda name: costs[name])


def _within(cost: float | None, limit: float | None) -> bool:
    return limit is None or (cost is not None and cost <= limit)
