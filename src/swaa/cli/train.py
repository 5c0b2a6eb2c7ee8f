"""`swaa train`: fine-tuning under a recipe's mask."""

import time
from pathlib import Path
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
    comma_list,
    notes,
    positive_tokens,
    resolve_recipe,
    warn,
)
from swaa.models import DEFAULT_MODEL

_DATA, _LORA, _STEPS, _WATCH, _PLACE = "Data", "Weights", "Steps", "Evaluation and metrics", "Where"


def train(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Rows with `prompt` and `answer`, `messages` (conversations) or `text` (all of it is trained): JSONL, "
            "JSON, parquet or a hub id, as in `-d answers.jsonl`.",
            rich_help_panel=_DATA,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the result, as in `-o adapters/mine`; one that holds a part of the same run is continued.",
            rich_help_panel=_PLACE,
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    max_length: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Leave longer samples out, as in `--max-length 32k`. Default: what the model was trained on.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    pack: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Pack samples into rows of so many tokens; they never see each other, as in `--pack 32k`.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Train all weights, kept in float32, instead of LoRA: `--full`.", rich_help_panel=_LORA
        ),
    ] = False,
    rank: Annotated[int, typer.Option(help="Of LoRA, as in `--rank 64`.", rich_help_panel=_LORA)] = 16,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Of LoRA, as in `--alpha 32`. Default: an effective scale of 8.",
            rich_help_panel=_LORA,
            metavar="NUMBER",
        ),
    ] = None,
    rslora: Annotated[
        bool,
        typer.Option("--rslora", help="Scale by alpha over the root of the rank: `--rslora`.", rich_help_panel=_LORA),
    ] = False,
    targets: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Linear layers that get an adapter, as in `--targets q_proj,k_proj,v_proj,o_proj`; a wrong name lists "
            "them all.",
            rich_help_panel=_LORA,
        ),
    ] = "q_proj,k_proj,v_proj",
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Of a trained token: `sft` (its likelihood), `kl` (how far the model is from the original one under "
            "full attention), `sft+kl`, as in `--loss kl`.",
            rich_help_panel=_STEPS,
        ),
    ] = "sft",
    kl_weight: Annotated[
        float, typer.Option(help="Of the divergence in the loss, as in `--kl-weight 0.5`.", rich_help_panel=_STEPS)
    ] = 1.0,
    temperature: Annotated[
        float,
        typer.Option(help="That flattens both sides of the divergence: `--temperature 2`.", rich_help_panel=_STEPS),
    ] = 1.0,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="As in `--lr 2e-5`.", rich_help_panel=_STEPS)
    ] = 1e-4,
    epochs: Annotated[
        float, typer.Option(help="Times that the data is seen, as in `--epochs 3`.", rich_help_panel=_STEPS)
    ] = 1.0,
    max_steps: Annotated[
        int | None, typer.Option(help="Steps instead of epochs, as in `--max-steps 150`.", rich_help_panel=_STEPS)
    ] = None,
    warmup: Annotated[
        float,
        typer.Option(help="Share of the steps with a growing rate, as in `--warmup 0.1`.", rich_help_panel=_STEPS),
    ] = 0.05,
    batch_size: Annotated[
        int, typer.Option(help="Rows a pass and device, as in `--batch-size 4`.", rich_help_panel=_STEPS)
    ] = 1,
    accumulate: Annotated[int, typer.Option(help="Passes a step, as in `--accumulate 2`.", rich_help_panel=_STEPS)] = 8,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute the layers twice and keep one at a time: long samples fit, as in "
            "`--pack 32k --gradient-checkpointing`.",
            rich_help_panel=_STEPS,
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Of adapters, order and dropout, as in `--seed 1`.", rich_help_panel=_STEPS)
    ] = 0,
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Held-out data like `--data`, for the NLL of its answers, as in `--eval-data held-out.jsonl`.",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    needles: Annotated[
        int,
        typer.Option(
            min=0, help="Needles to look for at each evaluation, as in `--needles 20`.", rich_help_panel=_WATCH
        ),
    ] = 0,
    needle_length: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Tokens of their prompts, as in `--needle-length 4k`.",
            rich_help_panel=_WATCH,
        ),
    ] = 1024,
    eval_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps between evaluations, as in `--eval-steps 50`. Default: before training and after each epoch.",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    save_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints, as in `--save-steps 50`. Default: after each epoch.",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    log_steps: Annotated[
        int, typer.Option(help="Steps between lines of metrics, as in `--log-steps 1`.", rich_help_panel=_WATCH)
    ] = 10,
    report_to: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Integrations of transformers' Trainer that get the metrics, as in `--report-to tensorboard,wandb`.",
            rich_help_panel=_WATCH,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="To compute in: `bfloat16` or `float32`; `auto`: bfloat16 where it is fast.",
            rich_help_panel=_PLACE,
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="`cpu` or `cuda`; `auto`: CUDA if there is one.", rich_help_panel=_PLACE)
    ] = "auto",
) -> None:
    """Fine-tune a model under a recipe's mask: prompt rows slide, answers are dense where the recipe has FA decode.

    The loss is on the answers only (on all of plain text). With `--loss kl` the model learns from what it was itself:
    the same weights under full attention, without the adapter, are the teacher.
    The result is an adapter with its adaptation, which `swaa.load` reads and `swaa merge` folds into the weights.
    Repeat the command with the same `--output` and it goes on from its last checkpoint, to the same result.

    **Examples**

    - `swaa train -r sinks-fa-decode --window 256 -d answers.jsonl -o adapters/first --needles 20`
    - `swaa train -m Qwen/Qwen3-4B -r sinks-fa-decode -d me/answers --pack 32k --gradient-checkpointing -o adapters/q`
    - `swaa train -r plan.json -d chats.parquet --eval-data held-out.parquet --rank 64 --loss sft+kl -o adapters/chat`
    - `accelerate launch --num_processes 8 -m swaa.cli train -r sinks-fa-decode -d me/answers --full -o models/full`
    """
    import torch

    from swaa.adapters import adapter_base
    from swaa.adapting import adapt, plan_layers
    from swaa.cli.loading import load_config
    from swaa.config import SWAAConfig
    from swaa.models import load_model, loading_options, quiet_transformers
    from swaa.runs.parallel import joined
    from swaa.tasks import TASKS
    from swaa.train import Lora, Objective, TrainSettings, fine_tune, make_examples, read_data

    if model.endswith(".gguf"):
        raise ValueError("--model: a .gguf file holds rounded weights: fine-tune the original model")
    if adapter_base(Path(model).expanduser()) is not None:
        raise ValueError(f"--model {model} is an adapter: fold it into its model first, by `swaa merge {model} -o DIR`")
    place, options = loading_options(dtype, device)
    if options["dtype"] not in (torch.bfloat16, torch.float32):
        raise ValueError(f"--dtype {dtype}: training computes in bfloat16 or float32")
    settings = TrainSettings(
        lora=None if full else Lora(rank, alpha, rslora, comma_list(targets)),
        objective=Objective(loss, kl_weight, temperature),
        learning_rate=learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        warmup=warmup,
        batch_size=batch_size,
        accumulate=accumulate,
        pack=pack,
        gradient_checkpointing=gradient_checkpointing,
        bf16=options["dtype"] == torch.bfloat16,
        eval_steps=eval_steps,
        save_steps=save_steps,
        log_steps=log_steps,
        report_to=comma_list(report_to),
        seed=seed,
        cpu=place.type == "cpu",
    )
    config = load_config(model)
    chosen = resolve_recipe(
        recipe,
        model_config=config,
        window=window,
        sinks=sinks,
        full_layers=full_layers,
        fa_decode=fa_decode,
        fa_decode_layers=fa_decode_layers,
        dense_tail=dense_tail,
        backend=backend,
    )
    if chosen.config == SWAAConfig():
        warn("nothing slides under full attention: name a recipe by -r, or give --window")
    plan_layers(config.get_text_config(), chosen.config)
    rows, held_out = read_data(data), read_data(eval_data) if eval_data else []
    begin = time.perf_counter()
    with joined(device) as workers, quiet_transformers():
        # Weights that are trained need float32: a step of 1e-4 is lost in the rounding of bfloat16.
        loaded, tokenizer = load_model(model, dtype="float32" if full else options["dtype"], device=workers.loading)
        adapt(loaded, chosen.config)
        limit = max_length or getattr(config.get_text_config(), "max_position_embeddings", None)
        examples, left_out = make_examples(rows, tokenizer, max_length=limit)
        held = make_examples(held_out, tokenizer, max_length=limit)[0] if held_out else []
        if left_out and not workers.rank:
            warn(f"{left_out} of {len(rows)} samples are longer than {limit} tokens and are left out")
        # The other split: what is watched in training is no test of the result.
        request: dict[str, Any] = {"length": needle_length, "count": needles, "seed": seed, "split": "calibration"}
        samples = TASKS["needle"].samples(tokenizer, **request) if needles else []
        parts: dict[str, Any] = {"eval_examples": held, "needles": samples, "base": model, "show": _show}
        steps = fine_tune(loaded, tokenizer, examples, output, settings, **parts)["steps"]
    if not workers.rank:
        notes().print(f"{steps} steps on {len(examples)} samples, {time.perf_counter() - begin:.0f} s: {output}")


def _show(step: int, metrics: dict[str, float]) -> None:
    named = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
    notes().print(f"step {step}: {', '.join(named)}")
