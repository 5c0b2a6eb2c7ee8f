"""The main job: several recipes side by side on one model and the same samples."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adapting import adapt, layer_words, plan_layers, restore
from swaa.config import ConfigError, SWAAConfig
from swaa.cost import active_weights, kv_bytes, relative_cost
from swaa.evaluate import (
    accuracy_interval,
    exponential,
    generate_answers,
    mean_nll,
    measure_prefill,
    perplexity,
    score_answers,
)
from swaa.models import DEFAULT_MODEL
from swaa.recipes import Recipe, load_recipe
from swaa.results import command_line, environment, write_csv, write_json
from swaa.tasks import TASKS

DEFAULT_RECIPES = (
    "full",
    "naive",
    "sinks",
    "fa-decode",
    "sinks-fa-decode",
    "sinks-odd-fa-decode",
    "sinks-fa-decode-tail",
)
# The same with layers that `swaa select` chose for the default model.
DEFAULT_PLAN = "smollm2-2-layers-tail"
SCORERS = {"forced": score_answers, "free": generate_answers}
# What the table compares with full attention, as a ratio.
MEASURES = ("accuracy", "nll", "perplexity", "prefill_seconds", "kv_bytes")


@dataclass(frozen=True)
class Settings:
    """What is compared, beside the model and the recipes.

    Args:
        task: name of a retrieval task in `swaa.tasks.TASKS`.
        length: tokens of a prompt.
        samples: retrieval samples.
        seed: of the samples.
        scoring: "forced" or "free", see `swaa.evaluate`.
        batch_size: samples a pass.
        perplexity_samples: windows of prose for the perplexity, of `length` tokens each.
        prefill_samples: prompts whose prefill is timed, one at a time.
    """

    task: str = "needle"
    length: int = 1024
    samples: int = 16
    seed: int = 0
    scoring: str = "forced"
    batch_size: int = 1
    perplexity_samples: int = 3
    prefill_samples: int = 3

    def __post_init__(self) -> None:
        """Check every value."""
        if (kind := TASKS[self.task].kind) == "perplexity":
            raise ValueError(f"task {self.task!r} retrieves nothing, and its numbers are in every comparison anyway")
        if kind == "generation":
            raise ValueError(f"task {self.task!r} has only free answers: measure it with `swaa eval`")
        if self.scoring not in SCORERS:
            raise ValueError(f"scoring={self.scoring!r}: use one of {', '.join(SCORERS)}")
        for name in ("length", "samples", "batch_size", "perplexity_samples", "prefill_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 1 or more")


@dataclass
class Comparison:
    """The outcome.

    Args:
        settings: what was asked for.
        recipes: the recipes in the order of `rows`; the first is full attention.
        rows: one a recipe: its measures, and the ratio of each to full attention (`<measure>_ratio`); None is not
            known, or no finite number.
        predictions: one a recipe and sample.
        model: name of the model.
        model_config: its (text) configuration.
        adapters: training of the rows whose recipe has trained weights.
        seconds: time that the comparison took.
        environment: versions and hardware.
    """

    settings: Settings
    recipes: list[Recipe]
    rows: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    model: str
    model_config: Any
    adapters: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=environment)

    def save(self, folder: Path) -> list[Path]:
        """Write table, predictions, settings and plots into an existing folder; return the files.

        Raises:
            ModuleNotFoundError: matplotlib is missing (the data files are written all the same).
        """
        table, everything = folder / "table.csv", folder / "results.json"
        write_csv(table, self.rows)
        content = {
            "command": command_line(),
            "model": self.model,
            "settings": asdict(self.settings),
            "recipes": {recipe.name: recipe.to_dict() for recipe in self.recipes},
            "adapters": self.adapters,
            "layers": {recipe.name: layer_words(self.model_config, recipe.config) for recipe in self.recipes},
            "environment": self.environment,
            "seconds": round(self.seconds, 1),
            "table": self.rows,
            "predictions": self.predictions,
        }
        write_json(everything, content)
        from swaa.report import plots

        return [table, everything, *plots.save_comparison(self, folder)]


def choose_recipes(
    names: Sequence[str] | None,
    *,
    length: int,
    window: int | None = None,
    sinks: int | None = None,
    model: str | None = None,
) -> list[Recipe]:
    """Load the recipes of a comparison, full attention first.

    Args:
        names: recipe names or files; None: `DEFAULT_RECIPES` with a window of an eighth of `length`.
        length: tokens of a prompt.
        window: replaces the window of every recipe that has one.
        sinks: replaces the sinks of every recipe that has some.
        model: name of the model; the default model's recipes include `DEFAULT_PLAN` where `names` is None.

    Raises:
        ConfigError: a recipe does not exist or is wrong.
    """
    from swaa.recipes import load_recipes

    if names is None:
        names = (*DEFAULT_RECIPES, DEFAULT_PLAN) if model == DEFAULT_MODEL else DEFAULT_RECIPES
        window = max(length // 8, 1) if window is None else window
    recipes = [recipe for name in names for recipe in load_recipes(name)]
    changed = []
    for recipe in recipes:
        if recipe.config.window is not None and window is not None:
            recipe = recipe.replace(window=window)
        if recipe.config.sinks and sinks is not None:
            recipe = recipe.replace(sinks=sinks)
        changed.append(recipe)
    check_names(changed)
    full = next((recipe for recipe in changed if recipe.config.window is None), load_recipe("full"))
    return [full, *(recipe for recipe in changed if recipe.config.window is not None)]


def check_names(recipes: Sequence[Recipe]) -> None:
    """Raise `ConfigError` if two recipes have one name."""
    counts = Counter(recipe.name for recipe in recipes)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ConfigError(f"recipes: several are called {twice[0]!r}; tables and plots need one name for each")


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipes: Sequence[Recipe],
    settings: Settings,
    *,
    adapters: Mapping[str, str] | None = None,
    name: str = "model",
    progress: Callable[[str, int, int], None] = lambda recipe, done, correct: None,
) -> Comparison:
    """Run recipes side by side; the model is restored afterwards, whatever happens.

    Args:
        model: an unadapted model, PEFT-wrapped or not.
        tokenizer: its tokenizer.
        recipes: full attention first (`choose_recipes`).
        settings: what is compared.
        adapters: by the names of recipes: the adapter of a `PeftModel` that is on; the others have the original
            weights. None: the weights are what they are.
        name: of the model, for the records.
        progress: called with the recipe's name, its finished steps (`steps(settings)` in all) and right answers so far.

    Raises:
        ConfigError: a recipe does not fit the model.
        ValueError: the task cannot make such samples.
    """
    begin = time.perf_counter()
    model_config = model.config.get_text_config()
    for recipe in recipes:
        recipe.check_model(model_config)
        plan_layers(model_config, recipe.config)
    length, seed = settings.length, settings.seed
    samples = TASKS[settings.task].samples(tokenizer, length=length, count=settings.samples, seed=seed)
    prose = TASKS["perplexity"].samples(tokenizer, length=length, count=settings.perplexity_samples, seed=seed)
    adapters = adapters or {}
    trained = {recipe.name: recipe.description for recipe in recipes if recipe.name in adapters}
    outcome = Comparison(settings, list(recipes), [], [], name, model_config, trained)
    weights = active_weights(model)
    perplexities: dict[tuple[SWAAConfig, str | None], float | None] = {}
    try:
        for recipe in recipes:
            config, adapter = recipe.config, adapters.get(recipe.name)
            if adapters:
                _switch(model, adapter)
            if config.window is None:
                restore(model)
            else:
                adapt(model, config)
            answers = []
            for answer in SCORERS[settings.scoring](model, tokenizer, samples, batch_size=settings.batch_size):
                answers.append(answer)
                progress(recipe.name, len(answers), sum(a.correct for a in answers))
            correct, done = sum(a.correct for a in answers), len(answers)
            # Perplexity has no generated rows, so recipes that differ in FA decode only share it.
            key = config.replace(fa_decode=False), adapter
            if key not in perplexities:
                losses = []
                for loss in perplexity(model, prose):
                    losses.append(loss)
                    progress(recipe.name, done + len(losses), correct)
                perplexities[key] = exponential(mean_nll(losses))
            done += len(prose)
            seconds, held = measure_prefill(model, [s.prompt_ids for s in samples[: settings.prefill_samples]])
            progress(recipe.name, done + 1, correct)
            rules, release = plan_layers(model_config, config), config.release_kv
            cost = relative_cost(model.config, rules, length, weights, release_kv=release)
            size = model.dtype.itemsize
            low, high = accuracy_interval(correct, len(answers))
            row: dict[str, Any] = {
                "recipe": recipe.name,
                "accuracy": correct / len(answers),
                "accuracy_low": low,
                "accuracy_high": high,
                "nll": mean_nll([a.nll for a in answers]),
                "perplexity": perplexities[key],
                "prefill_seconds": seconds,
                "kv_bytes": held,
                "kv_bytes_computed": kv_bytes(model.config, rules, length, dtype_bytes=size, release_kv=release),
                "kv_bytes_computed_ratio": cost.kv,
                "prefill_flops_ratio": cost.flops,
            }
            full = outcome.rows[0] if outcome.rows else row
            ratios = {f"{measure}_ratio": _ratio(row[measure], full[measure]) for measure in MEASURES}
            outcome.rows.append(row | ratios)
            outcome.predictions += [
                {"recipe": recipe.name, **asdict(a), "nll": mean_nll([a.nll])}
                | {"answer": samples[a.index].answer, "meta": samples[a.index].meta}
                for a in answers
            ]
    finally:
        restore(model)
        if adapters:
            _switch(model, next(iter(adapters.values())))
    outcome.seconds = time.perf_counter() - begin
    return outcome


def _switch(model: Any, adapter: str | None) -> None:
    """Put one of a `PeftModel`'s adapters on, or none."""
    if adapter is None:
        model.base_model.disable_adapter_layers()
    else:
        model.base_model.enable_adapter_layers()
        model.set_adapter(adapter)


def steps(settings: Settings) -> int:
    """Return how many steps `compare` reports for one recipe."""
    return settings.samples + settings.perplexity_samples + 1


def _ratio(value: float | None, full: float | None) -> float | None:
    return value / full if full and value is not None else None
