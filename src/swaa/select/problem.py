"""What a selector is given and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from swaa.adapting import plan_layers
from swaa.config import ConfigError, SWAAConfig
from swaa.select.scoring import Score, Scorer


@dataclass(frozen=True)
class Choice:
    """The layers that a selector chose.

    Attributes:
        layers: that stay full, ascending.
        scores: of every layer that can slide, by its number; higher: rather full. Each selector says what they are.
        passes: prompts that were scored for it (one prompt under one set of layers is one pass).
        seconds: that they took.
    """

    layers: tuple[int, ...]
    scores: dict[int, float]
    passes: int = 0
    seconds: float = 0.0


@dataclass
class Problem:
    """Which layers of a model shall stay full under a recipe.

    Attributes:
        scorer: scores on the calibration data.
        config: the recipe; its own `full_layers` play no part.
        asked: the longest score of each configuration, for the count of passes and the time.
    """

    scorer: Scorer
    config: SWAAConfig
    asked: dict[str, Score] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a recipe in which nothing slides."""
        if self.config.window is None:
            raise ConfigError(
                "the recipe is full attention, so no layer can be chosen: name another by --recipe, or set --window"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """Numbers of the layers that can slide; layers with a native window are not ours."""
        rules = plan_layers(self.scorer.model.config.get_text_config(), self.with_full(()))
        return tuple(layer for layer, rule in enumerate(rules) if rule is not None)

    def with_full(self, layers: Sequence[int]) -> SWAAConfig:
        """Return the recipe with these layers full."""
        fa_decode = self.config.fa_decode
        if isinstance(fa_decode, tuple):
            fa_decode = tuple(layer for layer in fa_decode if layer not in layers)
        return self.config.replace(full_layers=tuple(layers), fa_decode=fa_decode)

    def nll(self, sets: Sequence[Sequence[int]], *, first: int | None = None, text: str = "scoring") -> list[float]:
        """Score sets of full layers: mean NLL of each, nats a token.

        Args:
            sets: of layer numbers.
            first: only the first so many samples; None: all.
            text: for the progress.
        """
        configs = [self.with_full(layers) for layers in sets]
        scores = self.scorer.score(configs, first=first, text=text)
        for config, score in zip(configs, scores, strict=True):
            key = self.scorer.key(config)
            if key not in self.asked or self.asked[key].count < score.count:
                self.asked[key] = score
        return [score.nll for score in scores]

    def choice(self, layers: Sequence[int], scores: dict[int, float]) -> Choice:
        """Return a selector's choice."""
        done = self.asked.values()
        return Choice(tuple(sorted(layers)), scores, sum(x.count for x in done), sum(x.seconds for x in done))


class Selector(Protocol):
    """A way to choose layers. An implementation is a frozen dataclass whose fields are its options."""

    @property
    def describe(self) -> str:
        """One line for `--help`."""

    def select(self, problem: Problem, budget: int) -> Choice:
        """Choose `budget` of the problem's layers, 0 to all of them.

        The same problem gives the same choice; scores that are known already are not computed again.
        """

    def planned(self, layers: int, budget: int) -> int:
        """Return about how many sets of layers will be scored, for the time that is left."""


def highest(scores: dict[int, float], count: int) -> tuple[int, ...]:
    """Return the `count` layers of the highest scores, ascending; of equal ones the lower layers."""
    return tuple(sorted(sorted(scores, key=lambda layer: (-scores[layer], layer))[:count]))
