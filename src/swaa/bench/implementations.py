"""What `swaa bench attention` times: our backends, and the peers that are installed. One row of the registry each.

An implementation gets a case and returns a call without arguments that computes the output once. Peers are called as
their own documentation does, on inputs laid out as a model makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from swaa.attention import BACKENDS, flex, triton
from swaa.attention.tiles import NO_WINDOW
from swaa.config import LayerRule
from swaa.geometry import Geometry
from swaa.registry import Registry

# Variants that one process may compile: lengths, passes and batches.
_VARIANTS = 64


@dataclass(frozen=True, eq=False)
class Case:
    """One attention.

    Args:
        rule: what a sliding row sees.
        query: `[batch, heads, length, head_dim]`, a view of `[batch, length, heads, head_dim]`: so a model lays it out.
        key: `[batch, kv_heads, length, head_dim]`, likewise.
        value: as `key`.
        geometry: the pass: all prompt, no padding. The layers of a pass share what a backend works out for it.
    """

    rule: LayerRule
    query: Tensor
    key: Tensor
    value: Tensor
    geometry: Geometry = field(init=False)

    def __post_init__(self) -> None:
        """Describe the pass."""
        batch, _, length, _ = self.query.shape
        object.__setattr__(self, "geometry", Geometry(batch, 0, length, length))

    @property
    def gqa(self) -> bool:
        """Whether query heads share KV heads."""
        return self.query.shape[1] != self.key.shape[1]


Call = Callable[[], Tensor]
Reason = Callable[[torch.device, torch.dtype, int], str | None]


@dataclass(frozen=True)
class Implementation:
    """A way to compute attention.

    Args:
        peer: it is someone else's; that it fails on some shape is worth a note, and no mistake here.
        mask: "swaa", "window" (no sinks, no dense rows) or "full": what it computes.
        unavailable: why it cannot run on a device, dtype and head dim; None if it can.
        prepare: makes the call of a case.
    """

    peer: bool
    mask: str
    unavailable: Reason
    prepare: Callable[[Case], Call]

    def rule(self, rule: LayerRule) -> LayerRule:
        """Return what a row sees here."""
        return {"swaa": rule, "window": LayerRule(rule.window), "full": LayerRule()}[self.mask]


def _ours(name: str, case: Case) -> Call:
    return lambda: BACKENDS[name](
        case.query, case.key, case.value, geometry=case.geometry, rule=case.rule, scaling=case.query.shape[-1] ** -0.5
    )[0]


def _flex_on_triton(case: Case) -> Call:
    ours = _ours("flex", case)

    def call() -> Tensor:
        with patch.object(flex, "flash_unavailable", lambda *_: "left out for comparison"):
            return ours()

    return call


def _flex_on_triton_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if reason := flex.unavailable(device, dtype, head_dim):
        return reason
    if reason := flex.flash_unavailable(device, dtype, head_dim):
        return f"the row flex shows it: {reason}"
    return None


def _sdpa(kernel: SDPBackend, case: Case) -> Call:
    def call() -> Tensor:
        with sdpa_kernel(kernel):
            return scaled_dot_product_attention(case.query, case.key, case.value, is_causal=True, enable_gqa=case.gqa)

    return call


def _flash(case: Case, *, windowed: bool = False) -> Call:
    from flash_attn.cute import flash_attn_func

    query, key, value = (x.transpose(1, 2) for x in (case.query, case.key, case.value))
    options: dict[str, Any] = {"causal": True}
    if windowed and case.rule.window is not None:
        options["window_size"] = (case.rule.window - 1, 0)

    def call() -> Tensor:
        output = flash_attn_func(query, key, value, **options)
        return output[0] if isinstance(output, tuple) else output

    return call


def _flash_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    # It needs no block lists here, so it takes more head sizes than our backend gives it.
    return _cuda_only(device, dtype, head_dim) or flex.flash_unavailable(device, dtype, 128)


def _flex_as_it_comes(case: Case) -> Call:
    length, rule = case.query.shape[2], case.rule
    window, sinks = NO_WINDOW if rule.window is None else rule.window, rule.sinks
    first_dense = length - rule.dense_tail

    def sliding(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((q - k < window) | (k < sinks))

    def tailed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & ((q - k < window) | (k < sinks) | (q >= first_dense))

    # Without a tail nothing in the mask changes with the length, and one compilation may serve several.
    mask = tailed if rule.dense_tail else sliding
    # Compiled: otherwise the mask of n x n would be written out.
    blocks = create_block_mask(mask, None, None, length, length, device=case.query.device, _compile=True)

    def call() -> Tensor:
        # Past the limit, dynamo would run the dense path without a word.
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS, fail_on_recompile_limit_hit=True):
            return _compiled_flex()(case.query, case.key, case.value, block_mask=blocks, enable_gqa=case.gqa)

    return call


@lru_cache
def _compiled_flex() -> Callable[..., Tensor]:
    return torch.compile(flex_attention)


def _anywhere(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None


def _cuda_only(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    return None if device.type == "cuda" else f"it needs a CUDA device, not {device.type}"


def _compiled_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    missing = None if find_spec("triton") else "the package triton is not installed (pip install triton)"
    return _cuda_only(device, dtype, head_dim) or missing


IMPLEMENTATIONS: Registry[Implementation] = Registry(
    "implementation",
    {
        "sdpa": Implementation(False, "swaa", _anywhere, partial(_ours, "sdpa")),
        "triton": Implementation(False, "swaa", triton.unavailable, partial(_ours, "triton")),
        "flex": Implementation(False, "swaa", flex.unavailable, partial(_ours, "flex")),
        "flex-on-triton": Implementation(False, "swaa", _flex_on_triton_unavailable, _flex_on_triton),
        "flex-as-it-comes": Implementation(True, "swaa", _compiled_unavailable, _flex_as_it_comes),
        "flash-attn-4-window": Implementation(True, "window", _flash_unavailable, partial(_flash, windowed=True)),
        "flash-attn-4-full": Implementation(True, "full", _flash_unavailable, _flash),
        "sdpa-cudnn-full": Implementation(True, "full", _cuda_only, partial(_sdpa, SDPBackend.CUDNN_ATTENTION)),
        "sdpa-flash-full": Implementation(True, "full", _anywhere, partial(_sdpa, SDPBackend.FLASH_ATTENTION)),
    },
)
