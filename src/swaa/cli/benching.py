"""What the subcommands of `swaa bench` share: options, the model, and a run with its files, progress and table."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swaa.cli.common import names, notes, output, plots_if_possible, positive_tokens, token_count, warn_of_length
from swaa.models import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from swaa.bench.floors import Floors
    from swaa.bench.record import Record, Row


def lengths(text: Any) -> tuple[int, ...]:
    """Read a comma list of token counts, each once.

    Raises:
        ValueError: one is no number of tokens, 1 or more.
    """
    if not (found := tuple(dict.fromkeys(positive_tokens(part) for part in names(str(text))))):
        raise ValueError(f"{text!r} holds no number")
    return found


def _option(*flags: str, metavar: str, text: str, parser: Callable[[str], Any] | None = None) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, parser=parser)


ModelOption = Annotated[
    str | None,
    _option(
        "--model",
        "-m",
        metavar="NAME",
        text=f"A hub id, a local folder or a .gguf file. Without --model and --config: `{DEFAULT_MODEL}`.",
    ),
]
ConfigOption = Annotated[
    str | None,
    _option(
        "--config",
        "-c",
        metavar="NAME",
        text="Random weights of a known architecture, no download: `qwen3-4b` or `smollm2-135m`.",
    ),
]
RecipesOption = Annotated[
    str | None,
    _option(
        "--recipes",
        "-r",
        metavar="NAMES",
        text="Comma list of recipe names and files. Default: `sinks,sinks-odd,sinks-fa-decode,full`.",
    ),
]
LengthsOption = Annotated[
    Any,
    _option(
        "--lengths",
        "-n",
        metavar="TOKENS",
        parser=lengths,
        text="Comma list, as in `-n 4k,32k,128k`. Default: 4k,32k on a GPU, 512,1k on a CPU.",
    ),
]
BatchesOption = Annotated[
    Any, _option("--batches", metavar="NUMBERS", parser=lengths, text="Sequences at once, as in `--batches 1,8`.")
]
WindowOption = Annotated[
    Any,
    _option("--window", metavar="TOKENS", parser=positive_tokens, text="Window of all that slides: `--window 2k`."),
]
SinksOption = Annotated[
    Any, _option("--sinks", metavar="TOKENS", parser=token_count, text="Sinks of all that has some: `--sinks 128`.")
]
BackendOption = Annotated[
    str | None, _option("--backend", metavar="NAME", text="Attention of every recipe, as in `--backend triton`.")
]
DeviceOption = Annotated[str, _option("--device", metavar="NAME", text="`cpu`, `cuda`, ..; `auto`: CUDA if any.")]
DtypeOption = Annotated[
    str, _option("--dtype", metavar="NAME", text="`bfloat16`, `float32`, ..; `auto`: bfloat16 where it is fast.")
]
RepeatsOption = Annotated[int, typer.Option(help="Timed repeats of a row at least.")]
SecondsOption = Annotated[float, typer.Option(help="Short calls are repeated until so many seconds have passed.")]
WarmupOption = Annotated[int, typer.Option(help="Calls before the timed ones; compilation happens there.")]
OutputOption = Annotated[
    Path, _option("--output", "-o", metavar="DIR", text="The results go into a fresh folder below this one.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs instead of the table, as in `--json | jq .rows`.")
]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured, and where.

    Args:
        name: of the model or configuration.
        config: the model's configuration.
        random: its weights are random.
        device: where.
        dtype: of weights and inputs.
    """

    name: str
    config: Any
    random: bool
    device: "torch.device"
    dtype: "torch.dtype"

    def load(self) -> Any:
        """Load the weights, or draw them."""
        from swaa.bench.models import random_model
        from swaa.models import load_model, quiet_transformers

        with quiet_transformers():
            if self.random:
                return random_model(self.config, self.device, self.dtype)
            return load_model(self.name, dtype=self.dtype, device=str(self.device))[0]

    def default_lengths(self) -> tuple[int, ...]:
        """Return lengths that take seconds."""
        return (4096, 32768) if self.device.type == "cuda" else (512, 1024)


def subject(model: str | None, config: str | None, device: str, dtype: str) -> Subject:
    """Find out what the options mean.

    Raises:
        ValueError: both a model and a configuration are given, or one does not exist.
    """
    from swaa.bench.models import configuration
    from swaa.cli.loading import load_config
    from swaa.models import loading_options

    if model is not None and config is not None:
        raise ValueError("give --model (its weights) or --config (random weights), not both")
    place, options = loading_options(dtype, device)
    if config is not None:
        return Subject(config, configuration(config), True, place, options["dtype"])
    model = model or DEFAULT_MODEL
    return Subject(model, load_config(model), False, place, options["dtype"])


