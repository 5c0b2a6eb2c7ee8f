"""Forward selection: add what helps most given what is already full, until the budget is spent."""

from dataclasses import dataclass

from swaa.select.problem import Choice, Problem, Unit, lowest

# Samples that sort out the hopeless additions, and the share of them that the other samples see.
_RACE_SHARE, _FINALISTS = 4, 4


@dataclass(frozen=True)
class Greedy:
    """Add layers one at a time; joint, so a layer that repeats what another does is not taken.

    The score of a chosen layer is the NLL that it won when it was added, that of another one what it would have won
    last; nats a token.

    Attributes:
        race: score all additions on a quarter of the samples first, and only the best quarter of them on all: half the
            work, and with 40 samples or more the same choice almost always.
    """

    race: bool = True

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "add the layer that helps most, given those already full"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        chosen: tuple[Unit, ...] = ()
        scores = dict.fromkeys(problem.units, 0.0)
        (best,) = problem.nll([chosen])
        for number in range(budget):
            additions = {unit: (*chosen, unit) for unit in problem.units if unit not in chosen}
            nlls = best_sets(problem, additions, race=self.race, text=f"greedy, {number + 1} of {budget}")
            scores |= {unit: best - nll for unit, nll in nlls.items()}
            taken = lowest(nlls)[0]
            best, chosen = nlls[taken], (*chosen, taken)
        return problem.choice(chosen, scores)

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`."""
        rounds = sum(units - number for number in range(budget))
        return 1 + (rounds * (_FINALISTS + _RACE_SHARE) // (_FINALISTS * _RACE_SHARE) if self.race else rounds)


def best_sets(problem: Problem, sets: dict[Unit, tuple[Unit, ...]], *, race: bool, text: str) -> dict[Unit, float]:
    """Score sets by the unit that each is named after, and return the NLL of those that were scored on all samples.

    Args:
        problem: the problem.
        sets: the sets by name.
        race: only the best quarter on a quarter of the samples (at least four sets, and five samples: one of each
            built-in form) are scored on all.
        text: for the progress.
    """
    few = max(5, len(problem.scorer.samples) // _RACE_SHARE)
    if race and few < len(problem.scorer.samples):
        first = dict(zip(sets, problem.nll(list(sets.values()), first=few, text=text), strict=True))
        finalists = lowest(first)[: max(4, len(sets) // _FINALISTS)]
        sets = {name: sets[name] for name in finalists}
    return dict(zip(sets, problem.nll(list(sets.values()), text=text), strict=True))
