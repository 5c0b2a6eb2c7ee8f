"""Scoring adaptations by the answers' likelihood: batched, with shared work, and every score kept on the disk.

The score is the mean negative log likelihood of the gold answers' tokens (2606.27791): prompt rows slide as the recipe
says, the rows of the answer are generated rows, and the row that predicts the first token of prefix or answer is the
last prompt row.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adapting import adapt, plan_layers, restore
from swaa.attaching import parts
from swaa.compiling import cut_at_attention
from swaa.config import SWAAConfig
from swaa.evaluate import accuracy_interval, score_answers
from swaa.results import append_lines, read_lines
from swaa.select.sharing import shared_layers, shared_order
from swaa.tasks import Sample

# Called with what is being scored and how many samples are done.
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Score:
    """How an adaptation did on the samples.

    Attributes:
        nll: mean negative log likelihood of an answer's tokens, nats.
        accuracy: share of answers whose tokens were each the most likely one.
        count: samples.
        seconds: that it took, also if that was in an earlier run; shared work counts where it was done.
    """

    nll: float
    accuracy: float
    count: int
    seconds: float = 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy (Wilson)."""
        return accuracy_interval(self.accuracy * self.count, self.count)


class Scorer:
    """Scores configurations of one model on one set of samples; nothing is computed twice, also after a restart.

    Args:
        model: the model; adapted while it is scored, restored afterwards.
        tokenizer: its tokenizer.
        samples: with prompt, prefix and answer (kind "retrieval").
        batch_size: samples a pass.
        file: JSONL where scores are kept, one line a configuration and batch; None: only in memory. The caller sees
            to it that it holds scores of this model and these samples.
        progress: told after each batch.
        compiled: compile what the decoder layers do beside attention.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        samples: Sequence[Sample],
        *,
        batch_size: int = 1,
        file: Path | None = None,
        progress: Progress = lambda text, done: None,
        compiled: bool = False,
    ):
        if not samples:
            raise ValueError("no samples to score on: give one or more")
        self.model, self.tokenizer, self.samples = model, tokenizer, tuple(samples)
        self.batch_size, self.file, self.progress, self.compiled = batch_size, file, progress, compiled
        # (nll, correct, seconds) by configuration and number of the sample.
        self._known: dict[tuple[str, int], tuple[float, bool, float]] = {}
        for row in read_lines(file) if file else []:
            self._learn(row)

    def score(self, configs: Sequence[SWAAConfig], *, first: int | None = None, text: str = "scoring") -> list[Score]:
        """Score configurations.

        Args:
            configs: any number; the same one may come twice.
            first: only the first so many samples; None: all.
            text: for the progress.

        Raises:
            ConfigError: a configuration does not fit the model.
        """
        count = len(self.samples) if first is None else min(first, len(self.samples))
        keys = [self.key(config) for config in configs]
        todo = {key: config for key, config in zip(keys, configs, strict=True) if self._missing(key, range(count))}
        self.progress(text, count * (len(configs) - len(todo)))
        if todo:
            self._measure(todo, count, text)
        return [self._score(key, count) for key in keys]

    def key(self, config: SWAAConfig) -> str:
        """Return what tells a configuration's results from those of others: its fields, with the layers spelled out."""
        values = config.replace(full_layers=config.full_layer_numbers(self._depth)).to_dict()
        # Neither changes a score: which code computes it, and what a cache keeps.
        return json.dumps({name: x for name, x in values.items() if name not in ("backend", "release_kv")})

    @property
    def _depth(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def _measure(self, todo: dict[str, SWAAConfig], count: int, text: str) -> None:
        names = list(todo)
        plans = [plan_layers(self.model.config.get_text_config(), todo[name]) for name in names]
        order = shared_order(plans)
        try:
            with shared_layers(self.model, compiled=self.compiled) as shared:
                for start in range(0, count, self.batch_size):
                    batch = range(start, min(start + self.batch_size, len(self.samples)))
                    shared.forget()
                    for index in order:
                        if self._missing(names[index], batch):
                            adapt(self.model, todo[names[index]])
                            if self.compiled:
                                cut_at_attention(parts(self.model)[1])
                            shared.begin(plans[index])
                            self._run(names[index], batch)
                        self.progress(text, len(batch))
        finally:
            restore(self.model)

    def _run(self, key: str, batch: range) -> None:
        samples = [self.samples[index] for index in batch]
        begin = time.perf_counter()
        answers = list(score_answers(self.model, self.tokenizer, samples, batch_size=len(samples)))
        # A model that overflows under some mask has no finite likelihood: such a mask is simply the worst.
        nlls = [answer.nll if math.isfinite(answer.nll) else 1e9 for answer in answers]
        row = {"config": key, "first": batch.start, "nll": nlls, "correct": [answer.correct for answer in answers]}
        row["seconds"] = round(time.perf_counter() - begin, 4)
        if self.file:
            append_lines(self.file, [row])
        self._learn(row)

    def _learn(self, row: dict[str, Any]) -> None:
        seconds = row["seconds"] / len(row["nll"])
        for offset, (nll, correct) in enumerate(zip(row["nll"], row["correct"], strict=True)):
            self._known[row["config"], row["first"] + offset] = (nll, correct, seconds)

    def _missing(self, key: str, numbers: Iterable[int]) -> bool:
        return any((key, number) not in self._known for number in numbers)

    def _score(self, key: str, count: int) -> Score:
        known = [self._known[key, number] for number in range(count)]
        nll = math.fsum(nll for nll, _, _ in known) / count
        accuracy = sum(correct for _, correct, _ in known) / count
        return Score(nll, accuracy, count, math.fsum(seconds for _, _, seconds in known))
