"""Every so many layers, from the best offset: the baseline (arXiv 2512.10411, method 3, where the offset is fixed)."""

from dataclasses import dataclass

from swaa.select.problem import Choice, Problem


@dataclass(frozen=True)
class Periodic:
    """Score all offsets of the smallest step that the budget allows, and take the best.

    The score of a layer is how much better its pattern is than the worst one, nats a token. With native windows the
    steps count the other layers; of heads, every so many of those of all layers in a row.
    """

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "every so many layers, from the best offset: the baseline"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        units = problem.units
        if not budget:
            return problem.choice((), dict.fromkeys(units, 0.0))
        step = -(-len(units) // budget)
        patterns = [units[offset::step] for offset in range(step)]
        nlls = problem.nll(patterns, text=f"periodic, step {step}")
        scores = {unit: max(nlls) - nll for pattern, nll in zip(patterns, nlls, strict=True) for unit in pattern}
        return problem.choice(patterns[nlls.index(min(nlls))], {unit: scores[unit] for unit in units})

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`."""
        return -(-units // budget) if budget else 0
