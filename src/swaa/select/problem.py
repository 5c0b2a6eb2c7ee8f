"""What a selector is given and what it gives back: units, which are layers or KV heads, and those that stay full."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from swaa.adapting import plan_layers
from swaa.config import ConfigError, SWAAConfig
from swaa.cost import attention_heads, layer_kinds
from swaa.select.scoring import Score, Scorer

# A layer, or a layer and one of its KV heads.
Unit = int | tuple[int, int]
UNITS = ("layers", "heads")


@dataclass(frozen=True)
class Choice:
    """The layers or heads that a selector chose.

    Attributes:
        chosen: that stay full, ascending.
        scores: of every unit that can slide; higher: rather full. Each selector says what they are.
        passes: prompts that were scored for it (one prompt under one set of layers is one pass).
        seconds: that they took.
    """

    chosen: tuple[Unit, ...]
    scores: dict[Unit, float]
    passes: int = 0
    seconds: float = 0.0


@dataclass
class Problem:
    """Which layers, or KV heads, of a model shall stay full under a recipe.

    Attributes:
        scorer: scores on the calibration data.
        config: the recipe; its own `full_layers` and `full_heads` play no part.
        unit: "layers", or "heads": KV heads, each with its query heads.
        asked: the longest score of each configuration, for the count of passes and the time.
    """

    scorer: Scorer
    config: SWAAConfig
    unit: str = "layers"
    asked: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a recipe in which nothing slides."""
        if self.config.window is None:
            raise ConfigError(
                "the recipe is full attention, so no layer can be chosen: name another by --recipe, or set --window"
            )
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r}: use {' or '.join(UNITS)}")

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What can slide, ascending: numbers of layers, or pairs of a layer and a KV head.

        Layers with a native window are not ours.

        Raises:
            ConfigError: heads are asked for where they are no plain ones.
        """
        if self.unit == "layers":
            return self._layers
        return tuple((layer, head) for layer in self._layers for head in range(self._heads[layer]))

    @cached_property
    def _layers(self) -> tuple[int, ...]:
        bare = self.config.replace(full_layers=(), full_heads=())
        rules = plan_layers(self.scorer.model.config.get_text_config(), bare)
        return tuple(layer for layer, rule in enumerate(rules) if rule is not None)

    @cached_property
    def _heads(self) -> dict[int, int]:
        """KV heads by layer."""
        config, found = self.scorer.model.config.get_text_config(), {}
        for layer in self._layers:
            heads = attention_heads(layer_kinds(config)[layer][1])
            if heads is None:
                raise ConfigError(f"the heads of {config.model_type} are no plain ones: choose whole layers")
            found[layer] = heads[1]
        return found

    def with_full(self, units: Sequence[Unit]) -> SWAAConfig:
        """Return the recipe with these layers, or heads, full; a layer all of whose heads are full is a full layer."""
        layers = {unit for unit in units if isinstance(unit, int)}
        heads = defaultdict(set)
        for unit in units:
            if not isinstance(unit, int):
                heads[unit[0]].add(unit[1])
        for layer in [layer for layer, some in heads.items() if len(some) == self._heads[layer]]:
            layers.add(layer)
            del heads[layer]
        fa_decode = self.config.fa_decode
        if isinstance(fa_decode, tuple):
            fa_decode = tuple(layer for layer in fa_decode if layer not in layers)
        return self.config.replace(full_layers=tuple(sorted(layers)), full_heads=heads, fa_decode=fa_decode)

    def full_layers(self, units: Sequence[Unit]) -> int | float:
        """Return how many layers these units are; heads count as parts of one."""
        parts = [1 if isinstance(unit, int) else 1 / self._heads[unit[0]] for unit in units]
        return len(parts) if self.unit == "layers" else round(sum(parts), 3)

    def nll(self, sets: Sequence[Sequence[Unit]], *, first: int | None = None, text: str = "scoring") -> list[float]:
        """Score sets of full layers, or heads: mean NLL of each, nats a token.

        Args:
            sets: of units.
            first: only the first so many samples; None: all.
            text: for the progress.
        """
        configs = [self.with_full(units) for units in sets]
        scores = self.scorer.score(configs, first=first, text=text)
        for config, score in zip(configs, scores, strict=True):
            key = self.scorer.key(config)
            if key not in self.asked or self.asked[key].count < score.count:
                self.asked[key] = score
        return [score.nll for score in scores]

    def choice(self, units: Sequence[Unit], scores: dict[Unit, float]) -> Choice:
        """Return a selector's choice."""
        done = self.asked.values()
        return Choice(in_order(units), scores, sum(x.count for x in done), sum(x.seconds for x in done))


class Selector(Protocol):
    """A way to choose layers or heads. An implementation is a frozen dataclass whose fields are its options."""

    @property
    def describe(self) -> str:
        """One line for `--help`."""

    def select(self, problem: Problem, budget: int) -> Choice:
        """Choose `budget` of the problem's units, 0 to all of them.

        The same problem gives the same choice; scores that are known already are not computed again.
        """

    def planned(self, units: int, budget: int) -> int:
        """Return about how many sets will be scored, for the time that is left."""


def highest(scores: dict[Unit, float], count: int) -> tuple[Unit, ...]:
    """Return the `count` units of the highest scores, ascending; of equal ones the lower."""
    return in_order(sorted(scores, key=lambda unit: (-scores[unit], _place(unit)))[:count])


def lowest(scores: Mapping[Unit, float]) -> list[Unit]:
    """Return the units by their scores, the lowest first; of equal ones the lower."""
    return sorted(scores, key=lambda unit: (scores[unit], _place(unit)))


def in_order(units: Iterable[Unit]) -> tuple[Unit, ...]:
    """Return units ascending."""
    return tuple(sorted(units, key=_place))


def unit_name(unit: Unit) -> str:
    """Write a unit: `7`, or `7:2` for a head."""
    return str(unit) if isinstance(unit, int) else f"{unit[0]}:{unit[1]}"


def unit_of(name: str) -> Unit:
    """Read what `unit_name` writes."""
    layer, _, head = name.partition(":")
    return (int(layer), int(head)) if head else int(layer)


def _place(unit: Unit) -> tuple[int, int]:
    return (unit, 0) if isinstance(unit, int) else unit
