"""`swaa select`: which layers stay full, or the whole policy, under a budget."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from swaa.cli.common import (
    PLACE,
    BackendOption,
    DenseTailOption,
    DeviceOption,
    DtypeOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    ModelOption,
    SinksOption,
    WindowOption,
    names,
    no_empty_folder,
    notes,
    plots_if_possible,
    positive_tokens,
    resolve_recipe,
    warn,
    warn_of_length,
)
from swaa.cli.progress import time_left
from swaa.cli.unused import refuse_unused
from swaa.cli.wording import short_form
from swaa.models import DEFAULT_MODEL

_DATA, _CHECK, _POLICY = "Calibration data", "Check on held-out samples", "Policy search"
_RECIPE = "sinks-fa-decode"


def _budgets(text: str) -> tuple[int | float, ...]:
    """Read budgets: whole numbers are layers, numbers with a point are fractions of the layers."""
    found: list[int | float] = []
    for part in names(text):
        try:
            found.append(float(part) if "." in part else int(part))
        except ValueError:
            raise ValueError(
                f"--budget {part!r} is neither a number of layers nor a fraction: write 4, 0.25 or 1,2,4,8"
            ) from None
        if isinstance(found[-1], float) and not 0 <= found[-1] <= 1:
            raise ValueError(f"--budget {part!r}: a fraction of the layers is 0.0 to 1.0; whole numbers are layers")
    return tuple(found)


def select(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    budget: Annotated[
        str,
        typer.Option(
            metavar="NUMBERS",
            help="Full layers, or heads: a number, a fraction such as `0.25`, or a list for a curve: "
            "`--budget 1,2,4,8,15`.",
        ),
    ] = "4",
    unit: Annotated[
        str,
        typer.Option(
            metavar="layers|heads",
            help="What stays full: `layers`, or `heads`: KV heads of layers that slide, as in `--unit heads --budget "
            "12`.",
        ),
    ] = "layers",
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAMES",
            help="Comma list. `nll`: NLL lost when only this layer slides; `nll-won`: won when only this one is full; "
            "`lazy`: attention that leaves the window; `greedy`: one after the other, jointly; `backward`: takes away "
            "what is missed least; `gates`: learned by gradients; `swap`: exchanges until nothing helps; `periodic`: "
            "every so many. Or `policy`: window, sinks, tail, FA decode and layers at once.",
        ),
    ] = "nll",
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Under which layers are chosen, as in `-r sinks`; its own full layers play no part. Default: "
            "sinks-fa-decode with a window of an eighth of the length.",
        ),
    ] = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    length: Annotated[
        int,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Tokens of a prompt, as in `--length 2k`; several times the window.",
            rich_help_panel=_DATA,
        ),
    ] = 1024,
    samples: Annotated[int, typer.Option(help="Calibration prompts; 64 on a GPU.", rich_help_panel=_DATA)] = 10,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Your own JSONL, JSON or parquet file with `prompt` and `answer` in each row, as in "
            "`--data questions.jsonl`. Default: built-in retrieval in five wordings.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all samples.", rich_help_panel=_DATA)] = 0,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Tasks that the choice is measured on, as in `--tasks needle,needle-noise`.",
            rich_help_panel=_CHECK,
        ),
    ] = "needle,needle-multikey",
    test_samples: Annotated[
        int,
        typer.Option(
            help="Held-out samples of each task, as in `--test-samples 200`; 0: none.", rich_help_panel=_CHECK
        ),
    ] = 8,
    max_flops: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Most prefill arithmetic, as a fraction of full attention's, as in `--max-flops 0.9`.",
            rich_help_panel=_POLICY,
        ),
    ] = None,
    max_kv: Annotated[
        float | None,
        typer.Option(
            metavar="FRACTION",
            help="Most KV bytes, as a fraction of full attention's, as in `--max-kv 0.5`.",
            rich_help_panel=_POLICY,
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option(help="Recipes that are measured, as in `--trials 200`.", rich_help_panel=_POLICY)
    ] = 40,
    batch_size: Annotated[int, typer.Option(help="Prompts a pass, as in `--batch-size 16`; pays on a GPU.")] = 1,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile/--no-compile",
            help="Fuse what lies between the attentions, which takes half a minute: for long selections on a GPU.",
        ),
    ] = False,
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the selection, as in `-o results/mine`; one that holds a part of the same selection is "
            "continued. Default: a fresh folder below `results`.",
            rich_help_panel=PLACE,
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Choose the layers, or KV heads, that stay full, and write them as a layer plan that `--recipe` takes everywhere.

    Every layer is toggled on calibration prompts; the choice is measured on other prompts afterwards. Scores are on the
    disk as they come: repeat the command with the same `--output` and it goes on where it was killed.

    **Examples**

    - `swaa select` (4 of the default model's layers; some minutes on two cores)
    - `swaa select --budget 1,2,4,8,15 --method nll,greedy,swap --length 2k --window 256 --samples 64 --batch-size 16`
    - `swaa select --unit heads --budget 12 --method nll,backward` (as much memory as 4 of its layers)
    - `swaa select -m Qwen/Qwen3-4B -r mine.yaml --length 16k --budget 0.25 --data questions.jsonl`
    - `swaa select --method policy --max-kv 0.5 --trials 100 -o results/policy`, then
      `swaa eval -r results/policy/policy-1.json`
    """
    from swaa.cli.loading import load
    from swaa.models import quiet_transformers
    from swaa.results import new_folder
    from swaa.select import Calibration
    from swaa.select.run import SelectSettings
    from swaa.select.run import select as run
    from swaa.select.run_policy import PolicySettings, search_policies

    methods = names(method)
    searching = "policy" in methods
    if searching and len(methods) > 1:
        raise ValueError("--method policy searches everything at once: name it alone, or leave it out")
    flags = {
        "window": window,
        "sinks": sinks,
        "fa_decode": fa_decode,
        "fa_decode_layers": fa_decode_layers,
        "dense_tail": dense_tail,
        "backend": backend,
    }
    limits = PolicySettings(max_flops, max_kv, trials)
    if searching:
        refuse_unused(context, "--method policy chooses the recipe itself: name another method", "recipe", *flags)
        refuse_unused(context, "--method policy chooses whole layers: name another method", "unit")
        reason = "--method policy chooses the number of layers too: limit it by --max-flops or --max-kv"
        refuse_unused(context, f"{reason}, name another method", "budget")
    else:
        refuse_unused(context, "no policy is searched: add --method policy", "max_flops", "max_kv", "trials")
    if not test_samples:
        refuse_unused(context, "--test-samples 0 measures nothing: use 1 or more", "tasks")
    if recipe is None and window is None:
        flags["window"] = max(length // 8, 1)
    chosen = resolve_recipe(recipe or _RECIPE, **flags)  # type: ignore[arg-type]  # of many types
    settings = SelectSettings(
        methods=("nll",) if searching else methods,
        budgets=_budgets(budget),
        calibration=Calibration(length, samples, seed, data),
        tasks=names(tasks),
        test_samples=test_samples,
        batch_size=batch_size,
        unit=unit,
        compiled=compiled,
    )
    if not searching and (chosen.config.window or 0) >= length:
        warn(f"a window of {chosen.config.window} covers all {length} tokens, nothing slides: use a longer --length")
    with quiet_transformers():
        loaded, tokenizer = load(model, dtype=dtype, device=device)
        warn_of_length(loaded.config, length)
        path = output_folder or new_folder("results", f"select-{Path(model).name}")
        begin = time.perf_counter()
        with time_left(shown=True) as update, no_empty_folder(path):
            common: dict[str, Any] = {"name": model, "progress": update}
            if searching:
                recipes, rows = search_policies(loaded, tokenizer, limits, settings, path, **common)
            else:
                outcome = run(loaded, tokenizer, chosen, settings, path, **common)
    from swaa.cli import selection

    if searching:
        selection.print_policies(model, recipes, rows)
        with plots_if_possible():
            selection.save_policy_plots(path, rows, f"{model}: policies at {length} tokens")
    else:
        selection.print_plans(f"{model}: {short_form(chosen.config)}, {length} tokens", outcome)
        with plots_if_possible():
            selection.save_plots(path, outcome, f"{model}: {short_form(chosen.config)}, {length} tokens")
    notes().print(f"{time.perf_counter() - begin:.0f} s; plans, scores and plots in {path}")
