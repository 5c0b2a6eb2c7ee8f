"""`swaa compare`: recipes side by side on one model."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swaa.cli.common import (
    PLACE,
    AllSinksOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    names,
    notes,
    output,
    plots_if_possible,
    token_count,
    warn,
    warn_of_length,
)
from swaa.cli.progress import minute_lines
from swaa.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.table import Table

    from swaa.adapters import Adapter
    from swaa.compare import Comparison


def compare(
    model: ModelOption = DEFAULT_MODEL,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            "-r",
            metavar="NAMES",
            help="Comma list of recipe names and files, as in `-r naive,sinks-fa-decode,mine.yaml`; full attention is "
            "always added. Default: full attention, naive sliding window, the paper's methods one by one, and for the "
            "default model layers that `swaa select` chose.",
        ),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter",
            "-a",
            metavar="DIR",
            help="An adapter of `swaa train`: its own recipe with and without it, and full attention with it; may be "
            "repeated. The model is then the adapter's.",
        ),
    ] = None,
    task: Annotated[
        str, typer.Option(metavar="NAME", help="`needle`, `needle-multikey` (four keys, one asked) or `needle-noise`.")
    ] = "needle",
    length: Annotated[
        Any, typer.Option(parser=token_count, metavar="TOKENS", help="Tokens of a prompt, as in `--length 2k`.")
    ] = 1024,
    samples: Annotated[int, typer.Option(help="Prompts a recipe; 80 give an accuracy to within 0.1.")] = 16,
    window: Annotated[
        Any,
        typer.Option(
            parser=token_count,
            metavar="TOKENS",
            help="Window of every recipe that slides (an adapter's own stays), as in `--window 256`. Default: an "
            "eighth of the length (with an adapter, its window) for the default recipes, otherwise each recipe's own.",
        ),
    ] = None,
    sinks: AllSinksOption = None,
    scoring: Annotated[
        str,
        typer.Option(
            metavar="forced|free",
            help="`forced`: greedy exact match after the start of the answer; `free`: the model writes its own answer.",
        ),
    ] = "forced",
    batch_size: Annotated[int, typer.Option(help="Prompts a pass; more than 1 pays on a GPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the prompts.")] = 0,
    output_folder: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="The results go into a fresh folder below this one.",
            rich_help_panel=PLACE,
        ),
    ] = Path("results"),
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Run recipes side by side on one model and the same prompts.

    Prints accuracy, answer NLL, perplexity, prefill time and KV bytes of each, with the ratio to full attention, and
    the prefill's arithmetic as a fraction of full attention's. Writes the table (CSV), the rest (JSON) and plots.

    **Examples**

    - `swaa compare` (about two minutes on two cores)
    - `swaa compare --length 2k --window 256 --samples 80`
    - `swaa compare --adapter adapters/first --length 2k`
    - `swaa compare -m Qwen/Qwen3-4B-Instruct-2507 -r paper-instruct,mine.yaml --length 32k --batch-size 4`
    """
    from swaa.adapters import add_adapter, read_adapter
    from swaa.adapting import layer_words
    from swaa.cli.loading import load
    from swaa.compare import Settings, check_names, choose_recipes, steps
    from swaa.compare import compare as run
    from swaa.models import quiet_transformers
    from swaa.results import fresh_folder

    settings = Settings(task, length, samples, seed, scoring, batch_size)
    given = None if recipes is None else names(recipes)
    trained = [read_adapter(path) for path in adapter or []]
    if trained:
        model = _base(trained, model)
        if given is None and window is None:
            window = trained[0].config.window
    chosen = choose_recipes(given, length=length, window=window, sinks=sinks, model=model)
    own = [row for one in trained for row in one.recipes()]
    # A recipe that is there already needs no second row.
    own = [(recipe, key) for recipe, key in own if key or all(recipe.config != x.config for x in chosen)]
    chosen += [recipe for recipe, _ in own]
    check_names(chosen)
    for recipe in chosen:
        if recipe.config.window is not None and recipe.config.window >= length:
            warn(f"{recipe.name}: a window of {recipe.config.window} covers all {length} tokens, nothing slides")
        if recipe.chain_of_thought != "none":
            warn(f"{recipe.name}: chain of thought plays no part here, answers are short")
    # Before the work, which a wrong --output must not cost.
    with fresh_folder(output_folder, f"compare-{Path(model).name}") as folder:
        loaded, tokenizer = load(model, dtype=dtype, device=device)
        with quiet_transformers():
            for one in trained:
                loaded = add_adapter(loaded, one.path, one.key)
        warn_of_length(loaded.config, length)
        for recipe in chosen:
            recipe.check_model(loaded.config)
            if recipe.config.window and "sliding" not in layer_words(loaded.config.get_text_config(), recipe.config):
                warn(f"{recipe.name}: every layer that could slide keeps full attention, nothing slides")
        with quiet_transformers(), _progress() as progress:
            bars = {
                recipe.name: progress.add_task(recipe.name, total=steps(settings), start=False, right="")
                for recipe in chosen
            }

            finished = dict.fromkeys(bars, 0)
            line = None if notes().is_terminal else minute_lines(time.monotonic)

            def update(name: str, done: int, correct: int) -> None:
                finished[name] = done
                if line:
                    line(name, sum(finished.values()), steps(settings) * len(finished))
                progress.start_task(bars[name])
                right = f"{correct} of {min(done, samples)} right"
                progress.update(bars[name], completed=done, right=right)

            keys = {recipe.name: key for recipe, key in own if key is not None}
            outcome = run(loaded, tokenizer, chosen, settings, adapters=keys, name=model, progress=update)
        output().print(_table(outcome))
        for one in trained:
            output().print(f"{one.name}: {one.training}", soft_wrap=True)
        _warn_of_overflow(outcome.rows)
        with plots_if_possible():
            outcome.save(folder)
    notes().print(f"{outcome.seconds:.0f} s; table, predictions and plots in {folder}")


