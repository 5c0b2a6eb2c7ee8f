"""Held-out samples: what a choice is measured on, of text, words, wordings and seeds that calibration never saw."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.config import SWAAConfig
from swaa.evaluate import accuracy_interval
from swaa.select.calibration import fingerprint
from swaa.select.scoring import Progress as ScorerProgress
from swaa.select.scoring import Score, Scorer
from swaa.tasks import TASKS

# What is going on, passes done, passes in all.
Progress = Callable[[str, int, int], None]


class HeldOut:
    """The held-out samples of a selection, a scorer for each task.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        tasks: names in `swaa.tasks.TASKS`.
        samples: of each task; 0: nothing is measured.
        length: tokens of a prompt.
        seed: of the samples.
        batch_size: samples a pass.
        folder: where scores are kept.
        progress: told after each batch.
        compiled: see `Scorer`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[str],
        *,
        samples: int,
        length: int,
        seed: int,
        batch_size: int,
        folder: Path,
        progress: ScorerProgress,
        compiled: bool = False,
    ):
        self.scorers = {
            name: Scorer(
                model,
                tokenizer,
                TASKS[name].samples(tokenizer, length=length, count=samples, seed=seed, split="test"),
                batch_size=batch_size,
                file=folder / f"test-{name}.jsonl",
                progress=progress,
                compiled=compiled,
            )
            for name in (tasks if samples else ())
        }

    def fingerprint(self) -> dict[str, str]:
        """Return what tells these samples from others."""
        return {name: fingerprint(scorer.samples) for name, scorer in self.scorers.items()}

    def measure(self, configs: Sequence[SWAAConfig], text: str) -> list[dict[str, Any]]:
        """Measure configurations: accuracy with its 95 % interval and NLL over all tasks, and the accuracy of each."""
        found: list[dict[str, Score]] = [{} for _ in configs]
        for name, scorer in self.scorers.items():
            for scores, score in zip(found, scorer.score(configs, text=text), strict=True):
                scores[name] = score
        return [_measured(scores) for scores in found]


def _measured(scores: dict[str, Score]) -> dict[str, Any]:
    if not scores:
        return {}
    # Every task has as many samples, so the mean over tasks is the mean over samples.
    accuracy = sum(score.accuracy for score in scores.values()) / len(scores)
    low, high = accuracy_interval(
        sum(score.accuracy * score.count for score in scores.values()), sum(score.count for score in scores.values())
    )
    row: dict[str, Any] = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
    row["nll"] = sum(score.nll for score in scores.values()) / len(scores)
    return row | {f"accuracy_{name}": score.accuracy for name, score in scores.items()}


class Meter:
    """Adds up what is done, for a progress callback that wants totals.

    Attributes:
        done: passes so far.
        total: passes in all, an estimate.
    """

    def __init__(self, progress: Progress):
        self.done = self.total = 0
        self._progress = progress

    def advance(self, text: str, passes: int) -> None:
        """Note passes that are done."""
        self.done += passes
        self._progress(text, min(self.done, self.total), self.total)
