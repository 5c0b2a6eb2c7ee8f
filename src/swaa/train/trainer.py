"""The Trainer of transformers on an adapted model: its evaluation, and the adaptation beside every checkpoint."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from swaa.adapting import adaptation
from swaa.evaluate import score_answers
from swaa.storage import ADAPTATION_FILE
from swaa.tasks import Sample
from swaa.train.collator import NO_LABEL, Collator
from swaa.train.data import Example

Show = Callable[[int, dict[str, float]], None]


class SwaaTrainer(Trainer):
    """Trains an adapted model under its mask: prompt rows slide, answers are dense where it has FA decode.

    `evaluate` measures the mean negative log likelihood of the answers' tokens (`eval_nll`, nats) and the accuracy on
    needles (`eval_needle_accuracy`).

    Args:
        model: an adapted model, PEFT-wrapped or not.
        args: the Trainer's arguments.
        rows: each a list of examples: one, or several that are packed.
        tokenizer: of the model.
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
        eval_examples: Sequence[Example] = (),
        needles: Sequence[Sample] = (),
        show: Show | None = None,
    ):
        state = adaptation(model)
        if state is None:
            raise ValueError("the model carries no adaptation to train under: call swaa.adapt first")
        self.needles = needles
        self.tokenizer = tokenizer
        super().__init__(
            model,
            args,
            data_collator=Collator(state.has_phases, tokenizer.pad_token_id or 0),
            train_dataset=list(rows),
            eval_dataset=[[example] for example in eval_examples],
            callbacks=[_Callback(show)],
        )
        self.remove_callback(PrinterCallback)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Measure the model as it is now; see the class. Arguments other than the prefix are ignored."""
        metrics: dict[str, float] = {}
        model: Any = self.model
        with _evaluating(model), self.accelerator.autocast():
            if self.eval_dataset:
                metrics["nll"] = self._nll(model)
            if self.needles:
                answers = list(score_answers(model, self.tokenizer, self.needles))
                metrics["needle_accuracy"] = sum(answer.correct for answer in answers) / len(answers)
                metrics["needle_nll"] = math.fsum(answer.nll for answer in answers) / len(answers)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def _nll(self, model: Any) -> float:
        sums: list[Tensor] = []
        for batch in self.get_eval_dataloader():
            batch = self._prepare_inputs(batch)
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1]
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=NO_LABEL, reduction="none"
            )
            of_row = torch.stack([losses.view(labels.shape).sum(-1), (labels != NO_LABEL).sum(-1)], dim=-1)
            # What several processes measured, without the rows that fill the last batch up.
            sums.append(self.accelerator.gather_for_metrics(of_row))
        loss, count = torch.cat(sums).double().sum(0).tolist()
        return loss / count


class _Callback(TrainerCallback):
    """Writes the adaptation beside the adapter of every checkpoint, and hands the metrics on."""

    def __init__(self, show: Show | None):
        self.show = show

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Complete a checkpoint, so that `swaa.load` and `swaa merge` take it."""
        adapted = adaptation(model)
        if adapted is not None and hasattr(model, "get_base_model") and state.is_world_process_zero:
            adapted.config.save(Path(args.output_dir) / f"checkpoint-{state.global_step}" / ADAPTATION_FILE)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Hand the metrics on."""
        if self.show is not None and state.is_world_process_zero and logs:
            self.show(state.global_step, dict(logs))


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
