"""Tasks that measure a model: each makes samples for `swaa.evaluate`; one file and one registry row per task."""

from swaa.registry import Registry
from swaa.tasks.base import Reasoning, Sample, Task, correct_text, final_answer
from swaa.tasks.longbench import LongBenchV2
from swaa.tasks.longmemeval import LongMemEval
from swaa.tasks.needle import Needle
from swaa.tasks.perplexity import Perplexity
from swaa.tasks.ruler_needles import RulerNeedles
from swaa.tasks.ruler_questions import RulerQuestions
from swaa.tasks.ruler_variables import RulerVariables
from swaa.tasks.ruler_words import RulerCommonWords, RulerFrequentWords

__all__ = ["GROUPS", "TASKS", "Needle", "Perplexity", "Reasoning", "Sample", "Task", "correct_text", "final_answer"]

TASKS: Registry[Task] = Registry(
    "task",
    {
        "needle": Needle(),
        "needle-multikey": Needle(keys=4),
        "needle-noise": Needle(haystack="noise"),
        "perplexity": Perplexity(),
        "ruler-niah-single-1": RulerNeedles(hay="noise"),
        "ruler-niah-single-2": RulerNeedles(hay="essay"),
        "ruler-niah-single-3": RulerNeedles(hay="essay", value_type="uuids"),
        "ruler-niah-multikey-1": RulerNeedles(hay="essay", keys=4),
        "ruler-niah-multikey-2": RulerNeedles(hay="needle"),
        "ruler-niah-multikey-3": RulerNeedles(hay="needle", key_type="uuids", value_type="uuids"),
        "ruler-niah-multivalue": RulerNeedles(hay="essay", values=4),
        "ruler-niah-multiquery": RulerNeedles(hay="essay", queries=4),
        "ruler-vt": RulerVariables(),
        "ruler-cwe": RulerCommonWords(),
        "ruler-fwe": RulerFrequentWords(),
        "ruler-qa-1": RulerQuestions(source="squad"),
        "ruler-qa-2": RulerQuestions(source="hotpotqa"),
        "longmemeval": LongMemEval(),
        "longbench-v2": LongBenchV2(),
    },
)

# What one name stands for where several tasks may be named. Tasks that need a user's data are asked for by themselves.
GROUPS: dict[str, tuple[str, ...]] = {
    "ruler": tuple(name for name in TASKS if name.startswith("ruler-") and not hasattr(TASKS[name], "path")),
}
