"""From examples to the tensors of a training step: which rows are dense, which tokens are trained, who sees whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from swaa.train.data import Example
from swaa.train.loss import NO_LABEL


@dataclass(frozen=True)
class Collator:
    """Makes a batch of rows of examples. An example alone in its row is padded; several are packed.

    In a packed batch `position_ids` restart with every example, so that an adapted model keeps them apart and counts
    sinks and window from each one's start; what is left of a row is one more segment, of padding.

    Args:
        phases: whether the adaptation tells generated rows from prompt rows (`Adaptation.has_phases`); an adaptation
            that does not refuses `dense_rows`.
        pad_id: token id of the padding; any will do.
    """

    phases: bool
    pad_id: int = 0

    def __call__(self, rows: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        """Make a batch.

        Returns:
            `input_ids`, `labels` (trained tokens, -100 elsewhere), and as needed `dense_rows` (bool: rows of generated
            tokens), `attention_mask` (padding) or `position_ids` (packed rows), all `[batch, tokens]`. Where all
            prompts of a batch end in one column, `prompt_length` `[batch]` instead of `dense_rows`: such a pass has the
            fastest kernels.
        """
        longest = max(sum(len(example.ids) for example in row) for row in rows)
        packed = any(len(row) > 1 for row in rows)
        columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "dense_rows": [], "position_ids": []}
        padding: list[list[int]] = []
        for row in rows:
            missing = longest - sum(len(example.ids) for example in row)
            ids = [token for example in row for token in example.ids]
            flags = [flag for example in row for flag in example.answer]
            labels = [token if flag else NO_LABEL for token, flag in zip(ids, flags, strict=True)]
            columns["input_ids"].append(ids + [self.pad_id] * missing)
            columns["labels"].append(labels + [NO_LABEL] * missing)
            columns["dense_rows"].append([flag for example in row for flag in generated(example)] + [0] * missing)
            lengths = [*(len(example.ids) for example in row), missing]
            columns["position_ids"].append([position for length in lengths for position in range(length)])
            padding.append([1] * len(ids) + [0] * missing)
        batch = {name: torch.tensor(values) for name, values in columns.items()}
        batch["dense_rows"] = batch["dense_rows"].bool()
        mask = torch.tensor(padding)
        padded = not bool(mask.all())
        ends = {None if packed or padded else _prompt_length(row[0]) for row in rows}
        if self.phases and len(ends) == 1 and None not in ends:
            batch["prompt_length"] = torch.tensor([*ends] * len(rows))
        if not self.phases or "prompt_length" in batch:
            del batch["dense_rows"]
        if not packed:
            del batch["position_ids"]
            # A batch without padding takes a faster path without a mask.
            if padded:
                batch["attention_mask"] = mask
        return batch


def _prompt_length(example: Example) -> int | None:
    """Return where an example's only answer begins (prose has none), None if there are several."""
    if example.prose:
        return len(example.ids)
    first = example.answer.index(True)
    return first if all(example.answer[first:]) else None


def generated(example: Example) -> list[bool]:
    """Return which rows of an example are those of generated tokens at inference.

    These are the answers' tokens but for the last of each: what ends an answer is never fed to the model in its turn,
    so its row begins the next prompt. (In the last turn nothing depends on it.) Plain text has none.
    """
    if example.prose:
        return [False] * len(example.ids)
    return [*(flag and following for flag, following in pairwise(example.answer)), False]
