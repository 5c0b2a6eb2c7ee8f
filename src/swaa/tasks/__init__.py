"""Tasks that measure a model: each makes samples for `swaa.evaluate`; one file and one registry row per task."""

from swaa.registry import Registry
from swaa.tasks.base import Sample, Task, correct_text
from swaa.tasks.needle import Needle
from swaa.tasks.perplexity import Perplexity

__all__ = ["TASKS", "Needle", "Perplexity", "Sample", "Task", "correct_text"]

TASKS: Registry[Task] = Registry(
    "task",
    {
        "needle": Needle(),
        "needle-multikey": Needle(keys=4),
        "needle-noise": Needle(haystack="noise"),
        "perplexity": Perplexity(),
    },
)
