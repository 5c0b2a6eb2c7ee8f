"""What a run measures, beside the model and the recipes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from swaa.tasks import GROUPS, TASKS, Reasoning, Task
from swaa.tasks.base import check_reasoning

SCORINGS = ("forced", "free")


class Cell(NamedTuple):
    """The samples that every recipe answers: one task at one length, asked in one way.

    Attributes:
        task: name of the task.
        length: its `length`, see `swaa.tasks.Task.samples`.
        reasoning: the chain of thought that is asked for; `"none"` for perplexity.
    """

    task: str
    length: int
    reasoning: Reasoning


@dataclass(frozen=True)
class RunSettings:
    """What is measured.

    Args:
        tasks: names in `swaa.tasks.TASKS`, or of a group in `GROUPS`, which is resolved.
        lengths: tokens, see the tasks.
        samples: of each task, length and chain of thought; a data set may hold fewer.
        seed: of the samples.
        reasoning: the ways to ask for a chain of thought (method 4 of the paper).
        reasoning_tokens: room for the reasoning, on top of the task's room for the answer.
        scoring: of retrieval tasks: "forced" (the gold answer's tokens are each the most likely one) or "free" (the
            model writes); None: "forced", but "free" if there is a chain of thought to compare with.
        batch_size: samples a pass.
        prefill_runs: prompts whose prefill is timed for each recipe and length, one at a time; 0: none.
        static_cache: answers are written with the cache reserved at once; on a GPU the step of a token is compiled and
            replayed, and full attention runs on our backends then.
        data: where each data-set task finds its samples: a file or a hub id.
        judge: `url`, `model` and `votes` of the judge; None: what needs one stays without a score.

    Raises:
        ValueError: a value is wrong; the message names it and the fix.
    """

    tasks: tuple[str, ...] = ("needle",)
    lengths: tuple[int, ...] = (1024,)
    samples: int = 16
    seed: int = 0
    reasoning: tuple[Reasoning, ...] = ("none",)
    reasoning_tokens: int = 1024
    scoring: str | None = None
    batch_size: int = 1
    prefill_runs: int = 3
    static_cache: bool = False
    data: dict[str, str] = field(default_factory=dict)
    judge: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Resolve groups and the scoring, and check every value."""
        object.__setattr__(self, "tasks", tuple(x for name in self.tasks for x in GROUPS.get(name, (name,))))
        for name in ("tasks", "lengths", "reasoning"):
            _check_list(name, getattr(self, name))
        for task in self.tasks:
            TASKS[task]
        for reasoning in self.reasoning:
            check_reasoning(reasoning)
        thinks = self.reasoning != ("none",)
        if self.scoring is None:
            object.__setattr__(self, "scoring", "free" if thinks else "forced")
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring={self.scoring!r}: use one of {', '.join(SCORINGS)}")
        if thinks and self.scoring == "forced":
            raise ValueError("scoring='forced' leaves no room for a chain of thought: use 'free', or reasoning 'none'")
        for name, least in (("samples", 1), ("batch_size", 1), ("reasoning_tokens", 1), ("prefill_runs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: use {least} or more")
        for length in self.lengths:
            if length < 1:
                raise ValueError(f"lengths: {length} is no number of tokens, use 1 or more")
        for name in self.data:
            if name not in self.tasks:
                raise ValueError(f"data is given for {name!r}, which is not among the tasks: {', '.join(self.tasks)}")

    def cells(self) -> list[Cell]:
        """Return the cells in the order in which they are measured: short before long."""
        found = [
            Cell(task, length, reasoning)
            for length in self.lengths
            for task in self.tasks
            for reasoning in (("none",) if TASKS[task].kind == "perplexity" else self.reasoning)
        ]
        return list(dict.fromkeys(found))

    def task(self, name: str) -> Task:
        """Return a task with its data.

        Raises:
            ValueError: data is given for a task that makes its own, or none for one that needs it.
        """
        task: Any = TASKS[name]
        takes_data = hasattr(task, "path")
        if name in self.data and not takes_data:
            raise ValueError(f"task {name!r} makes its own samples: leave its data out")
        if takes_data and task.path is None and name not in self.data:
            raise ValueError(f"task {name!r} needs a data set: give it by --data {name}=PATH (a file or a hub id)")
        return dataclasses.replace(task, path=self.data[name]) if name in self.data else task

    def is_free(self, cell: Cell) -> bool:
        """Tell whether the model writes in a cell, rather than being scored on given tokens."""
        kind = TASKS[cell.task].kind
        return kind == "generation" or (kind == "retrieval" and self.scoring == "free")

    def room(self, cell: Cell) -> int:
        """Return how many tokens the model may write on a sample of a cell."""
        if not self.is_free(cell):
            return 0
        return TASKS[cell.task].max_new_tokens + (self.reasoning_tokens if cell.reasoning != "none" else 0)


def _check_list(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{name}: name at least one")
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{name}: {twice[0]!r} is named twice")
