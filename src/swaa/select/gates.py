"""Gates: every layer mixes full and sliding attention, and gradients say where the full part is worth its place."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swaa.adapting import adapt, restore
from swaa.attention import BACKENDS
from swaa.attention.auto import auto_attention
from swaa.config import LayerRule
from swaa.evaluate import answer_logits
from swaa.geometry import Geometry
from swaa.select.problem import Choice, Problem, Unit, highest
from swaa.select.scoring import Score

_BACKEND = "gates"
# A step computes both attentions, and its backward pass twice as much again.
_PASSES_A_STEP = 4


@dataclass(frozen=True)
class Gates:
    """Learn a gate for each layer or head, all together, as DuoAttention (arXiv 2410.10819) does for heads.

    A gate between 0 and 1 mixes the outputs of sliding and of full attention. The gates sum up to the budget at every
    step (a common threshold sees to that, and gradients know it), and their slope grows, so that they end near 0 or 1.
    The weights stay as they are. The work does not grow with the number of layers or heads. The score of a unit is
    where its gate ended.

    Attributes:
        steps: of Adam.
        share: a step learns from one of so many parts of the scorer's batch, but from two samples at least: the
            backward pass needs memory.
        rate: learning rate.
        slopes: of the gates, at the first and at the last step.
    """

    steps: int = 40
    share: int = 8
    rate: float = 0.3
    slopes: tuple[float, float] = (1.0, 6.0)

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "gates between sliding and full attention, learned by gradients (DuoAttention)"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        scores = self.scores(problem, budget)
        return problem.choice(highest(scores, budget), scores)

    def scores(self, problem: Problem, budget: int) -> dict[Unit, float]:
        """Return where the gate of each unit ends, 0 to 1."""
        units, scorer = problem.units, problem.scorer
        if not 0 < budget < len(units):
            return dict.fromkeys(units, float(bool(budget)))
        begin = time.perf_counter()
        values = torch.zeros(len(units), device=scorer.model.device, requires_grad=True)
        optimizer = torch.optim.Adam([values], lr=self.rate)
        mixture = _Mixture(problem)
        size = max(scorer.batch_size // self.share, 2)
        count = len(scorer.samples)
        with BACKENDS.holding(_BACKEND, mixture), _frozen(scorer.model):
            adapt(scorer.model, problem.with_full(()).replace(backend=_BACKEND))
            try:
                for step in range(self.steps):
                    batch = [scorer.samples[(step * size + number) % count] for number in range(size)]
                    with torch.enable_grad():
                        mixture.begin(_gates(values, budget, self._slope(step)))
                        losses = [cross_entropy(*pair) for pair in answer_logits(scorer.model, batch)]
                        torch.stack(losses).mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    scorer.progress(f"gates, step {step + 1} of {self.steps}", _PASSES_A_STEP * size)
            finally:
                restore(scorer.model)
        problem.asked[f"gates {budget}"] = Score(
            0.0, 0.0, _PASSES_A_STEP * size * self.steps, time.perf_counter() - begin
        )
        with torch.no_grad():
            ended = _gates(values, budget, self._slope(self.steps - 1))
        return dict(zip(units, ended.tolist(), strict=True))

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`: as if the batch held all samples."""
        return max(_PASSES_A_STEP * self.steps // self.share, 1)

    def _slope(self, step: int) -> float:
        first, last = self.slopes
        return float(first * (last / first) ** (step / max(self.steps - 1, 1)))


def _gates(values: Tensor, budget: int, slope: float) -> Tensor:
    """Return sigmoids of the values less a threshold that makes them sum up to the budget, `[units]`."""
    with torch.no_grad():
        low, high = values.min() - 40 / slope, values.max() + 40 / slope
        for _ in range(60):
            middle = (low + high) / 2
            more = torch.sigmoid(slope * (values - middle)).sum() > budget
            low, high = torch.where(more, middle, low), torch.where(more, high, middle)
        gates = torch.sigmoid(slope * (values - middle))
        steepness = (slope * gates * (1 - gates)).sum()
    # One Newton step, which changes the threshold by nothing but gives it the gradient that it has.
    total = torch.sigmoid(slope * (values - middle)).sum()
    threshold = middle + (total - budget) / steepness.clamp_min(1e-6)
    return torch.sigmoid(slope * (values - threshold))


class _Mixture:
    """A backend that mixes both attentions of each layer in turn, by the gates of its KV heads."""

    def __init__(self, problem: Problem):
        self._problem = problem
        self._left: Iterator[Tensor] = iter(())

    def begin(self, gates: Tensor) -> None:
        """Prepare a pass."""
        # Of a layer that is one unit all heads share the gate.
        sizes: dict[int, int] = {}
        for unit in self._problem.units:
            layer = unit if isinstance(unit, int) else unit[0]
            sizes[layer] = sizes.get(layer, 0) + 1
        self._left = iter(gates.split(list(sizes.values())))

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, geometry: Geometry, rule: LayerRule, **options: Any
    ) -> Any:
        gate = next(self._left)
        (sliding, _), (full, _) = (
            auto_attention(query, key, value, geometry=geometry, rule=each, **options) for each in (rule, LayerRule())
        )
        # `[batch, rows, heads, dim]`; the query heads of a KV head are neighbours.
        each_head = gate.repeat_interleave(sliding.shape[2] // len(gate))[:, None].to(sliding.dtype)
        return sliding + each_head * (full - sliding), None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no weight want a gradient inside the block."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
