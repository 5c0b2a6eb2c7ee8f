"""The Trainer of transformers on an adapted model: its evaluation, and the adaptation beside every checkpoint."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from swaa.adapters import ADAPTATION_FILE
from swaa.attaching import adaptation
from swaa.evaluate import score_answers
from swaa.tasks import Sample
from swaa.train.collator import Collator
from swaa.train.data import Example
from swaa.train.loss import NO_LABEL, Objective, evaluating, install

# Lies in every checkpoint that is whole: the Trainer itself would go on from the half of one, or fail at it.
COMPLETE = "complete"
# Stands in the mark of a checkpoint that is there for a kill only: the next one replaces it.
_PASSING = "until the next one"
# Of these, in a run.
_PASSING_CHECKPOINTS = 10
Show = Callable[[int, dict[str, float]], None]


class SwaaTrainer(Trainer):
    """Trains an adapted model under its mask: prompt rows slide, answers are dense where it has FA decode.

    The loss is the objective's sum over the trained tokens of a step, divided by their number, however they fall into
    passes and processes. `evaluate` measures the mean negative log likelihood of the trained tokens of held-out data
    (`eval_nll`, nats), their mean divergence from the original model where it is a part of the loss (`eval_kl`), and
    the accuracy on needles (`eval_needle_accuracy`).

    Args:
        model: an adapted model, PEFT-wrapped or not.
        args: the Trainer's arguments.
        rows: each a list of examples: one, or several that are packed.
        tokenizer: of the model.
        objective: what is minimised.
        eval_examples: held-out data.
        needles: retrieval samples.
        show: called with the step and the metrics, whenever there are some.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        rows: Sequence[Sequence[Example]],
        tokenizer: Any,
        *,
        objective: Objective | None = None,
        eval_examples: Sequence[Example] = (),
        needles: Sequence[Sample] = (),
        show: Show | None = None,
    ):
        state = adaptation(model)
        if state is None:
            raise ValueError("the model carries no adaptation to train under: call swaa.adapt first")
        self.needles = needles
        self.tokenizer = tokenizer
        self.objective: Objective = objective or Objective()
        self._sums: Tensor | None = None
        install(model)
        super().__init__(
            model,
            args,
            data_collator=Collator(state.has_phases, tokenizer.pad_token_id or 0),
            train_dataset=list(rows),
            eval_dataset=[[example] for example in eval_examples],
            callbacks=[_Callback(show)],
        )
        self.remove_callback(PrinterCallback)
        # The number of trained tokens of a step is wanted for every family.
        self.model_accepts_loss_kwargs = True

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Measure the model as it is now; see the class. Arguments other than the prefix are ignored."""
        metrics: dict[str, float] = {}
        model: Any = self.model
        with evaluating(model), self.accelerator.autocast():
            if self.eval_dataset:
                metrics |= self._losses(model)
            if self.needles:
                answers = list(score_answers(model, self.tokenizer, self.needles))
                metrics["needle_accuracy"] = sum(answer.correct for answer in answers) / len(answers)
                metrics["needle_nll"] = math.fsum(answer.nll for answer in answers) / len(answers)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Any:
        """Return the loss of a pass, its share of the mean over the trained tokens of the whole step."""
        losses = model(**inputs, objective=self.objective)
        with torch.no_grad():
            sums = torch.stack([losses["nll"].new_tensor(len(losses["nll"])), *(x.sum() for x in losses.values())])
            self._sums = sums if self._sums is None else self._sums + sums
        count = len(losses["nll"]) if num_items_in_batch is None else num_items_in_batch
        loss = self.objective.total(losses) / count
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The count is that of all processes, whose gradients are then averaged.
            loss = loss * self.accelerator.num_processes
        return (loss, losses) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the parts of the loss, mean nats a token since the last line."""
        if "loss" in logs and self._sums is not None:
            count, *sums = self.accelerator.reduce(self._sums.double(), "sum").tolist()
            self._sums = None
            if len(sums) > 1:
                logs |= {name: value / count for name, value in zip(("nll", "kl"), sums, strict=True)}
        super().log(logs, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # The Trainer asks after a step only whether that was the last one: going on from there, it would do another.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    @torch.no_grad()
    def _losses(self, model: Any) -> dict[str, float]:
        sums: list[Tensor] = []
        for batch in self.get_eval_dataloader():
            batch = self._prepare_inputs(batch)
            losses = model(**batch, objective=self.objective)
            row = (batch["labels"][:, 1:] != NO_LABEL).nonzero()[:, 0]
            values = torch.stack([torch.ones_like(losses["nll"]), *losses.values()], dim=-1).double()
            # What several processes measured, without the rows that fill the last batch up.
            of_row = values.new_zeros(len(batch["labels"]), values.shape[1]).index_add_(0, row, values)
            sums.append(self.accelerator.gather_for_metrics(of_row))
        count, *totals = torch.cat(sums).sum(0).tolist()
        return {name: total / count for name, total in zip(("nll", "kl"), totals, strict=False)}


class _Callback(TrainerCallback):
    """Writes the adaptation beside the adapter of every checkpoint, marks it as whole, and hands the metrics on.

    Where checkpoints are saved after each epoch, it adds some in between, one of which lies on the disk at a time: an
    epoch may be the whole run, and a kill would lose it.
    """

    def __init__(self, show: Show | None):
        self.show = show
        self._passing = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint after each tenth of the run, but for the ends of epochs, which get theirs anyway."""
        due = state.global_step % math.ceil(state.max_steps / _PASSING_CHECKPOINTS) == 0
        ends = state.global_step >= state.max_steps or float(state.epoch).is_integer()
        if args.save_strategy == "epoch" and due and not ends:
            self._passing = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Complete a checkpoint, so that `swaa.load` and `swaa merge` take it."""
        from accelerate import PartialState

        passing, self._passing = self._passing, False
        # Each process writes a part of it.
        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        adapted, folder = adaptation(model), Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if adapted is not None and hasattr(model, "get_base_model"):
            adapted.config.save(folder / ADAPTATION_FILE)
        (folder / COMPLETE).write_text(_PASSING if passing else "", encoding="utf-8")
        # Only now: until here the last one is what a killed run goes on from.
        for mark in Path(args.output_dir).glob(f"checkpoint-*/{COMPLETE}"):
            if mark.parent != folder and mark.read_text(encoding="utf-8") == _PASSING:
                shutil.rmtree(mark.parent)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hand the metrics on."""
        if self.show is not None and state.is_world_process_zero and logs:
            self.show(state.global_step, dict(logs))
