"""`swaa recommend`: a recipe for a model, a length and a goal, with the numbers behind the choice."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swaa.cli.common import ModelOption, notes, output, positive_tokens, warn
from swaa.cli.progress import time_left
from swaa.cli.unused import refuse_unused
from swaa.cli.wording import quantity, short_form
from swaa.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from swaa.recommend import Recommendation


def recommend(
    context: typer.Context,
    length: Annotated[
        Any,
        typer.Option(
            "--length", "-n", parser=positive_tokens, metavar="TOKENS", help="Tokens of a prompt, as in `-n 32k`."
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    goal: Annotated[
        str,
        typer.Option(
            metavar="GOAL",
            help="`speed`: the cheapest prefill that still retrieves; `memory`: the smallest KV that does; `quality`: "
            "the closest to full attention.",
        ),
    ] = "quality",
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", help="Load the weights and measure every candidate on generated needles of this length."
        ),
    ] = False,
    samples: Annotated[
        int, typer.Option(help="Prompts of each of the two calibration tasks, as in `--samples 40`.")
    ] = 16,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            "-r",
            metavar="NAMES",
            help="Recipes to consider too, a comma list of names and files, such as a layer plan of `swaa select`: "
            "`-r plan.json --calibrate`.",
        ),
    ] = None,
    recipe_file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the recipe, as in `-o mine.yaml`; a fresh file."),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="`bfloat16`, `float32`, ..; `auto`: bfloat16 where it is fast.")
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="`cpu`, `cuda`, ..; `auto`: CUDA if there is one.")
    ] = "auto",
) -> None:
    """Recommend a recipe for prompts of a length, and say why.

    Costs come from the model's configuration alone, as fractions of full attention's. Accuracy is measured with
    `--calibrate` only; without it the choice goes by what the same kind of recipe did on another model.

    **Examples**

    - `swaa recommend --length 8k`
    - `swaa recommend -m Qwen/Qwen3-4B-Instruct-2507 --length 32k --goal speed -o mine.yaml`
    - `swaa recommend --length 2k --goal memory --calibrate` (some minutes on two cores)
    """
    from swaa.cli.inspection import without_weights
    from swaa.cli.loading import load, load_config
    from swaa.cost import active_weights
    from swaa.models import quiet_transformers
    from swaa.recipes import load_recipes
    from swaa.recommend import GOALS, candidates
    from swaa.recommend import calibrate as measure
    from swaa.recommend import recommend as choose

    if not calibrate:
        refuse_unused(context, "nothing is measured: add --calibrate", "samples", "dtype", "device")
    if goal not in GOALS:
        raise ValueError(f"--goal {goal!r}: use one of {', '.join(GOALS)}")
    if samples < 1:
        raise ValueError(f"--samples {samples}: use 1 or more")
    if recipe_file is not None and (recipe_file.suffix not in (".yaml", ".yml") or recipe_file.exists()):
        raise ValueError(f"--output {recipe_file}: give a .yaml file that does not exist yet")
    if recipe_file is not None and not recipe_file.parent.is_dir():
        raise ValueError(f"--output {recipe_file}: there is no folder {recipe_file.parent}; make it, or name another")
    named = [name.strip() for name in (recipes or "").split(",") if name.strip()]
    config = load_config(model)
    with quiet_transformers():
        empty = without_weights(config)
        found = candidates(
            config, length, active_weights(empty), more=[one for name in named for one in load_recipes(name)]
        )
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit and length > limit:
        warn(f"{length} tokens are more than the {limit} positions that the model was trained on")
    if calibrate:
        loaded, tokenizer = load(model, dtype=dtype, device=device)
        with quiet_transformers(), time_left(shown=True) as update:
            found = measure(loaded, tokenizer, found, length=length, samples=samples, progress=update)
    outcome = choose(found, goal)
    _print(outcome, f"{model}, prompts of {length:,} tokens, goal: {goal}")
    if recipe_file is not None:
        chosen = dataclasses.replace(
            outcome.chosen.recipe,
            description=short_form(outcome.chosen.recipe.config),
            provenance=f"swaa recommend --goal {goal} for {model} at {length} tokens: {' '.join(outcome.reasons)}",
        )
        recipe_file.write_text(chosen.to_yaml(), encoding="utf-8")
        notes().print(f"recipe in {recipe_file}")


def _print(outcome: "Recommendation", title: str) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output()
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("recipe", no_wrap=True)
    table.add_column("adaptation")
    for heading in ("arithmetic", "attention", "KV", "KV bytes", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("retrieves", no_wrap=True)
    for each in outcome.candidates:
        marked = each is outcome.chosen
        accuracy = "-" if each.accuracy is None else f"{each.accuracy:.2f}"
        costs = ("unknown" if x is None else f"{x:.0%}" for x in (each.cost.flops, each.cost.attention, each.cost.kv))
        table.add_row(
            "*" if marked else "",
            Text(each.recipe.name, "bold" if marked else ""),
            short_form(each.recipe.config),
            *costs,
            quantity(each.kv_bytes, "B"),
            accuracy,
            each.retrieves,
        )
    console.print(table, "")
    console.print(
        "Arithmetic of the prefill, of its attention alone, and KV: fractions of full attention's, computed. "
        "Retrieves: untrained, only after fine-tuning (trained), no, or unknown; from other models.",
        "",
        soft_wrap=True,
    )
    console.print(f"Recommended: {outcome.chosen.recipe.name} ({short_form(outcome.chosen.recipe.config)})")
    for reason in outcome.reasons:
        console.print(f"- {reason}", soft_wrap=True)
