"""`swaa inspect`: what a recipe does to a model, from its configuration alone."""

import copy
import json
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

import typer

from swaa.cli.common import (
    BackendOption,
    DenseTailOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    FullLayersOption,
    ModelOption,
    RecipeOption,
    SinksOption,
    WindowOption,
    output,
    resolve_recipe,
    short_form,
    token_count,
)
from swaa.config import LayerRule, SWAAConfig
from swaa.cost import active_parameters, kv_bytes, layer_kinds, native_window, prefill_flops
from swaa.models import DEFAULT_MODEL, ModelError
from swaa.recipes import Recipe

_UNITS = ("", "k", "M", "G", "T", "P", "E")


def inspect(
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            parser=token_count,
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
    from swaa.cli.loading import load_config

    config = load_config(model)
    chosen = resolve_recipe(
        recipe,
        stored=getattr(config, "swaa", None),
        window=window,
        sinks=sinks,
        full_layers=full_layers,
        fa_decode=fa_decode,
        fa_decode_layers=fa_decode_layers,
        dense_tail=dense_tail,
        backend=backend,
    )
    report = _report(model, config, chosen, length)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report, every)


def _report(name: str, config: Any, recipe: Recipe, length: int | None) -> dict[str, Any]:
    import torch

    from swaa.adapting import plan_layers
    from swaa.attention import select_backend

    text = config.get_text_config()
    rules, full_rules = plan_layers(text, recipe.config), plan_layers(text, SWAAConfig())
    length = getattr(text, "max_position_embeddings", None) if length is None else length
    if not length:
        raise ModelError(f"{name!r} does not say how long its sequences may be: give --length, 1 or more")
    parameters, active = _check(config, recipe.config)
    backend, reason = "native", "the model's own: there is nothing to adapt"
    if recipe.config != SWAAConfig():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backend, reason = select_backend(recipe.config.backend, device)
    release = getattr(recipe.config, "release_kv", False)
    kv = _saving(
        kv_bytes(config, rules, length, release_kv=release), kv_bytes(config, full_rules, length, release_kv=False)
    )
    linear, attention = prefill_flops(config, rules, length, active)
    full_attention = prefill_flops(config, full_rules, length, active)[1]
    known = attention is not None and full_attention is not None
    flops = {
        "attention": _saving(attention, full_attention),
        "total": _saving(linear + attention, linear + full_attention) if known else _saving(None, None),
    }
    return {
        "model": name,
        "family": text.model_type,
        "parameters": parameters,
        "active_parameters": active,
        "positions": getattr(text, "max_position_embeddings", None),
        "recipe": {"name": recipe.name, "summary": short_form(recipe.config), "config": recipe.config.to_dict()},
        "backend": {"name": backend, "reason": reason},
        "layers": [
            {"layer": layer} | _row(rule, native_window(kind, own), kind, release)
            for layer, (rule, (kind, own)) in enumerate(zip(rules, layer_kinds(config), strict=True))
        ],
        "length": length,
        "kv_bytes": kv,
        "prefill_flops": flops,
        "verdict": _verdict(rules, length, kv["ratio"], flops["attention"]["ratio"]),
    }


def _check(config: Any, adaptation: SWAAConfig) -> tuple[int, int]:
    """Put the adaptation on a model without weights, and return the parameters: all, and those a token meets."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    from swaa.adapting import adapt

    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config)
        )
    if adaptation != SWAAConfig():
        adapt(model, adaptation)
    return sum(parameter.numel() for parameter in model.parameters()), active_parameters(model)


def _saving(recipe: float | None, full: float | None) -> dict[str, float | None]:
    return {"recipe": recipe, "full": full, "ratio": recipe / full if recipe is not None and full else None}


def _row(rule: LayerRule | None, window: int | None, kind: str, release: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"attention": "full", "window": None, "sinks": 0, "fa_decode": False, "dense_tail": 0}
    if rule is None:
        return row | {"attention": f"native ({kind})", "window": window, "kv": "released" if window else "native"}
    if rule.window is None:
        return row | {"kv": "kept"}
    return {"attention": "sliding", **vars(rule), "kv": "released" if release and not rule.fa_decode else "kept"}


def _verdict(rules: Sequence[LayerRule | None], length: int, kv: float | None, attention: float | None) -> str:
    sliding = [rule for rule in rules if rule is not None and rule.window is not None]
    free = sum(not rule.fa_decode for rule in sliding)
    if not sliding:
        return "Full attention on every layer that could slide: nothing is saved."
    if attention == 1:
        return f"Nothing is saved at {length} tokens: every row sees its whole past anyway. Try a longer --length."
    if kv is None:
        return "Saves prefill time; what this family keeps in memory is not known here."
    if kv < 1:
        return f"Saves prefill time and memory: {free} of {len(rules)} layers forget what no later row can see."
    if free == 0:
        return "Saves prefill time, not memory: with FA decode, generated tokens see everything, so all KV is kept."
    return f"Saves prefill time, not memory: layers without FA decode ({free}) could release KV, but keep it."


def _print(report: dict[str, Any], every: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output()
    recipe, backend, length = report["recipe"], report["backend"], report["length"]
    size = f"{report['family']}, {len(report['layers'])} layers, {_quantity(report['parameters'])} parameters"
    if report["active_parameters"] != report["parameters"]:
        size += f" ({_quantity(report['active_parameters'])} active)"
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
            row["attention"],
            *(str(row[x] or "-") for x in ("window", "sinks")),
            decode,
            str(row["dense_tail"] or "-"),
        )
        rows.setdefault((*cells, row["kv"], str(row["layer"]) if every else ""), []).append(row["layer"])
    for (*cells, _), numbers in rows.items():
        layers.add_row(_ranges(numbers), *cells)
    console.print(layers, "")

    costs = Table(f"at {length:,} tokens", box=None, pad_edge=False, header_style="bold")
    for column in ("full attention", "this recipe", "ratio"):
        costs.add_column(column, justify="right")
    flops = report["prefill_flops"]
    for label, saving, unit in (
        ("KV cache, 16 bits", report["kv_bytes"], "B"),
        ("prefill attention", flops["attention"], "FLOP"),
        ("prefill in total", flops["total"], "FLOP"),
    ):
        ratio = "unknown" if saving["ratio"] is None else f"{saving['ratio']:.0%}"
        costs.add_row(label, *(_quantity(saving[key], unit) for key in ("full", "recipe")), ratio)
    console.print(costs, "")
    console.print(report["verdict"])


def _ranges(numbers: list[int]) -> str:
    steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)}
    if len(numbers) > 3 and len(steps) == 1 and steps != {1}:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _quantity(value: float | None, unit: str = "") -> str:
    if value is None:
        return "unknown"
    power = 0
    while value >= 1000 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}{unit}".rstrip()
