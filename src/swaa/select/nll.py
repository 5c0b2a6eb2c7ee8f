"""Layers one by one: NLL lost when only this layer slides (arXiv 2606.27791), or won when only this layer is full."""

from dataclasses import dataclass

from swaa.select.problem import Choice, Problem, Unit, highest


@dataclass(frozen=True)
class Nll:
    """Toggle each layer by itself, and keep those full that matter most.

    The score of a layer is a difference of mean NLL, nats a token.

    Attributes:
        won: False: how much worse the answers get when all layers are full and this one slides; True: how much better
            when all slide and this one is full.
    """

    won: bool = False

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "NLL won when only this layer is full" if self.won else "NLL lost when only this layer slides"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        scores = self.scores(problem)
        return problem.choice(highest(scores, budget), scores)

    def scores(self, problem: Problem) -> dict[Unit, float]:
        """Return the score of each unit."""
        units = problem.units
        base: tuple[Unit, ...] = () if self.won else units
        toggled = [(unit,) if self.won else tuple(x for x in units if x != unit) for unit in units]
        reference, *nlls = problem.nll([base, *toggled], text="one full" if self.won else "one sliding")
        sign = -1 if self.won else 1
        return {unit: sign * (nll - reference) for unit, nll in zip(units, nlls, strict=True)}

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`."""
        return units + 1