def _warn_of_overflow(rows: list[dict[str, Any]]) -> None:
    measures = {"nll": "the answer NLL", "perplexity": "the perplexity"}
    lost = {text: [row["recipe"] for row in rows if row[key] is None] for key, text in measures.items()}
    if parts := [f"{text} of {', '.join(recipes)}" for text, recipes in lost.items() if recipes]:
        warn(f"left out because it is no finite number: {'; '.join(parts)}; try another --dtype")


def _base(adapters: "list[Adapter]", model: str) -> str:
    """Return the model that the adapters belong to, or the one that was named instead."""
    if model != DEFAULT_MODEL:
        return model
    if len(bases := sorted({adapter.base for adapter in adapters})) > 1:
        raise ValueError(f"--adapter: the adapters belong to {len(bases)} models: {', '.join(bases)}")
    return bases[0]


def _progress() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[right]}"),
        TimeElapsedColumn(),
    )
    console = notes()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _table(outcome: "Comparison") -> "Table":
    from rich import box
    from rich.table import Table

    settings = outcome.settings
    title = (
        f"{outcome.model}: {settings.task}, {settings.length} tokens, {settings.samples} samples, {settings.scoring}"
    )
    table = Table(title=f"{title} (in brackets: ratio to full attention)", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("recipe", no_wrap=True)
    for heading in ("accuracy", "95 %", "answer NLL", "perplexity", "prefill", "arithmetic", "KV held", "computed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in outcome.rows:
        low, high = row["accuracy_low"], row["accuracy_high"]
        computed, share = row["kv_bytes_computed"], row["kv_bytes_computed_ratio"]
        table.add_row(
            row["recipe"],
            f"{row['accuracy']:.2f} ({_times(row['accuracy_ratio'])})",
            f"{low:.2f}-{high:.2f}",
            "-" if row["nll"] is None else f"{row['nll']:.3f} ({_times(row['nll_ratio'], 1)})",
            "-" if row["perplexity"] is None else f"{row['perplexity']:.2f} ({_times(row['perplexity_ratio'])})",
            f"{row['prefill_seconds'] * 1000:,.0f} ms ({row['prefill_seconds_ratio']:.2f}x)",
            _times(row["prefill_flops_ratio"]),
            f"{row['kv_bytes'] / 1e6:,.1f} MB ({row['kv_bytes_ratio']:.2f}x)",
            "unknown" if computed is None else f"{computed / 1e6:,.1f} MB ({_times(share)})",
        )
    return table


def _times(ratio: float | None, digits: int = 2) -> str:
    return "-" if ratio is None else f"{ratio:.{digits}f}x"
