"""`swaa select`: every method at every budget, each choice measured on held-out samples; resumable at any time."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.config import SWAAConfig
from swaa.recipes import Recipe, model_shape
from swaa.results import begin_folder, command_line, environment, model_revision, replace_json, write_csv
from swaa.select import SELECTORS, Calibration, Choice, Problem, Score, Scorer
from swaa.select.heldout import HeldOut, Meter, Progress
from swaa.select.plan import LayerPlan
from swaa.select.problem import UNITS, unit_name
from swaa.tasks import TASKS

BASELINE = "periodic"
FORMAT = 1


@dataclass(frozen=True)
class SelectSettings:
    """What is chosen, and how it is checked.

    Args:
        methods: names in `swaa.select.SELECTORS`.
        budgets: numbers of full units, or fractions of them (floats, 0 to 1).
        unit: what is chosen: "layers" or "heads" (KV heads).
        calibration: the data that layers are chosen by.
        tasks: retrieval tasks of `swaa.tasks` that the choice is measured on, on their split "test".
        test_samples: held-out samples of each task; 0: none.
        batch_size: samples a pass.
        compiled: compile what the decoder layers do beside attention, which takes half a minute: for long selections on
            a GPU.

    Raises:
        ValueError: a value is wrong; the message names it and the fix.
    """

    methods: tuple[str, ...] = ("nll",)
    budgets: tuple[int | float, ...] = (4,)
    calibration: Calibration = field(default_factory=Calibration)
    tasks: tuple[str, ...] = ("needle", "needle-multikey")
    test_samples: int = 8
    batch_size: int = 1
    unit: str = "layers"
    compiled: bool = False

    def __post_init__(self) -> None:
        """Check every value; a curve gets its baseline."""
        if not self.methods or not self.budgets:
            raise ValueError("name at least one method and one budget")
        for name in self.methods:
            SELECTORS[name]
        if self.unit not in UNITS:
            raise ValueError(f"unit={self.unit!r}: use {' or '.join(UNITS)}")
        if len(self.budgets) > 1 and BASELINE not in self.methods:
            object.__setattr__(self, "methods", (BASELINE, *self.methods))
        for name in self.tasks:
            if TASKS[name].kind != "retrieval":
                raise ValueError(
                    f"task {name!r} has no answers to force: use needle, needle-multikey or needle-noise, and "
                    "measure others with `swaa eval -r PLAN.json`"
                )
        for name, least in (("test_samples", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: use {least} or more")


def counts_of(budgets: Sequence[int | float], units: int, unit: str = "layers") -> list[int]:
    """Return budgets as numbers of units, ascending, each once.

    Raises:
        ValueError: a budget is negative or more than all units.
    """
    counts = []
    for budget in budgets:
        count = round(budget * units) if isinstance(budget, float) else budget
        if not 0 <= count <= units:
            raise ValueError(
                f"budget {budget} is out of range: {units} {unit} of this model can slide, use 0 to {units}"
            )
        counts.append(count)
    return sorted(set(counts))


def open_folder(path: Path, content: dict[str, Any]) -> None:
    """Start a folder of scores, or go on in it.

    Args:
        path: the folder.
        content: of `run.json`; its `key` is all that the scores depend on.

    Raises:
        ValueError: the folder holds scores of something else, or files that are none of a selection.
    """
    file = path / "run.json"
    session = {"command": command_line(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "environment": environment()}
    content = {"format": FORMAT, **content, "sessions": [session]}
    if file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        old, new = there.get("key"), json.loads(json.dumps(content["key"]))
        if not isinstance(old, dict) or old != new:
            differing = sorted(name for name in new if not isinstance(old, dict) or old.get(name) != new[name])
            raise ValueError(
                f"{path} holds scores of another selection (other: {', '.join(differing)}): choose another "
                "--output, or delete the folder"
            )
        content["sessions"] = [*there["sessions"], session]
    else:
        begin_folder(path, "selection")
    replace_json(file, content)


@dataclass(frozen=True)
class Selection:
    """The outcome of `select`.

    Attributes:
        plans: by file name in the folder.
        rows: of `curve.csv`: full attention, no full layer, then one a method and budget.
    """

    plans: dict[str, LayerPlan]
    rows: list[dict[str, Any]]


def select(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    settings: SelectSettings,
    folder: Path,
    *,
    name: str = "model",
    progress: Progress = lambda text, done, total: None,
) -> Selection:
    """Choose layers or KV heads; the model is restored in the end.

    The folder gets `run.json`, the scores (`calibration.jsonl`, `test-TASK.jsonl`), a plan for each method and budget
    (`METHOD-BUDGET.json`, `METHOD-heads-BUDGET.json`) and `curve.csv`. Repeated with the same folder, it goes on where
    it was killed, to the same result.

    Args:
        model: an unadapted model.
        tokenizer: its tokenizer.
        recipe: under which layers or heads are chosen; its own full ones play no part.
        settings: what is chosen.
        folder: of this selection, new or begun.
        name: of the model, for the records.
        progress: called with what is going on, and with passes (one prompt each) done and to be done in all.

    Raises:
        ConfigError: nothing slides under the recipe, or it does not fit the model.
        ValueError: a budget is out of range, the data cannot be made, or the folder holds another selection.
    """
    meter = Meter(progress)
    samples = settings.calibration.make(tokenizer)
    scorer = Scorer(
        model,
        tokenizer,
        samples,
        batch_size=settings.batch_size,
        file=folder / "calibration.jsonl",
        progress=meter.advance,
        compiled=settings.compiled,
    )
    units = Problem(scorer, recipe.config, settings.unit).units
    budgets = counts_of(settings.budgets, len(units), settings.unit)
    held_out = HeldOut(
        model,
        tokenizer,
        settings.tasks,
        samples=settings.test_samples,
        length=settings.calibration.length,
        seed=settings.calibration.seed,
        batch_size=settings.batch_size,
        folder=folder,
        progress=meter.advance,
        compiled=settings.compiled,
    )
    base = recipe.config.replace(full_layers=(), full_heads={})
    revision, data = model_revision(model), settings.calibration.describe(samples)
    key = {
        "model_revision": revision,
        "dtype": str(model.dtype),
        "recipe": base.to_dict(),
        "calibration": data["sha256"],
        "test": held_out.fingerprint(),
    }
    open_folder(folder, {"key": key, "model": name, "recipe": recipe.to_dict(), "settings": asdict(settings)})
    planned = [(method, budget) for budget in budgets for method in settings.methods]
    checks = sum(len(x.samples) for x in held_out.scorers.values()) * (len(planned) + 2)
    work = [SELECTORS[method].planned(len(units), budget) * len(samples) for method, budget in planned]
    meter.total = sum(work) + checks
    configs = [SWAAConfig(), base]
    full = Problem(scorer, base, settings.unit).full_layers(units)
    references = {"full attention": full, "no full layer": 0}
    scores = scorer.score(configs, text=", ".join(references))
    rows = [
        {"method": text, "full_layers": count} | _row(Choice((), {}), score)
        for (text, count), score in zip(references.items(), scores, strict=True)
    ]
    plans: dict[str, LayerPlan] = {}
    for (method, budget), passes in zip(planned, work, strict=True):
        before = meter.done
        problem = Problem(scorer, recipe.config, settings.unit)
        name_of_plan = f"{method}-{budget}" if settings.unit == "layers" else f"{method}-heads-{budget}"
        file = folder / f"{name_of_plan}.json"
        if file.exists():
            # Of a run that was cut short: not every method keeps all that it computes among the scores.
            plan = LayerPlan.load(file)
        else:
            choice = SELECTORS[method].select(problem, budget)
            config = problem.with_full(choice.chosen)
            plan = LayerPlan(
                config=config,
                layers=config.full_layer_numbers(model.config.get_text_config().num_hidden_layers),
                scores=choice.scores,
                method=method,
                budget=budget,
                recipe=recipe.name,
                calibration=data,
                model=name,
                model_revision=revision,
                passes=choice.passes,
                seconds=round(choice.seconds, 1),
                unit=settings.unit,
                shape=model_shape(model.config),
            )
        (calibrated,) = scorer.score([plan.config])
        meter.done = before + passes  # what was planned is an estimate
        count = problem.full_layers(plan.chosen)
        row: dict[str, Any] = {"method": method, "full_layers": count}
        rows.append(row | _row(Choice(plan.chosen, plan.scores, plan.passes, plan.seconds), calibrated))
        configs.append(plan.config)
        facts = {"calibration_nll": calibrated.nll, "calibration_accuracy": calibrated.accuracy}
        plans[name_of_plan] = replace(plan, measured=plan.measured | {"full_layers": count} | facts)
        plans[name_of_plan].save(file)
    # All choices at once: they share their low layers.
    measured = held_out.measure(configs, "held-out samples")
    reference = measured[0].get("accuracy")
    for row, found in zip(rows, measured, strict=True):
        row |= found
        if reference is not None:
            row["accuracy_ratio"] = row["accuracy"] / reference if reference else None
    write_csv(folder / "curve.csv", rows)
    for (name_of_plan, plan), found in zip(plans.items(), measured[2:], strict=True):
        plans[name_of_plan] = replace(plan, measured=plan.measured | found)
        plans[name_of_plan].save(folder / f"{name_of_plan}.json")
    return Selection(plans, rows)


def _row(choice: Choice, calibrated: Score) -> dict[str, Any]:
    return {
        "layers": " ".join(map(unit_name, choice.chosen)),
        "calibration_nll": calibrated.nll,
        "calibration_accuracy": calibrated.accuracy,
        "passes": choice.passes,
        "seconds": round(choice.seconds, 1),
    }
