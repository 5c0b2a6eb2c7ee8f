"""Which recipe suits a model, a length and a goal: candidates, what each costs, and the choice with its reasons.

Costs are computed (`swaa.cost`). Whether a recipe still finds things in its prompt is measured on the model itself
(`calibrate`); otherwise it is what the same kind of recipe did on another model, and said to be so.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adapting import adapt, plan_layers, restore
from swaa.cost import RelativeCost, Weights, kv_bytes, relative_cost
from swaa.evaluate import score_answers
from swaa.recipes import Recipe, load_recipe, model_shape, recipe_names
from swaa.tasks import TASKS

GOALS = ("speed", "quality", "memory")
CALIBRATION_TASKS = ("needle", "needle-multikey")
# What a recipe must keep of full attention's accuracy to be chosen for its cost.
KEPT = 0.9
# Below this saving full attention is the better choice.
_WORTH = 0.9
# The paper's advice for long prompts (arXiv 2512.10411, recommendations), and smaller ones for shorter prompts.
_LARGEST_WINDOW, _LARGEST_SINKS, _SMALLEST_WINDOW, _SHARE = 4096, 128, 64, 8
# Shipped recipes for any model: whether their kind retrieves, and the share of full attention's score that it kept in
# the place that the recipe's provenance names.
_SHIPPED = (
    ("constant-memory", "no", 0.05),
    ("trained-fast", "trained", 0.98),
    ("trained-balanced", "trained", 1.01),
    ("trained-quality", "trained", 1.01),
    ("untrained-fast", "untrained", 0.91),
    ("untrained-balanced", "untrained", 0.90),
    ("untrained-quality", "untrained", 0.92),
    ("sinks-odd", "trained", 0.85),
)


@dataclass(frozen=True)
class Candidate:
    """A recipe that may be chosen.

    Args:
        recipe: the recipe.
        cost: what it costs at the length, as fractions of full attention's.
        kv_bytes: keys and values held once the prompt is complete, in 16 bits; None: not known for this family.
        retrieves: whether its kind finds things anywhere in the prompt: "untrained", "trained" (only after
            fine-tuning under it), "no", or "unknown".
        evidence: where that is from.
        kept: the share of full attention's score in that place; None: nobody measured it.
        accuracy: on this model, 0 to 1, if it was calibrated.
    """

    recipe: Recipe
    cost: RelativeCost
    kv_bytes: int | None
    retrieves: str
    evidence: str
    kept: float | None
    accuracy: float | None = None


@dataclass(frozen=True)
class Recommendation:
    """The outcome.

    Args:
        candidates: all, full attention first.
        chosen: one of them.
        reasons: sentences: why it, and what nobody measured.
    """

    candidates: list[Candidate]
    chosen: Candidate
    reasons: list[str]


def candidates(model_config: Any, length: int, weights: Weights, *, more: Sequence[Recipe] = ()) -> list[Candidate]:
    """Return the recipes that are considered, full attention first, with their costs.

    The window is an eighth of the length, 64 to 4096 tokens; the sinks a quarter of it, 128 at most. Layer plans keep
    those that they were chosen under. Shipped recipes that change nothing here are left out: the prompt fits into the
    window, or a family's own windows are in all layers but those that the recipe leaves full (Gemma 2, gpt-oss).

    Args:
        model_config: the model's configuration of transformers, a composite one too.
        length: tokens of a prompt.
        weights: of the model (`swaa.cost.active_weights`).
        more: recipes of the user's own.

    Raises:
        AdaptError: the model has no layer to adapt.
        ConfigError: a recipe does not fit the model.
        ValueError: two recipes have one name.
    """
    window = min(max(length // _SHARE, _SMALLEST_WINDOW), _LARGEST_WINDOW)
    sizes = {"window": window, "sinks": min(window // 4, _LARGEST_SINKS)}
    full = load_recipe("full")
    found: list[tuple[Recipe, str, str, float | None]] = [(full, "untrained", full.provenance, 1.0)]
    for name, retrieves, kept in _SHIPPED:
        recipe = load_recipe(name).replace(**sizes)
        found.append((recipe, retrieves, recipe.provenance, kept))
    for plan in _plans(model_config, length):
        kept = plan.plan["accuracy_ratio"]
        found.append((plan, "untrained" if kept >= KEPT else "unknown", plan.provenance, kept))
    found += [(recipe, "unknown", "yours", None) for recipe in more]
    names = [recipe.name for recipe, *_ in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"recipes: several are called {twice[0]!r}: rename yours")
    first, *others = [_priced(model_config, length, weights, *each) for each in found]
    mine = {recipe.name for recipe in more}
    return [first, *(each for each in others if _saves(each) or each.recipe.name in mine)]


def _plans(model_config: Any, length: int) -> list[Recipe]:
    """Return the layer plans that ship for this model, as they were measured, those of a length near this one first.

    One that was measured on prompts of less than half of the length says nothing about it.
    """
    shape = model_shape(model_config)
    fitting = [recipe for recipe in map(load_recipe, recipe_names()) if recipe.plan.get("shape") == shape]
    measured = [recipe for recipe in fitting if "accuracy_ratio" in recipe.plan and length <= 2 * recipe.plan["length"]]
    return sorted(measured, key=lambda recipe: abs(math.log(length / recipe.plan["length"])))


def _priced(
    model_config: Any, length: int, weights: Weights, recipe: Recipe, retrieves: str, why: str, kept: float | None
) -> Candidate:
    recipe.check_model(model_config)
    rules = plan_layers(model_config.get_text_config(), recipe.config)
    release = recipe.config.release_kv
    cost = relative_cost(model_config, rules, length, weights, release_kv=release)
    return Candidate(recipe, cost, kv_bytes(model_config, rules, length, release_kv=release), retrieves, why, kept)


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    found: Sequence[Candidate],
    *,
    length: int,
    samples: int,
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> list[Candidate]:
    """Measure the accuracy of candidates on needles of the calibration split; the model is restored afterwards.

    Args:
        model: an unadapted model.
        tokenizer: its tokenizer.
        found: the candidates.
        length: tokens of a prompt.
        samples: prompts of each of `CALIBRATION_TASKS`.
        progress: called with the candidate's name, prompts done, and prompts in all.

    Raises:
        ValueError: the length has no room for a needle, or there are no samples.
    """
    made = [
        sample
        for task in CALIBRATION_TASKS
        for sample in TASKS[task].samples(tokenizer, length=length, count=samples, seed=0, split="calibration")
    ]
    measured: list[Candidate] = []
    try:
        for candidate in found:
            adapt(model, candidate.recipe.config)
            correct = 0
            for answer in score_answers(model, tokenizer, made):
                correct += answer.correct
                done = len(made) * len(measured) + answer.index + 1
                progress(candidate.recipe.name, done, len(made) * len(found))
            measured.append(replace(candidate, accuracy=correct / len(made)))
    finally:
        restore(model)
    return measured


def recommend(found: Sequence[Candidate], goal: str) -> Recommendation:
    """Choose one of the candidates.

    Among those that cost less than full attention and retrieve, which is 0.9 of full attention's accuracy after a
    calibration: the cheapest prefill for "speed", the smallest KV for "memory"; for "quality" the most accurate, or
    without a calibration the one whose kind kept most elsewhere. Where that saves less than a tenth, or there is none,
    it is full attention.

    Args:
        found: candidates, full attention first; all calibrated or none.
        goal: one of `GOALS`.

    Raises:
        ValueError: there is no such goal.
    """
    if goal not in GOALS:
        raise ValueError(f"goal={goal!r}: use one of {', '.join(GOALS)}")
    full, sliding = found[0], found[1:]
    calibrated = full.accuracy is not None
    fitting = [each for each in sliding if _fits(each, full)]
    reasons = []
    if not calibrated and goal == "memory" and not any(_kv(each) < 1 for each in fitting):
        fitting = [each for each in sliding if each.retrieves == "trained" and _kv(each) < 1]
        reasons.append(
            "No recipe is known to release KV and still retrieve without training: fine-tune under this one "
            "(`swaa train`), or choose its layers (`swaa select`)."
        )
    if not fitting:
        return Recommendation(list(found), full, [_why_none(sliding, full, goal)])
    if goal == "memory":
        chosen = min(fitting, key=lambda each: (_kv(each), _flops(each)))
    elif goal == "speed":
        chosen = min(fitting, key=lambda each: (_flops(each), _kv(each)))
    elif calibrated:
        chosen = max(fitting, key=lambda each: (each.accuracy, -_flops(each)))
    else:
        chosen = max(fitting, key=lambda each: (each.kept or 0.0, -_flops(each)))
    saved, what = (chosen.cost.kv, "KV bytes") if goal == "memory" else (chosen.cost.flops, "prefill arithmetic")
    if saved is not None and saved > _WORTH:
        note = f"The best recipe for {goal}, {chosen.recipe.name}, needs {saved:.0%} of full attention's {what}"
        return Recommendation(list(found), full, [f"{note}: not worth an adaptation. Stay with full attention."])
    return Recommendation(list(found), chosen, [*_why(chosen, full, goal), *reasons])


def _saves(candidate: Candidate) -> bool:
    """Tell whether it costs less than full attention; where nobody knows the arithmetic, it may."""
    return candidate.cost.flops != 1 or candidate.cost.kv not in (1, None)


def _fits(candidate: Candidate, full: Candidate) -> bool:
    if not _saves(candidate):
        return False
    if full.accuracy is None or candidate.accuracy is None:
        return candidate.retrieves == "untrained"
    return candidate.accuracy >= KEPT * full.accuracy and full.accuracy > 0


def _why_none(sliding: Sequence[Candidate], full: Candidate, goal: str) -> str:
    if not any(map(_saves, sliding)):
        return (
            "No recipe costs less than full attention here: the prompt fits into the window, or the layers that would "
            "slide have a window of the model's own. Stay with full attention."
        )
    if full.accuracy is not None:
        return (
            f"No recipe keeps {KEPT} of full attention's accuracy ({full.accuracy}) here: fine-tune (`swaa train`), or "
            "use a larger window."
        )
    costs = [each.cost.kv if goal == "memory" else each.cost.flops for each in sliding]
    known = [cost for cost in costs if cost is not None]
    what = "KV bytes" if goal == "memory" else "prefill arithmetic"
    if len(known) == len(costs) and min(known) > _WORTH:
        return (
            f"No recipe needs less than {min(known):.0%} of full attention's {what} here: not worth an adaptation. "
            "Stay with full attention."
        )
    trained = "fine-tuned or not" if goal == "memory" else "unless fine-tuned under (`swaa train`)"
    return (
        f"No recipe that saves {what} here is known to retrieve, {trained}: measure them (--calibrate), choose the "
        "layers that stay full (`swaa select`), or stay with full attention."
    )


def _why(chosen: Candidate, full: Candidate, goal: str) -> list[str]:
    trained = " once fine-tuned" if chosen.accuracy is None and chosen.retrieves == "trained" else ""
    rules = {
        "speed": "the cheapest prefill among those that retrieve",
        "memory": f"the smallest KV among those that retrieve{trained}",
        "quality": "the most accurate on this model"
        if chosen.accuracy is not None
        else "the one of those that retrieve whose kind kept most of full attention's score elsewhere",
    }
    reasons = [f"{chosen.recipe.name}: {rules[goal]}."]
    if chosen.cost.flops is None:
        reasons.append("The arithmetic of this family is not known here, so recipes are not told apart by it.")
    if chosen.cost.kv is not None and chosen.cost.kv > _WORTH:
        reasons.append("It saves prefill, not memory: generated tokens see everything, so all keys are kept.")
    if chosen.accuracy is not None:
        reasons.append(f"Accuracy {chosen.accuracy:.2f} on generated needles, full attention {full.accuracy:.2f}.")
    else:
        reasons.append(f"Accuracy is not measured here. Known of its kind: {chosen.evidence}. Add --calibrate.")
    reasons.append("Time is not measured: the arithmetic bounds it, `swaa bench prefill` measures it.")
    return reasons


def _flops(candidate: Candidate) -> float:
    return math.inf if candidate.cost.flops is None else candidate.cost.flops


def _kv(candidate: Candidate) -> float:
    return math.inf if candidate.cost.kv is None else candidate.cost.kv
