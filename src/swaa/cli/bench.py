"""`swaa bench`: how fast, and how close to what the device can do."""

from pathlib import Path
from typing import Annotated, Any

import typer

from swaa.cli import benching
from swaa.cli.bench_train import train
from swaa.cli.common import names, positive_tokens, token_count

app = typer.Typer(no_args_is_help=True)
_RESULTS = Path("results")


@app.callback()
def bench() -> None:
    """Measure speed and memory, each beside its floor: what the device could do.

    Floors are measured in the same process: the rate of a dense matrix product and of a copy. Every run writes a
    table (CSV), everything with the environment (JSON) and plots. `docs/performance.md` explains the columns.

    Examples:

    - `swaa bench attention --config qwen3-4b --lengths 32k,128k`

    - `swaa bench prefill --config smollm2-135m --lengths 1k,2k --window 256 --no-compile`

    - `swaa bench decode -m Qwen/Qwen3-4B-Instruct-2507 --lengths 32k --batches 1,8`

    - `swaa bench train --config qwen3-4b --lengths 8k,32k --window 2k --sinks 128`
    """


@app.command()
def attention(
    model: benching.ModelOption = None,
    config: benching.ConfigOption = None,
    lengths: benching.LengthsOption = None,
    batches: benching.BatchesOption = "1",
    window: benching.WindowOption = 2048,
    sinks: benching.SinksOption = 128,
    dense_tail: Annotated[
        Any,
        typer.Option(parser=token_count, metavar="TOKENS", help="Last rows that see everything: `--dense-tail 32`."),
    ] = 0,
    implementations: Annotated[
        str | None,
        typer.Option(
            "--implementations",
            "-i",
            metavar="NAMES",
            help="Comma list, as in `-i triton,flex`. Ours: `sdpa`, `triton`, `flex`, `flex-on-triton` (without "
            "flash-attn-4). Peers: `flex-as-it-comes`, `flash-attn-4-window`, and with full attention "
            "`flash-attn-4-full`, `sdpa-cudnn-full`, `sdpa-flash-full`. Default: all.",
        ),
    ] = None,
    passes: Annotated[
        str, typer.Option(metavar="NAMES", help="Comma list of `forward` and `forward+backward`.")
    ] = "forward,forward+backward",
    device: benching.DeviceOption = "auto",
    dtype: benching.DtypeOption = "auto",
    repeats: benching.RepeatsOption = 3,
    seconds: benching.SecondsOption = 0.3,
    warmup: benching.WarmupOption = 1,
    output_folder: benching.OutputOption = _RESULTS,
    as_json: benching.JsonOption = False,
) -> None:
    """Time one layer's attention: our backends, and the peers that are installed.

    Examples:

    - `swaa bench attention --config qwen3-4b --lengths 4k,32k,128k`

    - `swaa bench attention -c qwen3-4b -n 128k -i triton,flex,flash-attn-4-full --passes forward`
    """
    from swaa.bench import attention as measured
    from swaa.bench.implementations import IMPLEMENTATIONS
    from swaa.bench.timing import Effort
    from swaa.config import LayerRule

    effort = Effort(repeats, seconds, warmup)
    found = benching.subject(model, config, device, dtype)
    settings = measured.Settings(
        found.device,
        found.dtype,
        measured.heads_of(found.config),
        LayerRule(window, sinks, dense_tail=dense_tail),
        lengths or found.default_lengths(),
        batches,
        tuple(IMPLEMENTATIONS) if implementations is None else names(implementations),
        names(passes),
    )
    benching.run(
        measured,
        found,
        settings,
        lambda floors, announce: measured.rows(settings, floors, effort, announce),
        base=output_folder,
        as_json=as_json,
        more={"effort": vars(effort)},
    )


