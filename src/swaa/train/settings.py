"""What a fine-tuning is, beside the model, the recipe and the data."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swaa.errors import first_line, require
from swaa.train.lora import Lora
from swaa.train.loss import Objective

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Packages of the Trainer's integrations, where they are not called as these are.
_PACKAGES = {"azure_ml": "azureml-sdk", "comet_ml": "comet-ml", "flyte": "flytekit"}


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a fine-tuning. The defaults are those of arXiv 2512.10411.

    Args:
        lora: the adapters; None: all weights are trained.
        objective: the loss of a trained token; with "kl" the original weights are the teacher, so they must stay.
        learning_rate: of AdamW; after the warm-up it falls to 0 along a line.
        epochs: times that the data is seen.
        max_steps: optimizer steps instead of `epochs`; None: epochs count.
        warmup: share of the steps in which the learning rate grows.
        batch_size: rows a pass, on each device.
        accumulate: passes a step.
        pack: tokens of a row into which several samples are packed; None: a sample a row.
        gradient_checkpointing: compute the layers again in the backward pass, to save memory.
        bf16: compute in bfloat16 (weights that are trained stay float32).
        eval_steps: steps between evaluations; None: one before training and one after each epoch.
        save_steps: steps between checkpoints, all of which stay; None: one after each epoch, and in between one after
            each tenth of the run, which the next one replaces.
        log_steps: steps between lines of metrics.
        report_to: Trainer integrations that get the metrics ("tensorboard", "wandb", ..).
        seed: of adapters, order and dropout.
        cpu: compute on the CPU although there is a GPU.
        more: further arguments of `transformers.TrainingArguments`.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    lora: Lora | None = field(default_factory=Lora)
    objective: Objective = field(default_factory=Objective)
    learning_rate: float = 1e-4
    epochs: float = 1.0
    max_steps: int | None = None
    warmup: float = 0.05
    batch_size: int = 1
    accumulate: int = 8
    pack: int | None = None
    gradient_checkpointing: bool = False
    bf16: bool = False
    eval_steps: int | None = None
    save_steps: int | None = None
    log_steps: int = 10
    report_to: tuple[str, ...] = ()
    seed: int = 0
    cpu: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("max_steps", "batch_size", "accumulate", "pack", "eval_steps", "save_steps", "log_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: use 1 or more")
        for name in ("learning_rate", "epochs"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)}: use a number above 0")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is no share: use 0 or more and less than 1")
        if self.objective.kl and self.lora is None:
            raise ValueError(
                f"loss={self.objective.loss!r} needs LoRA: the original weights are the teacher, and training them all "
                "would overwrite it: leave --full out, or use --loss sft"
            )

    def check_packages(self) -> None:
        """Check before a model is loaded that everything is installed that the training needs.

        Raises:
            ModuleNotFoundError: the extra `train` or the package of an integration in `report_to` is not installed.
            ValueError: the Trainer knows no such integration, or it cannot work here.
        """
        require("fine-tuning", "train", "accelerate", "peft")
        if self.report_to in (("all",), ("none",)):
            return
        from transformers.integrations import get_reporting_integration_callbacks

        for name in self.report_to:
            try:
                [callback] = get_reporting_integration_callbacks([name])
            except ValueError as error:
                raise ValueError(f"report_to: {error}") from None
            try:
                # As the Trainer does: what is missing, only the integration itself knows.
                callback()
            except (RuntimeError, ImportError, ValueError) as error:
                if "install" not in str(error) and not isinstance(error, ImportError):
                    raise ValueError(f"report_to={name!r}: {first_line(error)}") from error
                package = _PACKAGES.get(name, name)
                raise ModuleNotFoundError(
                    f"--report-to {name} needs {package}: pip install {package}", name=package
                ) from error

    def arguments(self, folder: Path, *, evaluates: bool) -> "TrainingArguments":
        """Return the Trainer's arguments.

        Args:
            folder: for the checkpoints.
            evaluates: whether there is something to evaluate on.
        """
        from transformers import TrainingArguments

        # Newer versions of transformers warn of the older name.
        word = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
        evaluation = "no" if not evaluates else "steps" if self.eval_steps else "epoch"
        options: dict[str, Any] = {
            "output_dir": str(folder),
            "learning_rate": self.learning_rate,
            "num_train_epochs": self.epochs,
            "max_steps": self.max_steps or -1,
            "warmup_steps": self.warmup,
            "per_device_train_batch_size": self.batch_size,
            "per_device_eval_batch_size": self.batch_size,
            "gradient_accumulation_steps": self.accumulate,
            f"{word}_checkpointing": self.gradient_checkpointing,
            f"{word}_checkpointing_kwargs": {"use_reentrant": False},
            "bf16": self.bf16,
            "eval_strategy": evaluation,
            "eval_steps": self.eval_steps,
            "eval_on_start": evaluates,
            "save_strategy": "steps" if self.save_steps else "epoch",
            "save_steps": self.save_steps or 500,
            "logging_steps": self.log_steps,
            "report_to": list(self.report_to) or "none",
            "seed": self.seed,
            "use_cpu": self.cpu,
            # The model's forward does not name `dense_rows`: a hook takes it.
            "remove_unused_columns": False,
            "label_names": ["labels"],
            "disable_tqdm": True,
            # Every adapter takes part in every pass; of all weights, those of an expert may not.
            "ddp_find_unused_parameters": self.lora is None,
        }
        return TrainingArguments(**{**options, **self.more})
