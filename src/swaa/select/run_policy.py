"""`swaa select --method policy`: the search, and its front measured on held-out samples."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.config import SWAAConfig
from swaa.recipes import Recipe
from swaa.results import command_line, model_revision, replace_json, write_csv
from swaa.select.heldout import HeldOut, Meter, Progress
from swaa.select.policy import Grid, PolicySearch, Trial, front_of
from swaa.select.run import SelectSettings, open_folder
from swaa.select.scoring import Scorer


@dataclass(frozen=True)
class PolicySettings:
    """What is searched, beside the data (`SelectSettings`).

    Args:
        max_flops: most arithmetic of the prefill, as a fraction of full attention's; None: any.
        max_kv: most bytes of keys and values, likewise.
        trials: recipes that are measured.

    Raises:
        ValueError: a value is out of range.
    """

    max_flops: float | None = None
    max_kv: float | None = None
    trials: int = 40

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("max_flops", "max_kv"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value}: give a fraction of full attention's cost, above 0 and up to 1")
        if self.trials < 1:
            raise ValueError(f"trials={self.trials}: use 1 or more")


def search_policies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy: PolicySettings,
    settings: SelectSettings,
    folder: Path,
    *,
    name: str = "model",
    progress: Progress = lambda text, done, total: None,
) -> tuple[list[Recipe], list[dict[str, Any]]]:
    """Search policies; the model is restored in the end. Repeated with the same folder, it goes on where it was.

    The folder gets the scores, `policy.csv` and a recipe file `policy-N.json` for each policy on the front, the
    cheapest prefill first.

    Args:
        model: an unadapted model.
        tokenizer: its tokenizer.
        policy: limits and trials.
        settings: the data; methods and budgets play no part.
        folder: of this search, new or begun.
        name: of the model, for the records.
        progress: called with what is going on, and with passes (one prompt each) done and to be done in all.

    Returns:
        the front's recipes, and the rows of `policy.csv`: full attention, then every policy that was measured.

    Raises:
        ValueError: no policy is within the limits, the data cannot be made, or the folder holds something else.
    """
    meter = Meter(progress)
    data, size = settings.calibration, settings.batch_size
    samples = data.make(tokenizer)
    file = folder / "calibration.jsonl"
    common: dict[str, Any] = {"batch_size": size, "progress": meter.advance, "compiled": settings.compiled}
    scorer = Scorer(model, tokenizer, samples, file=file, **common)
    grid = Grid.of(data.length, model.config.get_text_config().num_hidden_layers)
    limits = {"max_flops": policy.max_flops, "max_kv": policy.max_kv}
    search = PolicySearch(scorer, data.length, grid, seed=data.seed, **limits)
    held_out = HeldOut(
        model,
        tokenizer,
        settings.tasks,
        samples=settings.test_samples,
        length=data.length,
        seed=data.seed,
        folder=folder,
        **common,
    )
    facts, revision = data.describe(samples), model_revision(model)
    key = {
        "model_revision": revision,
        "dtype": str(model.dtype),
        "recipe": "policy",
        "calibration": facts["sha256"],
        "test": held_out.fingerprint(),
    }
    content = {"key": key, "model": name, "grid": asdict(grid), "policy": asdict(policy), "settings": asdict(settings)}
    open_folder(folder, content)
    meter.total = search.planned(policy.trials) * len(samples)
    full = Trial(SWAAConfig(), scorer.score([SWAAConfig()])[0], search.cost(SWAAConfig()))
    trials = {f"trial {number}": trial for number, trial in enumerate(search.run(policy.trials), 1)}
    front = {trial: f"policy-{number}" for number, trial in enumerate(front_of(trials), 1)}
    meter.total = meter.done + sum(len(x.samples) for x in held_out.scorers.values()) * (len(front) + 1)
    tried = {"full": full} | {front.get(name, name): trial for name, trial in trials.items()}
    rows = [_row(name, trial, on_front=name in front.values()) for name, trial in tried.items()]
    checked = [row for row in rows if row["recipe"] == "full" or row["on_front"]]
    measured = held_out.measure([tried[row["recipe"]].config for row in checked], "the front: held-out samples")
    columns = list(measured[0])
    for row in rows:
        row |= dict.fromkeys(columns)
    recipes = []
    for row, found in zip(checked, measured, strict=True):
        row |= found
        if row["on_front"]:
            recipe = Recipe(
                row["recipe"],
                tried[row["recipe"]].config,
                description=f"on the front of {len(trials)} policies for {name} at {data.length} tokens",
                provenance=command_line(),
                plan={"method": "policy", "model": name, "model_revision": revision, "calibration": facts, **row},
            )
            replace_json(folder / f"{recipe.name}.json", recipe.to_dict())
            recipes.append(recipe)
    write_csv(folder / "policy.csv", rows)
    return sorted(recipes, key=lambda recipe: int(recipe.name.split("-")[1])), rows


def _row(name: str, trial: Trial, *, on_front: bool) -> dict[str, Any]:
    config = trial.config.to_dict()
    settings = {key: config[key] for key in ("window", "sinks", "dense_tail", "fa_decode")}
    return {
        "recipe": name,
        **settings,
        "full_layers": " ".join(map(str, config["full_layers"])),
        "flops": trial.cost.flops,
        "attention": trial.cost.attention,
        "kv": trial.cost.kv,
        "calibration_nll": trial.score.nll,
        "calibration_accuracy": trial.score.accuracy,
        "on_front": on_front,
    }
