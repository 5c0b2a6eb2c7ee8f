"""Local search: from the best of several starts, exchange single layers as long as that helps.

Forward selection never takes a layer back, though the one it took first may have become useless (floating search,
Pudil et al. 1994), and it is blind where two layers help only together. The search here starts from the best set of
four methods (NLL lost, NLL won, forward selection, backward elimination) and then swaps: it removes the layer that is
missed least and adds the best other one. Races on a quarter of the samples pay for it.
"""

from dataclasses import dataclass

from swaa.select.backward import Backward, missed
from swaa.select.greedy import Greedy, best_sets
from swaa.select.nll import Nll
from swaa.select.problem import Choice, Problem, highest, in_order, lowest

# Removals that are tried in a round, the least missed first.
_REMOVALS = 3


@dataclass(frozen=True)
class Swap:
    """Exchange layers of the best set found by cheaper methods.

    The score of a chosen layer is the NLL that the final set loses without it, that of another one the NLL won when it
    is the only full layer; nats a token.

    Attributes:
        rounds: exchanges at most.
    """

    rounds: int = 8

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "exchange single layers of the best set of the other methods, as long as it helps"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        won = Nll(won=True).scores(problem)
        if not 0 < budget < len(problem.units):
            return problem.choice(problem.units[:budget], won)
        starts = [highest(won, budget)]
        starts += [selector.select(problem, budget).chosen for selector in (Nll(), Greedy(), Backward())]
        nlls = problem.nll(starts, text="swap, starts")
        best = min(nlls)
        chosen = starts[nlls.index(best)]
        for number in range(self.rounds):
            text = f"swap, round {number + 1}"
            for unit in lowest(missed(problem, chosen, text=text))[:_REMOVALS]:
                others = [other for other in problem.units if other not in chosen]
                swapped = {other: in_order({*chosen, other} - {unit}) for other in others}
                found = best_sets(problem, swapped, race=True, text=text)
                taken = lowest(found)[0]
                if found[taken] < best:
                    best, chosen = found[taken], swapped[taken]
                    break
            else:
                break
        return problem.choice(chosen, won | missed(problem, chosen, text="swap, scores"))

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`: about two exchanges."""
        race = (units - budget) // 2
        starts = (Nll(won=True), Nll(), Greedy(), Backward())
        return sum(start.planned(units, budget) for start in starts) + 3 * (budget + 2 * race)
