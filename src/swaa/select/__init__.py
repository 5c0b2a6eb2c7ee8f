"""Choosing the layers or KV heads that stay full, under a budget: one file and one registry row a selector.

`swaa.select.plan` is the file that comes out, `swaa.select.run` what `swaa select` does, `swaa.select.policy` the
search over window, sinks, dense tail and FA decode as well.
"""

from swaa.registry import Registry
from swaa.select.backward import Backward
from swaa.select.calibration import Calibration
from swaa.select.greedy import Greedy
from swaa.select.lazy import Lazy
from swaa.select.nll import Nll
from swaa.select.periodic import Periodic
from swaa.select.problem import Choice, Problem, Selector
from swaa.select.scoring import Score, Scorer
from swaa.select.swap import Swap

__all__ = ["SELECTORS", "Calibration", "Choice", "Problem", "Score", "Scorer", "Selector"]

SELECTORS: Registry[Selector] = Registry(
    "selection method",
    {
        "periodic": Periodic(),
        "lazy": Lazy(),
        "nll": Nll(),
        "nll-won": Nll(won=True),
        "greedy": Greedy(),
        "backward": Backward(),
        "swap": Swap(),
    },
)
