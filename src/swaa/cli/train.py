"""`swaa train`: fine-tuning under a recipe's mask."""

import time
from pathlib import Path
from typing import Any

import typer

from swaa.cli import training
from swaa.cli.common import (
    BackendOption,
    DenseTailOption,
    DeviceOption,
    FaDecodeLayersOption,
    FaDecodeOption,
    FullLayersOption,
    ModelOption,
    RecipeOption,
    SinksOption,
    WindowOption,
    names,
    notes,
    resolve_recipe,
    warn,
)
from swaa.cli.unused import refuse_unused
from swaa.models import DEFAULT_MODEL


def train(
    context: typer.Context,
    data: training.DataOption,
    output: training.OutputOption,
    model: ModelOption = DEFAULT_MODEL,
    recipe: RecipeOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    full_layers: FullLayersOption = None,
    fa_decode: FaDecodeOption = None,
    fa_decode_layers: FaDecodeLayersOption = None,
    dense_tail: DenseTailOption = None,
    backend: BackendOption = None,
    max_length: training.MaxLengthOption = None,
    pack: training.PackOption = None,
    full: training.FullOption = False,
    rank: training.RankOption = None,
    alpha: training.AlphaOption = None,
    rslora: training.RsloraOption = False,
    targets: training.TargetsOption = None,
    loss: training.LossOption = "sft",
    kl_weight: training.KlWeightOption = 1.0,
    temperature: training.TemperatureOption = 1.0,
    learning_rate: training.LearningRateOption = 1e-4,
    epochs: training.EpochsOption = 1.0,
    max_steps: training.MaxStepsOption = None,
    warmup: training.WarmupOption = 0.05,
    batch_size: training.BatchSizeOption = 1,
    accumulate: training.AccumulateOption = 8,
    gradient_checkpointing: training.GradientCheckpointingOption = False,
    seed: training.SeedOption = 0,
    eval_data: training.EvalDataOption = None,
    needles: training.NeedlesOption = 0,
    needle_length: training.NeedleLengthOption = 1024,
    eval_steps: training.EvalStepsOption = None,
    save_steps: training.SaveStepsOption = None,
    log_steps: training.LogStepsOption = 10,
    report_to: training.ReportToOption = None,
    dtype: training.DtypeOption = "auto",
    device: DeviceOption = "auto",
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
    from swaa.cli.loading import load, load_config
    from swaa.config import SWAAConfig
    from swaa.models import loading_options, quiet_transformers
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
    asked = {"rank": rank, "alpha": alpha, "rslora": rslora or None, "targets": targets}
    lora: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if full:
        refuse_unused(context, "--full trains all weights, without LoRA: drop --full", *asked)
    if targets is not None:
        lora["targets"] = names(targets)
    if max_steps is not None:
        refuse_unused(context, "--max-steps sets the end: drop --max-steps", "epochs")
    if not needles:
        refuse_unused(context, "there are no needles: add some, as in --needles 20", "needle_length")
    if not (eval_data or needles):
        refuse_unused(context, "there is nothing to evaluate on: add --eval-data or --needles", "eval_steps")
    settings = TrainSettings(
        lora=None if full else Lora(**lora),
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
        report_to=names(report_to),
        seed=seed,
        cpu=place.type == "cpu",
    )
    settings.check_packages()
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
        loaded, tokenizer = load(model, dtype="float32" if full else options["dtype"], device=workers.loading)
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
        parts["note"] = notes().print
        steps = fine_tune(loaded, tokenizer, examples, output, settings, **parts)["steps"]
    if not workers.rank:
        notes().print(f"{steps} steps on {len(examples)} samples, {time.perf_counter() - begin:.0f} s: {output}")


def _show(step: int, metrics: dict[str, float]) -> None:
    named = [f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]
    notes().print(f"step {step}: {', '.join(named)}")
