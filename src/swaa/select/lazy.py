"""LightTransfer's lazy ratio (arXiv 2410.13846): how much of a layer's attention goes where a sliding layer looks."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from swaa.adapting import adapt, restore
from swaa.attention import BACKENDS
from swaa.attention.auto import auto_attention
from swaa.attention.eager import masked_softmax_attention
from swaa.config import LayerRule, SWAAConfig
from swaa.evaluate import score_answers
from swaa.geometry import Geometry, build_geometry
from swaa.mask import oracle_mask
from swaa.select.problem import Choice, Problem, Unit, highest
from swaa.select.scoring import Score

_BACKEND = "lazy-ratio"


@dataclass(frozen=True)
class Lazy:
    """Let the laziest layers slide: those whose last queries attend mostly to sinks and the last tokens.

    The score of a layer is the share of attention that goes elsewhere, 0 to 1: one minus the lazy ratio, averaged over
    heads, queries and samples, in the original model. Both the sum and the total are over keys that the query may see:
    without the causal mask on the sum, keys after the query would count as recent ones.

    Attributes:
        queries: the last rows of prompt and answer that are looked at.
    """

    queries: int = 64

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return "attention that leaves sinks and window, in the original model (LightTransfer)"

    def select(self, problem: Problem, budget: int) -> Choice:
        """See `Selector.select`."""
        scores = self.scores(problem)
        return problem.choice(highest(scores, budget), scores)

    def scores(self, problem: Problem) -> dict[Unit, float]:
        """Return the score of each unit."""
        scorer, config, units = problem.scorer, problem.config, problem.units
        rule = LayerRule(config.window, config.sinks)
        elsewhere = torch.zeros(len(units), dtype=torch.float64)
        begin = time.perf_counter()
        watch = _Watch(rule, self.queries)
        with BACKENDS.holding(_BACKEND, watch):
            adapt(scorer.model, SWAAConfig(backend=_BACKEND))
            try:
                # One by one: padding would shift the last rows.
                for sample in scorer.samples:
                    watch.masses.clear()
                    list(score_answers(scorer.model, scorer.tokenizer, [sample]))
                    masses = (
                        watch.masses
                        if problem.unit == "heads"
                        else [mass.mean(0, keepdim=True) for mass in watch.masses]
                    )
                    elsewhere += 1 - torch.cat(masses).cpu().double()
                    scorer.progress("lazy ratio", 1)
            finally:
                restore(scorer.model)
        count, seconds = len(scorer.samples), time.perf_counter() - begin
        problem.asked["lazy ratio"] = Score(0.0, 0.0, count, seconds)
        return dict(zip(units, (elsewhere / len(scorer.samples)).tolist(), strict=True))

    def planned(self, units: int, budget: int) -> int:
        """See `Selector.planned`."""
        return 1


class _Watch:
    """A backend that also notes, for each layer in turn, the lazy ratio of each KV head in the last rows."""

    def __init__(self, rule: LayerRule, queries: int):
        self.rule, self.queries = rule, queries
        self.masses: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, geometry: Geometry, **kwargs: Any) -> Any:
        rows = min(self.queries, query.shape[2])
        last = build_geometry(batch=1, past=geometry.columns - rows, rows=rows)
        causal, near = (oracle_mask(last, rule).to(query.device) for rule in (LayerRule(), self.rule))
        options: dict[str, Any] = {name: kwargs.get(name) for name in ("scaling", "softcap", "s_aux")}
        _, weights = masked_softmax_attention(query[:, :, -rows:], key, value, causal[:, None], **options)
        weights = weights.float()
        ratios = (weights * near[:, None]).sum(-1) / weights.sum(-1)
        self.masses.append(ratios.unflatten(1, (key.shape[1], -1)).mean((0, 2, 3)))
        return auto_attention(query, key, value, geometry=geometry, **kwargs)
