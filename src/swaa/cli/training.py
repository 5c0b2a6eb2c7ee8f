"""The options of `swaa train`, by the panels of its help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from swaa.cli.common import PLACE, positive_tokens

_DATA, _LORA, _STEPS, _WATCH = "Data", "Weights", "Steps", "Evaluation and metrics"

DataOption = Annotated[
    str,
    typer.Option(
        "--data",
        "-d",
        metavar="PATH",
        help="Rows with `prompt` and `answer`, `messages` (conversations) or `text` (all of it is trained): JSONL, "
        "JSON, parquet or a hub id, as in `-d answers.jsonl`.",
        rich_help_panel=_DATA,
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Folder for the result, as in `-o adapters/mine`; one that holds a part of the same run is continued.",
        rich_help_panel=PLACE,
    ),
]
MaxLengthOption = Annotated[
    Any,
    typer.Option(
        parser=positive_tokens,
        metavar="TOKENS",
        help="Leave longer samples out, as in `--max-length 32k`. Default: what the model was trained on.",
        rich_help_panel=_DATA,
    ),
]
PackOption = Annotated[
    Any,
    typer.Option(
        parser=positive_tokens,
        metavar="TOKENS",
        help="Pack samples into rows of so many tokens; they never see each other, as in `--pack 32k`.",
        rich_help_panel=_DATA,
    ),
]
FullOption = Annotated[
    bool,
    typer.Option(
        "--full", help="Train all weights, kept in float32, instead of LoRA: `--full`.", rich_help_panel=_LORA
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option(help="Of LoRA, as in `--rank 64`. Default: 16.", rich_help_panel=_LORA, metavar="NUMBER"),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(
        help="Of LoRA, as in `--alpha 32`. Default: an effective scale of 8.",
        rich_help_panel=_LORA,
        metavar="NUMBER",
    ),
]
RsloraOption = Annotated[
    bool,
    typer.Option("--rslora", help="Scale by alpha over the root of the rank: `--rslora`.", rich_help_panel=_LORA),
]
TargetsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Linear layers that get an adapter, as in `--targets q_proj,k_proj,v_proj,o_proj`; a wrong name lists "
        "them all. Default: q_proj,k_proj,v_proj.",
        rich_help_panel=_LORA,
    ),
]
LossOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Of a trained token: `sft` (its likelihood), `kl` (how far the model is from the original one under "
        "full attention), `sft+kl`, as in `--loss kl`.",
        rich_help_panel=_STEPS,
    ),
]
KlWeightOption = Annotated[
    float, typer.Option(help="Of the divergence in the loss, as in `--kl-weight 0.5`.", rich_help_panel=_STEPS)
]
TemperatureOption = Annotated[
    float,
    typer.Option(help="That flattens both sides of the divergence: `--temperature 2`.", rich_help_panel=_STEPS),
]
LearningRateOption = Annotated[
    float, typer.Option("--learning-rate", "--lr", help="As in `--lr 2e-5`.", rich_help_panel=_STEPS)
]
EpochsOption = Annotated[
    float, typer.Option(help="Times that the data is seen, as in `--epochs 3`.", rich_help_panel=_STEPS)
]
MaxStepsOption = Annotated[
    int | None, typer.Option(help="Steps instead of epochs, as in `--max-steps 150`.", rich_help_panel=_STEPS)
]
WarmupOption = Annotated[
    float,
    typer.Option(help="Share of the steps with a growing rate, as in `--warmup 0.1`.", rich_help_panel=_STEPS),
]
BatchSizeOption = Annotated[
    int, typer.Option(help="Rows a pass and device, as in `--batch-size 4`.", rich_help_panel=_STEPS)
]
AccumulateOption = Annotated[int, typer.Option(help="Passes a step, as in `--accumulate 2`.", rich_help_panel=_STEPS)]
GradientCheckpointingOption = Annotated[
    bool,
    typer.Option(
        "--gradient-checkpointing",
        help="Compute the layers twice and keep one at a time: long samples fit, as in "
        "`--pack 32k --gradient-checkpointing`.",
        rich_help_panel=_STEPS,
    ),
]
SeedOption = Annotated[
    int, typer.Option(help="Of adapters, order and dropout, as in `--seed 1`.", rich_help_panel=_STEPS)
]
EvalDataOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Held-out data like `--data`, for the NLL of its answers, as in `--eval-data held-out.jsonl`.",
        rich_help_panel=_WATCH,
    ),
]
NeedlesOption = Annotated[
    int,
    typer.Option(min=0, help="Needles to look for at each evaluation, as in `--needles 20`.", rich_help_panel=_WATCH),
]
NeedleLengthOption = Annotated[
    Any,
    typer.Option(
        parser=positive_tokens,
        metavar="TOKENS",
        help="Tokens of their prompts, as in `--needle-length 4k`.",
        rich_help_panel=_WATCH,
    ),
]
EvalStepsOption = Annotated[
    int | None,
    typer.Option(
        help="Steps between evaluations on `--eval-data` and `--needles`, as in `--eval-steps 50`. Default: before "
        "training and after each epoch.",
        rich_help_panel=_WATCH,
    ),
]
SaveStepsOption = Annotated[
    int | None,
    typer.Option(
        help="Steps between checkpoints, all of which stay, as in `--save-steps 50`. Default: after each tenth of the "
        "run, until the next one is there, and after each epoch.",
        rich_help_panel=_WATCH,
    ),
]
LogStepsOption = Annotated[
    int, typer.Option(help="Steps between lines of metrics, as in `--log-steps 1`.", rich_help_panel=_WATCH)
]
ReportToOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Integrations of transformers' Trainer that get the metrics, as in `--report-to tensorboard,wandb`.",
        rich_help_panel=_WATCH,
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="To compute in: `bfloat16` or `float32`; `auto`: bfloat16 where it is fast.",
        rich_help_panel=PLACE,
    ),
]
