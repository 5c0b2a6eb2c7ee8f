"""Our own Triton kernels: tiles over exactly the visible ranges, forward and backward, and keys split for few rows.

Linear time and memory, no compilation by prompt length: a kernel is built once for a head size and dtype. Works on the
CPU in Triton's interpreter (`TRITON_INTERPRET=1`), for tests.
"""

import math
import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from swaa.attention.causal import causal_attention, is_plain_causal
from swaa.attention.launch import Launch, early_start
from swaa.config import LayerRule
from swaa.geometry import Geometry

# Query rows times heads of a KV head up to which the keys are split over programs.
FEW_LINES = 64


def unavailable(device: torch.device, dtype: torch.dtype, head_dim: int, *, dropout: float = 0.0) -> str | None:
    """Return why the kernels cannot run, None if they can."""
    if find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"they need a CUDA device, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"they compute in bfloat16, float16 or float32, not {dtype}"
    if head_dim > 256:
        return f"head_dim {head_dim} is above 256"
    if dropout:
        return "they have no attention dropout"
    return None


def triton_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    geometry: Geometry,
    rule: LayerRule,
    scaling: float,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attend with our kernels; see `swaa.attention.Backend`. Never returns weights.

    Raises:
        ValueError: the kernels cannot run here; the message says why.
    """
    if reason := unavailable(query.device, query.dtype, max(query.shape[-1], value.shape[-1]), dropout=dropout):
        raise ValueError(f"backend 'triton' cannot be used: {reason}; use 'auto' or 'sdpa'")
    if is_plain_causal(geometry, rule, softcap, s_aux):
        return causal_attention(query, key, value, scaling=scaling), None
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    launch = Launch(geometry, rule, query.device, scaling, softcap or 0.0)
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (query, key, value, s_aux))
    if not needs_grad and query.shape[2] * (query.shape[1] // key.shape[1]) <= FEW_LINES:
        return _attend_few(query, key, value, launch, s_aux), None
    output: Any = _Attention.apply(query, key, value, s_aux, launch)
    return output, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, s_aux: Tensor | None, launch: Launch) -> Tensor:
        from swaa.attention.kernels.forward import forward

        batch, heads, rows, _ = query.shape
        output = query.new_empty(batch, rows, heads, value.shape[-1])
        lse = torch.empty(batch, heads, rows, dtype=torch.float32, device=query.device)
        blocks = _blocks("forward", query, value)
        ranges = launch.ranges(blocks["ROWS"])
        forward[(batch * heads, ranges.shape[1])](
            query, key, value, output, lse, ranges, *launch.row_arguments(), lse if s_aux is None else s_aux,
            *_strides(query, key, value), ranges.stride(0) if len(ranges) > 1 else 0,
            heads, heads // key.shape[1], rows, key.shape[2], *launch.numbers(),
            **_shapes(query, value, launch), **blocks, SINKS=_sink_block(launch.rule, blocks["KEYS"]),
            HAS_AUX=s_aux is not None,
        )  # fmt: skip
        ctx.save_for_backward(query, key, value, output, lse, s_aux)
        ctx.launch = launch
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        from swaa.attention.kernels.backward import key_gradient, output_products, query_gradient

        query, key, value, output, lse, s_aux = ctx.saved_tensors
        launch: Launch = ctx.launch
        grad = grads[0].contiguous()
        batch, heads, rows, _ = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        shapes = _shapes(query, value, launch)
        delta = torch.empty_like(lse)
        output_products[(-(-rows // 64), batch * heads)](
            output, grad, delta, rows, heads, VDIM=shapes["VDIM"], VPAD=shapes["VPAD"], ROWS=64
        )
        query_grad = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        key_grad, value_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (key, value))
        blocks = _blocks("query_gradient", query, value)
        ranges = launch.ranges(blocks["ROWS"])
        query_gradient[(batch * heads, ranges.shape[1])](
            query, key, value, grad, lse, delta, query_grad, ranges, *launch.row_arguments(),
            *_strides(query, key, value), ranges.stride(0) if len(ranges) > 1 else 0,
            heads, heads // kv_heads, rows, keys, *launch.numbers(),
            **shapes, **blocks, SINKS=_sink_block(launch.rule, blocks["KEYS"]),
        )  # fmt: skip
        blocks = _blocks("key_gradient", query, value)
        work = launch.items(blocks["ROWS"], blocks["KEYS"])
        parts, value_parts = (
            torch.empty(work.slots, kv_heads, blocks["KEYS"], x.shape[-1], dtype=torch.float32, device=x.device)
            for x in (key, value)
        )
        key_gradient[(len(work.items), kv_heads)](
            query, key, value, grad, lse, delta, key_grad, value_grad, parts, value_parts, work.items, work.tiles,
            *launch.row_arguments(), *_strides(query, key, value), heads, heads // kv_heads, rows, keys,
            *launch.numbers(), **shapes, **blocks,
        )  # fmt: skip
        for row, block, slot, count in work.split:
            place = slice(block * blocks["KEYS"], min((block + 1) * blocks["KEYS"], keys))
            for whole, pieces in ((key_grad, parts), (value_grad, value_parts)):
                added = pieces[slot : slot + count].sum(0)
                whole[row, :, place] = added[:, : place.stop - place.start].to(whole.dtype)
        aux_grad = None
        if s_aux is not None:
            weight = torch.exp2(s_aux.float()[None, :, None] * math.log2(math.e) - lse)
            aux_grad = -(weight * delta).sum((0, 2)).to(s_aux.dtype)
        return query_grad, key_grad, value_grad, aux_grad, None


def _attend_few(query: Tensor, key: Tensor, value: Tensor, launch: Launch, s_aux: Tensor | None) -> Tensor:
    from swaa.attention.kernels.decode import merge, split

    batch, heads, rows, _ = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    groups, value_dim = heads // kv_heads, value.shape[-1]
    blocks = _blocks("split", query, value)
    lines = max(16, 1 << (rows * groups - 1).bit_length())
    reach = keys
    if launch.geometry.key_mask is None and launch.rule.window is not None:
        start, stop = launch.geometry.dense_interval(launch.rule)
        if launch.geometry.positions is None and (stop <= launch.geometry.past or start >= launch.geometry.columns):
            reach = min(keys, launch.rule.window + launch.rule.sinks + rows)
    splits = max(1, min(-(-reach // blocks["KEYS"]), 4 * _processors(query.device) // (batch * kv_heads)))
    parts = torch.empty(batch * kv_heads, splits, lines, value_dim, dtype=torch.float32, device=query.device)
    top, norm = (torch.empty(parts.shape[:-1], dtype=torch.float32, device=query.device) for _ in range(2))
    output = query.new_empty(batch, rows, heads, value_dim)
    ranges = launch.ranges(FEW_LINES)
    shapes = _shapes(query, value, launch)
    split[(splits, batch * kv_heads)](
        query, key, value, parts, top, norm, ranges, *launch.row_arguments(),
        *_strides(query, key, value), ranges.stride(0) if len(ranges) > 1 else 0,
        kv_heads, groups, rows, keys, *launch.numbers(), **shapes, ROWS=lines, **blocks,
        **early_start(query.device),
    )  # fmt: skip
    merge[(batch * kv_heads, rows * groups)](
        parts, top, norm, output, top if s_aux is None else s_aux, kv_heads, groups, rows, splits, LINES=lines,
        VDIM=value_dim, VPAD=shapes["VPAD"], SPLITS=1 << (splits - 1).bit_length(), HAS_AUX=s_aux is not None,
        **early_start(query.device),
    )  # fmt: skip
    return output


def _shapes(query: Tensor, value: Tensor, launch: Launch) -> dict[str, Any]:
    dim, value_dim = query.shape[-1], value.shape[-1]
    return {
        "DIM": dim,
        "PAD": max(16, 1 << (dim - 1).bit_length()),
        "VDIM": value_dim,
        "VPAD": max(16, 1 << (value_dim - 1).bit_length()),
        "PLAIN": launch.geometry.key_mask is None and launch.geometry.positions is None,
        "SOFTCAP": launch.softcap > 0,
        # Triton's default for float32 is tf32, whose error is above 1e-4.
        "PRECISION": "ieee",
    }


def _blocks(kernel: str, query: Tensor, value: Tensor) -> dict[str, int]:
    """Return block sizes and launch options, measured on an H200 at head dim 128 (benchmarks/h200)."""
    wide = max(query.shape[-1], value.shape[-1])
    if query.dtype == torch.float32:
        wide *= 4
    size = 0 if wide <= 64 else 1 if wide <= 128 else 2 if wide <= 256 else 3
    if query.device.type == "cpu":
        size = 1  # the interpreter has no registers to run out of, and small blocks are slow there
    rows, keys, warps, stages = _BLOCKS[kernel][size]
    blocks = {"KEYS": keys, "num_warps": warps, "num_stages": stages}
    return blocks if kernel == "split" else blocks | {"ROWS": rows}


# Rows, keys, warps and pipeline stages by head dim: up to 64, 128, 256 and float32, whose products are unrolled.
_BLOCKS = {
    "forward": [(128, 128, 8, 3), (64, 64, 4, 3), (128, 64, 8, 2), (32, 16, 4, 1)],
    "query_gradient": [(128, 64, 8, 2), (64, 64, 4, 2), (64, 64, 8, 1), (16, 16, 4, 1)],
    "key_gradient": [(64, 128, 8, 2), (64, 64, 4, 2), (32, 64, 8, 1), (16, 16, 4, 1)],
    "split": [(0, 128, 4, 3), (0, 64, 4, 3), (0, 32, 4, 2), (0, 32, 4, 1)],
}


def _sink_block(rule: LayerRule, most: int) -> int:
    """Return the block size for sinks: ten sinks need no block of 128 keys."""
    return min(most, max(16, 1 << (max(rule.sinks, 1) - 1).bit_length()))


def _strides(query: Tensor, key: Tensor, value: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in (query, key, value) for stride in tensor.stride()[:3])


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
