"""Local search: from the best of several starts, exchange single layers as long as that helps.

Forward selection never takes a layer back, though the one it took first may have become useless (floating search,
Pudil et al. 1994), and it is blind where two layers help only together. The search here starts
from the best of three sets (NLL lost, NLL won, raced forward selection) and then swaps: it removes the layer that is
missed least and adds the best other one. Races on a quarter of the samples pay for it.
"""

from dataclasses import dataclass

from swaa.select.greedy import Greedy, best_sets
from swaa.select.nll import Nll
from swaa.select.problem import Choice, Problem, highest

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
        if not 0 < budget < len(problem.layers):
            return problem.choice(problem.layers[:budget], won)
        starts = [highest(won, budget), highest(Nll().scores(problem), budget)]
        starts.append(Greedy(race=True).select(problem, budget).layers)
        nlls = problem.nll(starts, text="swap, starts")
        best = min(nlls)
        chosen = starts[nlls.index(best)]
        for number in range(self.rounds):
            text = f"swap, round {number + 1}"
            shorter = {layer: tuple(x for x in chosen if x != layer) for layer in chosen}
            without = dict(zip(shorter, problem.nll(list(shorter.values()), text=text), strict=True))
            for layer in sorted(without, key=lambda layer: (without[layer], layer))[:_REMOVALS]:
                others = (x for x in problem.layers if x not in chosen)
                swapped = {other: tuple(sorted((*shorter[layer], other))) for other in others}
                found = best_sets(problem, swapped, race=True, text=text)
                taken = min(found, key=lambda other: (found[other], other))
                if found[taken] < best:
                    best, chosen = found[taken], swapped[taken]
                    break
            else:
                break
        shorter = {layer: tuple(x for x in chosen if x != layer) for layer in chosen}
        without = dict(zip(shorter, problem.nll(list(shorter.values()), text="swap, scores"), strict=True))
        return problem.choice(chosen, won | {layer: nll - best for layer, nll in without.items()})

    def planned(self, layers: int, budget: int) -> int:
        """See `Selector.planned`: about two exchanges."""
        race = (layers - budget) // 2
        return 2 * layers + Greedy(race=True).planned(layers, budget) + 3 * (budget + 2 * race)
