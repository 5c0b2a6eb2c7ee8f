"""Evaluate a recipe through lm-evaluation-harness, on a task of your own in a file; needs `swaa[lm-eval]`.

    python examples/lm_eval_task.py

`swaa lm_eval --model swaa --tasks ...` runs the harness' own tasks from the command line.
"""

import argparse
import json
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

import swaa.harness  # noqa: F401  # imported to register the model "swaa"
from swaa.models import DEFAULT_MODEL

QUESTIONS = {
    "The capital of France is": ["Paris", "Rome", "Berlin"],
    "Water freezes at a temperature of": ["0 degrees Celsius", "50 degrees Celsius", "99 degrees Celsius"],
    "A week has": ["seven days", "two days", "twelve days"],
    "The sun rises in the": ["east", "north", "cellar"],
    "Bees make": ["honey", "bricks", "glass"],
    "The opposite of hot is": ["cold", "red", "loud"],
}


def write_task(folder):
    """A multiple-choice task as lm-eval reads it: rows, and a file that says what they mean."""
    rows = [{"question": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS.items()]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "general_knowledge",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "general_knowledge.yaml").write_text(json.dumps(task))


def main(argv=None):
    parser = argparse.ArgumentParser(description="Evaluate recipes through lm-evaluation-harness.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id or folder (default: %(default)s)")
    parser.add_argument("--recipes", nargs="+", default=["full", "naive", "sinks"], help="default: %(default)s")
    options = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        write_task(Path(folder))
        for recipe in options.recipes:
            # So narrow that it matters for questions as short as these.
            window = {} if recipe == "full" else {"window": 3}
            outcome = simple_evaluate(
                model="swaa",
                model_args={"pretrained": options.model, "recipe": recipe, "device": "cpu", **window},
                tasks=["general_knowledge"],
                task_manager=TaskManager(include_path=folder, include_defaults=False),
                bootstrap_iters=0,
            )
            print(f"{recipe}: {outcome['results']['general_knowledge']['acc,none']:.0%} right")


if __name__ == "__main__":
    main()
