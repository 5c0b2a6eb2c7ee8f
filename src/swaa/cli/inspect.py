"""`swaa inspect`: what a recipe does to a model, from its configuration alone."""

import json
from typing import Annotated, Any

import typer

from swaa.cli.common import (
    BackendOption,
    DenseTailOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    FullHeadsOption,
    FullLayersOption,
    ModelOption,
    RecipeOption,
    SinksOption,
    WindowOption,
    output,
    positive_tokens,
    resolve_recipe,
)
from swaa.cli.wording import billions, layer_ranges, quantity
from swaa.models import DEFAULT_MODEL


def inspect(
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    full_heads: FullHeadsOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            parser=positive_tokens,
            metavar="TOKENS",
            help="Tokens of a sequence to work the costs out for, as in `--length 32k`; the model's longest otherwise.",
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="One row a layer, instead of one a kind of layer: `swaa inspect --all`.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON for programs, as in `swaa inspect --json | jq .kv_bytes`.")
    ] = False,
) -> None:
    """Show a recipe on a model: layer map, KV memory, expected prefill saving. No weights are loaded.

    Examples:

    - `swaa inspect -r sinks-odd-fa-decode`

    - `swaa inspect -m Qwen/Qwen3-4B-Instruct-2507 -r paper-instruct --length 128k`

    - `swaa inspect --window 512 --sinks 64 --full-layers 7,15,17,18 --all`
    """
    from swaa.cli.inspection import inspection
    from swaa.cli.loading import load_config
    from swaa.models import quiet_transformers

    config = load_config(model)
    chosen = resolve_recipe(
        recipe,
        model_config=config,
        window=window,
        sinks=sinks,
        full_layers=full_layers,
        full_heads=full_heads,
        fa_decode=fa_decode,
        fa_decode_layers=fa_decode_layers,
        dense_tail=dense_tail,
        backend=backend,
    )
    with quiet_transformers():
        report = inspection(model, config, chosen, length)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report, every)


def _print(report: dict[str, Any], every: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output()
    recipe, backend, length = report["recipe"], report["backend"], report["length"]
    size = f"{report['family']}, {len(report['layers'])} layers, {billions(report['parameters'])} parameters"
    if report["active_parameters"] != report["parameters"]:
        size += f" ({billions(report['active_parameters'])} active)"
    head = Table.grid(padding=(0, 2))
    head.add_row("model", Text(report["model"], "bold"), size)
    head.add_row("recipe", Text(recipe["name"], "bold"), recipe["summary"])
    head.add_row("backend", Text(backend["name"], "bold"), backend["reason"])
    console.print(head, "")

    columns = ("layers", "attention", "window", "sinks", "FA decode", "dense tail", "KV")
    layers = Table(*columns, box=None, pad_edge=False, header_style="bold")
    rows: dict[tuple[str, ...], list[int]] = {}
    for row in report["layers"]:
        decode = "yes" if row["fa_decode"] else "-"
        cells = (
            row["attention"] + (f", KV heads {layer_ranges(heads)} full" if (heads := row["full_heads"]) else ""),
            *(str(row[x] or "-") for x in ("window", "sinks")),
            decode,
            str(row["dense_tail"] or "-"),
        )
        rows.setdefault((*cells, row["kv"], str(row["layer"]) if every else ""), []).append(row["layer"])
    for key, numbers in rows.items():
        layers.add_row(layer_ranges(numbers), *key[:-1])
    console.print(layers, "")

    costs = Table(f"at {length:,} tokens", box=None, pad_edge=False, header_style="bold")
    for column in ("full attention", "this recipe", "ratio"):
        costs.add_column(column, justify="right")
    flops = report["prefill_flops"]
    for label, saving, unit in (
        ("KV cache, 16 bits", report["kv_bytes"], "B"),
        ("measured on the cache", report["kv_bytes_held"], "B"),
        ("prefill attention", flops["attention"], "FLOP"),
        ("prefill in total", flops["total"], "FLOP"),
    ):
        ratio = "unknown" if saving["ratio"] is None else f"{saving['ratio']:.0%}"
        costs.add_row(label, *(quantity(saving[key], unit) for key in ("full", "recipe")), ratio)
    console.print(costs, "")
    console.print(report["verdict"])
