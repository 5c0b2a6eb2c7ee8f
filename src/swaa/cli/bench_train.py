"""`swaa bench train`: a step of fine-tuning."""

from pathlib import Path
from typing import Annotated, Any

import typer

from swaa.cli import benching
from swaa.cli.common import names, positive_tokens


def train(
    model: benching.ModelOption = None,
    config: benching.ConfigOption = None,
    recipes: Annotated[
        str,
        typer.Option(
            "--recipes",
            "-r",
            metavar="NAMES",
            help="Comma list of recipe names and files; the first one with FA decode is the one of `two-calls`.",
        ),
    ] = "sinks-fa-decode,sinks-odd-fa-decode",
    lengths: benching.LengthsOption = None,
    batches: benching.BatchesOption = "1",
    window: benching.WindowOption = None,
    sinks: benching.SinksOption = None,
    backend: benching.BackendOption = None,
    answer: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens, metavar="TOKENS", help="Of a sample, its trained tokens, as in `--answer 1k`."
        ),
    ] = 512,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Compute the layers twice.")
    ] = True,
    baselines: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Comma list: `sdpa-flash-full` and `sdpa-cudnn-full` (the unadapted model), `two-calls` (the "
            "reference's way, prompt and answer by themselves), `two-calls-flash-attn-4` (without sinks). Default: "
            "all.",
        ),
    ] = None,
    device: benching.DeviceOption = "auto",
    dtype: benching.DtypeOption = "auto",
    repeats: benching.RepeatsOption = 3,
    seconds: benching.SecondsOption = 0.3,
    warmup: benching.WarmupOption = 1,
    output_folder: benching.OutputOption = Path("results"),
    as_json: benching.JsonOption = False,
) -> None:
    """Time a step of fine-tuning by LoRA (forward, backward, AdamW), beside full attention and the reference's way.

    Examples:

    - `swaa bench train --config qwen3-4b --lengths 8k,32k --window 2k --sinks 128`

    - `swaa bench train -c smollm2-135m -n 512,1k --window 128 --answer 64 --repeats 1`
    """
    from swaa.bench import train as measured
    from swaa.bench.timing import Effort

    effort = Effort(repeats, seconds, warmup)
    found = benching.subject(model, config, device, dtype)
    settings = measured.Settings(
        benching.chosen_recipes(found, recipes, window, sinks, backend),
        lengths or found.default_lengths(),
        batches,
        answer,
        gradient_checkpointing,
        tuple(measured.BASELINES) if baselines is None else names(baselines),
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
