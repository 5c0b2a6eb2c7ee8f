"""The reference project's way to train: two attention calls, split at the prompt's end, as backends to compare with.

github.com/yuyijiong/sliding-window-attention-adaptation calls FlashAttention with a window for the prompt's rows and
again without one for the answer's rows. It therefore takes one sample a row, without padding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from swaa.attention import BACKENDS, flex
from swaa.attention.auto import auto_attention
from swaa.config import LayerRule
from swaa.geometry import Geometry

# One part of the rows over all keys up to its end: query, key, value, geometry, rule, scaling.
Part = Callable[[Tensor, Tensor, Tensor, Geometry, LayerRule, float], Tensor]


@contextmanager
def two_calls(name: str, part: Part) -> Iterator[str]:
    """Register the backend that attends to prompt and answer by themselves; yields its name.

    It takes batches whose prompts end in one column, without padding.
    """

    def attend(
        query: Tensor, key: Tensor, value: Tensor, *, geometry: Geometry, rule: LayerRule, **options: Any
    ) -> Any:
        if geometry.positions is not None:
            raise ValueError("two calls need prompts that end in one column, without padding")
        rows, split = geometry.rows, min(geometry.prompt_end, geometry.rows)
        outputs = []
        for start, stop, own in ((0, split, replace(rule, fa_decode=False)), (split, rows, LayerRule())):
            if start == stop:
                continue
            # The layers share what is worked out for a part.
            key_of_part = ("two calls", start, stop)
            described = geometry.memo.setdefault(key_of_part, Geometry(geometry.batch, start, stop - start, split))
            columns = (query[:, :, start:stop], key[:, :, :stop], value[:, :, :stop])
            outputs.append(part(*columns, described, own, options["scaling"]))
        return torch.cat(outputs, dim=1), None

    with BACKENDS.holding(name, attend):
        yield name


def by_our_kernels(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, rule: LayerRule, scaling: float) -> Tensor:
    """Attend with the fastest of our backends; sinks and all."""
    return auto_attention(q, k, v, geometry=geometry, rule=rule, scaling=scaling)[0]


def by_flash(q: Tensor, k: Tensor, v: Tensor, geometry: Geometry, rule: LayerRule, scaling: float) -> Tensor:
    """Attend with FlashAttention-4 as it comes, which knows no sinks and no dense tail."""
    from flash_attn.cute import flash_attn_func

    options: dict[str, Any] = {"causal": True, "softmax_scale": scaling}
    if rule.window is not None:
        options["window_size"] = (rule.window - 1, 0)
    output = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), **options)
    return output[0] if isinstance(output, tuple) else output


def flash_unavailable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why `by_flash` cannot run, None if it can."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    return flex.flash_unavailable(device, dtype, 128)