@app.command()
def prefill(
    model: benching.ModelOption = None,
    config: benching.ConfigOption = None,
    recipes: benching.RecipesOption = None,
    lengths: benching.LengthsOption = None,
    batches: benching.BatchesOption = "1",
    window: benching.WindowOption = None,
    sinks: benching.SinksOption = None,
    backend: benching.BackendOption = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="With or without `swaa.compile_layers`. Default: both."),
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma list: `no attention` (the adapted model with attention left out), `unadapted` (full attention "
            "by transformers and SDPA's best kernel); `--baselines ''` for none.",
        ),
    ] = "no attention,unadapted",
    device: benching.DeviceOption = "auto",
    dtype: benching.DtypeOption = "auto",
    repeats: benching.RepeatsOption = 3,
    seconds: benching.SecondsOption = 0.3,
    warmup: benching.WarmupOption = 1,
    output_folder: benching.OutputOption = _RESULTS,
    as_json: benching.JsonOption = False,
) -> None:
    """Time the reading of a prompt by the whole model, each recipe beside the model without attention.

    Examples:

    - `swaa bench prefill --config qwen3-4b --lengths 32k,128k --sinks 128`

    - `swaa bench prefill -c smollm2-135m -n 1k,2k --window 256 --recipes sinks,full --no-compile`
    """
    from swaa.bench import prefill as measured
    from swaa.bench.baselines import BASELINES
    from swaa.bench.timing import Effort

    if unknown := [name for name in names(baselines) if name not in BASELINES]:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    effort = Effort(repeats, seconds, warmup)
    found = benching.subject(model, config, device, dtype)
    settings = measured.Settings(
        benching.chosen_recipes(found, recipes, window, sinks, backend),
        lengths or found.default_lengths(),
        batches,
        (False, True) if compiled is None else (compiled,),
        names(baselines),
    )
    benching.check_lengths(found, settings.lengths)
    benching.run(
        measured,
        found,
        settings,
        lambda floors, announce: measured.rows(found.load(), settings, floors, effort, announce),
        base=output_folder,
        as_json=as_json,
        more={"effort": vars(effort)},
    )


@app.command()
def decode(
    model: benching.ModelOption = None,
    config: benching.ConfigOption = None,
    recipes: benching.RecipesOption = None,
    lengths: benching.LengthsOption = None,
    batches: benching.BatchesOption = "1",
    window: benching.WindowOption = None,
    sinks: benching.SinksOption = None,
    backend: benching.BackendOption = None,
    new_tokens: Annotated[
        Any, typer.Option(parser=positive_tokens, metavar="TOKENS", help="Generated tokens, whose steps are timed.")
    ] = 64,
    caches: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Comma list: `static` (the recorded step), `dynamic` (plain generate)."),
    ] = "static,dynamic",
    prefill_chunk_size: Annotated[
        Any,
        typer.Option(parser=positive_tokens, metavar="TOKENS", help="Read the prompt in pieces, to need less memory."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="First compare the greedy tokens of both caches, in float32.")
    ] = False,
    device: benching.DeviceOption = "auto",
    dtype: benching.DtypeOption = "auto",
    output_folder: benching.OutputOption = _RESULTS,
    as_json: benching.JsonOption = False,
) -> None:
    """Time single tokens through `generate`, beside the time that reading weights and KV takes.

    Examples:

    - `swaa bench decode --config qwen3-4b --lengths 32k,128k --batches 1,8 --sinks 128`

    - `swaa bench decode -c smollm2-135m -n 1k --recipes sinks --caches dynamic`
    """
    from swaa.bench import decode as measured

    found = benching.subject(model, config, device, dtype)
    settings = measured.Settings(
        benching.chosen_recipes(found, recipes, window, sinks, backend),
        lengths or found.default_lengths(),
        batches,
        new_tokens,
        names(caches),
        prefill_chunk_size,
        check,
    )
    benching.check_lengths(found, [length + new_tokens for length in settings.lengths])
    benching.run(
        measured,
        found,
        settings,
        lambda floors, announce: measured.rows(found.load(), settings, floors, announce),
        base=output_folder,
        as_json=as_json,
    )


@app.command()
def memory(
    model: benching.ModelOption = None,
    config: benching.ConfigOption = None,
    recipes: benching.RecipesOption = None,
    lengths: benching.LengthsOption = None,
    batches: benching.BatchesOption = "1",
    window: benching.WindowOption = None,
    sinks: benching.SinksOption = None,
    backend: benching.BackendOption = None,
    device: benching.DeviceOption = "auto",
    dtype: benching.DtypeOption = "auto",
    output_folder: benching.OutputOption = _RESULTS,
    as_json: benching.JsonOption = False,
) -> None:
    """Measure the memory of a prefill and of what it leaves, and extrapolate the longest prompt that fits.

    Examples:

    - `swaa bench memory --config qwen3-4b --lengths 4k,32k,128k`

    - `swaa bench memory -c smollm2-135m -n 512,2k --recipes sinks,full --window 256`
    """
    from swaa.bench import memory as measured

    found = benching.subject(model, config, device, dtype)
    settings = measured.Settings(
        benching.chosen_recipes(found, recipes, window, sinks, backend), lengths or found.default_lengths(), batches
    )
    benching.check_lengths(found, settings.lengths)
    benching.run(
        measured,
        found,
        settings,
        lambda floors, announce: measured.rows(found.load(), settings, announce),
        base=output_folder,
        as_json=as_json,
    )


app.command()(train)
