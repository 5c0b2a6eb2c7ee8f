"""Backward elimination: from full attention, let those slide that are missed least, until the budget is met."""

from collections.abc import Sequence
from dataclasses import dataclass

from swaa.select.problem import Choice, Problem, Unit, in_order, lowest

# The share of what is left that a round lets go at once.
_SHARE = 5


@dataclass(frozen=True)
class Backward:
    """Take layers away, a fifth of those left at a time; joint, so of two that do the same one is kept.

    Where a fact passes through several layers none of them helps by itself, and forward selection is blind; from this
    side each of them is missed. The score of a chosen layer is the NLL that the set loses without it, that of another
    one what was lost when it went; nats a token.
    """

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "take away those that are missed least, given those still full"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        left = problem.units
        scores = dict[Unit, float]()
        while True:
            lost = missed(problem, left, text=f"backward, {len(left)} left")
            scores |= lost
            if len(left) <= budget:
                return problem.choice(left, {unit: scores[unit] for unit in problem.units})
            left = in_order(lowest(lost)[_gone(len(left), budget) :])

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`."""
        total = units + 1
        while units > budget:
            units -= _gone(units, budget)
            total += units + 1
        return total


def missed(problem: Problem, units: Sequence[Unit], *, text: str) -> dict[Unit, float]:
    """Return the NLL that a set loses without each of its members, nats a token."""
    shorter = [tuple(other for other in units if other != unit) for unit in units]
    whole, *nlls = problem.nll([units, *shorter], text=text)
    return {unit: nll - whole for unit, nll in zip(units, nlls, strict=True)}


def _gone(left: int, budget: int) -> int:
    return min(max(left // _SHARE, 1), left - budget)