def check_lengths(subject: Subject, wanted: Sequence[int]) -> None:
    """Warn of lengths that the model was not trained on."""
    warn_of_length(subject.config, max(wanted))


def chosen_recipes(
    found: Subject, recipes: str | None, window: int | None, sinks: int | None, backend: str | None
) -> Any:
    """Load the recipes, and check that each fits the model before its weights are there."""
    from swaa.adapting import plan_layers
    from swaa.attention import select_backend
    from swaa.bench.models import choose_recipes
    from swaa.cost import head_dim

    chosen = choose_recipes(None if recipes is None else names(recipes), window=window, sinks=sinks, backend=backend)
    text = found.config.get_text_config()
    for recipe in chosen:
        plan_layers(text, recipe.config)
        select_backend(recipe.config.backend, found.device, found.dtype, head_dim(text))
    return tuple(chosen)


def run(
    measured: Any,
    subject: Subject,
    settings: Any,
    rows: Callable[["Floors", Callable[[str], None]], Iterable["Row"]],
    *,
    base: Path,
    as_json: bool,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Measure the floors and then row after row; files, progress, table.

    Args:
        measured: the module of the subcommand in `swaa.bench`, for `COLUMNS` and `figures`.
        subject: what is measured.
        settings: of the subcommand, with `count` rows.
        rows: yields them, given the floors and what is to be called with the name of each.
        base: folder in which a fresh one is made.
        as_json: print JSON instead of a table.
        more: further settings for the record.

    Raises:
        typer.Exit: with code 1: a row failed, for another reason than missing memory or packages.
    """
    from swaa.bench.floors import measure_floors
    from swaa.bench.record import Record
    from swaa.bench.timing import failed
    from swaa.results import new_folder

    floors = measure_floors(subject.device, subject.dtype)
    folder = new_folder(base, f"bench-{measured.__name__.rpartition('.')[2]}-{Path(subject.name).name}")
    title = f"{subject.name}, {str(subject.dtype).removeprefix('torch.')}"
    record = Record(folder, measured.COLUMNS, _plain(subject, settings) | dict(more), floors)
    title += f", {record.environment.get('gpu') if subject.device.type == 'cuda' else record.environment['cpu']}"
    try:
        _measure(record, settings.count, rows)
    finally:
        if record.rows:
            with plots_if_possible():
                record.plot(lambda rows: measured.figures(rows, title))
            if as_json:
                typer.echo(json.dumps(record.content(), indent=2))
            else:
                output().print(_table(record, title))
        notes().print(f"table, rows and plots in {folder}")
    if any(map(failed, record.rows)):
        raise typer.Exit(1)


def _measure(record: "Record", count: int, rows: Callable[["Floors", Callable[[str], None]], Iterable["Row"]]) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = notes()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=count)

        def announce(name: str) -> None:
            progress.update(task, description=name)

        for row in rows(record.floors, announce):
            added = record.add(row)
            progress.advance(task)
            cells = [f"{name} {cell(value)}" for name, value in added.items() if value is not None]
            # A long run shows what it has.
            console.print(f"[{len(record.rows)}/{count}] {', '.join(cells)}")


def _plain(subject: Subject, settings: Any) -> dict[str, Any]:
    """Return the settings, ready for JSON."""
    fields = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    if "recipes" in fields:
        fields["recipes"] = {recipe.name: recipe.to_dict() for recipe in fields["recipes"]}
    if "rule" in fields:
        fields["rule"] = dataclasses.asdict(fields["rule"])
    place = {"device": str(subject.device), "dtype": str(subject.dtype).removeprefix("torch.")}
    return {"model": subject.name, "random_weights": subject.random} | fields | place


def _table(record: "Record", title: str) -> "Table":
    from rich import box
    from rich.table import Table

    floors = record.floors
    rates = f"floors: {floors.flops / 1e12:.3g} TFLOP/s, {floors.bandwidth / 1e9:.4g} GB/s"
    table = Table(title=f"{title} ({rates})", box=box.SIMPLE_HEAD, title_justify="left")
    used = [name for name in record.columns if any(row[name] is not None for row in record.rows)]
    for name in used:
        numeric = all(isinstance(row[name], int | float | None) for row in record.rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "note")
    for row in record.rows:
        table.add_row(*("-" if row[name] is None else cell(row[name]) for name in used))
    return table


def cell(value: Any) -> str:
    """Write a value for a table: floats with three digits."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
