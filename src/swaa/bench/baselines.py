"""What an adapted prefill is compared with: the model as it was, and the same model with attention left out."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.nn.attention import sdpa_kernel
from transformers import PreTrainedModel

from swaa.attention import BACKENDS
from swaa.attention.causal import kernel_order

NO_ATTENTION = "no attention"
UNADAPTED = "unadapted"
BASELINES = {
    NO_ATTENTION: "the same adapted model, whose attention hands the values on: all that no attention can go below",
    UNADAPTED: "the model of transformers as it was, with the best kernel of SDPA for full attention",
}


@contextmanager
def attention_left_out() -> Iterator[str]:
    """Register the backend that computes nothing; yields its name for `SWAAConfig.backend`."""
    with BACKENDS.holding(NO_ATTENTION, _no_attention):
        yield NO_ATTENTION


@contextmanager
def best_full_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let SDPA take the kernel that full layers of an adapted model have; on a CPU, PyTorch's choice is the best."""
    with sdpa_kernel(kernel_order(model.dtype), set_priority=True) if model.device.type == "cuda" else nullcontext():
        yield


def _no_attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
    """Return each row's own value for every query head; see `swaa.attention.Backend`."""
    groups, rows = query.shape[1] // value.shape[1], query.shape[2]
    own = value[:, :, -rows:].transpose(1, 2)
    return own[:, :, :, None].expand(-1, -1, -1, groups, -1).flatten(2, 3), None
