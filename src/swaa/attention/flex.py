"""PyTorch's FlexAttention under the SWAA mask, with the FlashAttention-4 kernels where `flash-attn-4` is installed.

The block lists come from `swaa.attention.tiles`, in linear time; the mask is evaluated only in blocks that are cut by
its edges. One function is compiled for all lengths.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from swaa.attention.causal import causal_attention, is_plain_causal
from swaa.attention.tiles import (
    NO_WINDOW,
    BlockLists,
    Ranks,
    block_lists,
    dense_columns,
    padded_ranks,
    tile_ranges,
)
from swaa.config import LayerRule
from swaa.geometry import Geometry

_BLOCK = 128
_FEW_LINES = 64
# Rows of a batch up to which one compiled function serves all.
_BATCH = 64
# Variants that one process may compile: dtypes, head sizes, batch of one or more, gradients, padding.
_VARIANTS = 64


def unavailable(device: torch.device, dtype: torch.dtype, head_dim: int, *, dropout: float = 0.0) -> str | None:
    """Return why FlexAttention cannot run compiled, None if it can. Without compilation it would be quadratic."""
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it computes in bfloat16, float16 or float32, not {dtype}"
    if head_dim < 16:
        return f"head_dim {head_dim} is below 16"
    if dropout:
        return "it has no attention dropout"
    return None


def flash_unavailable(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Return why the FlashAttention-4 kernels cannot be used, None if they can."""
    if not _has_flash():
        return "flash-attn-4 is not installed (pip install --pre flash-attn-4)"
    if torch.cuda.get_device_capability(device)[0] < 9:
        return "flash-attn-4 needs compute capability 9.0 (Hopper) or newer"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"flash-attn-4 computes in bfloat16 and float16, not {dtype}"
    if head_dim not in (64, 128):
        return f"flash-attn-4 takes block lists at head_dim 64 and 128, not {head_dim}"
    return None


@lru_cache
def _has_flash() -> bool:
    try:
        return find_spec("flash_attn.cute") is not None
    except ModuleNotFoundError:
        return False


def flex_attention_backend(
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
    """Attend through FlexAttention; see `swaa.attention.Backend`. Never returns weights.

    Raises:
        ValueError: FlexAttention cannot run here, or has been compiled for too many kinds of input; the message says
            what to do.
    """
    head_dim = query.shape[-1]
    if reason := unavailable(query.device, query.dtype, head_dim, dropout=dropout):
        raise ValueError(f"backend 'flex' cannot be used: {reason}; use 'auto' or 'sdpa'")
    if is_plain_causal(geometry, rule, softcap, s_aux):
        return causal_attention(query, key, value, scaling=scaling), None
    # Those kernels read no tensors of varying length, which the mask of padding needs.
    plain = geometry.positions is None and geometry.key_mask is None and softcap is None and s_aux is None
    flash = plain and query.shape[2] > 1 and flash_unavailable(query.device, query.dtype, head_dim) is None
    # The kernel for few rows, which PyTorch picks below 128, takes too many when all heads of a KV head join them.
    few = query.shape[2] * (query.shape[1] // key.shape[1]) <= _FEW_LINES
    output, lse = _call(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=_block_mask(geometry, rule, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_lse=s_aux is not None,
        kernel_options={"BACKEND": "FLASH" if flash else "AUTO" if few else "TRITON"},
    )
    if s_aux is not None:
        # A learned sink takes its share of the softmax and adds nothing.
        output = output * torch.sigmoid(lse - s_aux.float()[None, :, None])[..., None].to(output.dtype)
    return output.transpose(1, 2), None


@lru_cache
def _capped(softcap: float) -> Callable[..., Tensor]:
    """Make the cap on scores, a literal in code of its own: the kernels take no variable that lies on the CPU."""
    return eval(f"lambda score, b, h, q, k: {softcap!r} * tanh(score / {softcap!r})", {"tanh": torch.tanh})


def _call(query: Tensor, key: Tensor, value: Tensor, *, return_lse: bool, **options: Any) -> Any:
    try:
        # Past its limit of compiled variants, dynamo would run the dense path: quadratic memory, without a word.
        with (
            torch._dynamo.config.patch(recompile_limit=_VARIANTS, fail_on_recompile_limit_hit=True),
            warnings.catch_warnings(),
        ):
            # Inductor's own remarks on its kernels (float32 precision, say) are no news to a user of a backend.
            warnings.simplefilter("ignore")
            return _compiled()(query, key, value, return_lse, options)
    except (torch._dynamo.exc.FailOnRecompileLimitHit, _UncompiledError) as error:
        raise ValueError(
            f"backend 'flex' would run uncompiled, with quadratic memory (torch.compile is switched off, or this "
            f"process has compiled {_VARIANTS} kinds of input): use backend='triton' or 'sdpa', or call "
            "torch.compiler.reset()"
        ) from error


class _UncompiledError(Exception):
    pass


@lru_cache
def _compiled() -> Callable[..., Any]:
    # A static graph for each length would be compiled anew for each prompt.
    return torch.compile(_flex, dynamic=True)


def _flex(query: Tensor, key: Tensor, value: Tensor, return_lse: bool, options: Any) -> tuple[Tensor, Tensor | None]:
    if not torch.compiler.is_compiling():
        raise _UncompiledError
    if return_lse:
        output, extra = flex_attention(query, key, value, return_aux=AuxRequest(lse=True), **options)
        return output, extra.lse
    return flex_attention(query, key, value, **options), None


def _block_mask(geometry: Geometry, rule: LayerRule, device: torch.device) -> BlockMask:
    memo_key = ("flex", rule, device)
    if memo_key not in geometry.memo:
        geometry.memo[memo_key] = _build(geometry, rule, device)
    return geometry.memo[memo_key]


def _build(geometry: Geometry, rule: LayerRule, device: torch.device) -> BlockMask:
    if geometry.key_mask is not None:
        keys = geometry.key_mask.shape[-1]
        ranges = torch.tensor([[[0, 0, 0, 0, 0, keys]]], device="cpu")
        zero = torch.zeros(1, 1, dtype=torch.int32, device="cpu")
        ranks: Ranks | None = Ranks(zero, zero, zero + 1, torch.where(geometry.key_mask, 0, -1).int())
    else:
        keys = geometry.keys
        ranks = padded_ranks(geometry, rule)
        ranges = tile_ranges(geometry, rule, ranks, _BLOCK)
    if ranks is not None:
        mask_mod = _padded_mask(geometry.batch, ranks, rule, device)
    elif rule.window is not None and _all_slide(geometry, rule):
        mask_mod = _prompt_mask(rule.window, rule.sinks)
    else:
        mask_mod = _plain_mask(geometry, rule, device)
    lists = block_lists(ranges, _BLOCK, full_sinks=geometry.positions is None and geometry.key_mask is None)
    shape = len(ranges), ranges.shape[1], -(-keys // _BLOCK)
    partial_rows, full_rows = (_matrix(lists, lists.full == full, shape, device) for full in (False, True))
    turned = BlockLists(lists.batch, lists.block, lists.tile, lists.full)
    turned_shape = shape[0], shape[2], shape[1]
    partial_columns, full_columns = (
        _matrix(turned, lists.full == full, turned_shape, device) for full in (False, True)
    )
    return BlockMask(
        (geometry.rows, keys),
        *partial_rows,
        *full_rows,
        *partial_columns,
        *full_columns,
        BLOCK_SIZE=(_BLOCK, _BLOCK),
        mask_mod=mask_mod,
    )


def _matrix(
    lists: BlockLists, chosen: Tensor, shape: tuple[int, int, int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return counts `[batch, 1, tiles]` and indices `[batch, 1, tiles, blocks]` of the chosen pairs, int32."""
    batch, tiles, blocks = shape
    owner = (lists.batch * tiles + lists.tile)[chosen]
    order = owner.argsort(stable=True)
    owner, block = owner[order], lists.block[chosen][order]
    counts = torch.bincount(owner, minlength=batch * tiles)
    place = torch.arange(len(owner), device="cpu") - (counts.cumsum(0) - counts)[owner]
    # FlexAttention wants the full width, which only matters beyond a million tokens.
    # It is made where it is used: over a long prompt most of it is empty, and only the pairs need to travel.
    indices = torch.zeros(batch * tiles, blocks, dtype=torch.int32, device=device)
    owner, place, block = torch.stack([owner, place, block]).to(device, non_blocking=True)
    indices[owner, place] = block.int()
    return (
        counts.int().reshape(batch, 1, tiles).to(device, non_blocking=True),
        indices.reshape(batch, 1, tiles, blocks),
    )


def _all_slide(geometry: Geometry, rule: LayerRule) -> bool:
    """Tell whether a pass is a prompt, or the first part of one, without dense rows."""
    start, stop = dense_columns(geometry, rule)
    return geometry.past == 0 and geometry.released == 0 and start >= min(stop, geometry.columns)


@lru_cache
def _prompt_mask(window: int, sinks: int) -> Callable[..., Tensor]:
    """Make the mask of a prompt whose rows all slide: the fastest, since nothing has to be read.

    The numbers are literals of code of its own. In a closure they become variables, which the FlashAttention-4 kernels
    do not take, and as defaults they are compiled in but, in torch 2.11, not looked at again.
    """
    return eval(f"lambda b, h, q, k: (k <= q) & ((q - k < {window:d}) | (k < {sinks:d}))")


def _plain_mask(geometry: Geometry, rule: LayerRule, device: torch.device) -> Callable[..., Tensor]:
    """Make the mask of any pass where rank is column.

    Numbers lie in tensors, read by the row of the batch: in the closure, each would be compiled in anew for each
    prompt, and the FlashAttention-4 kernels take no constant index.
    """
    window = NO_WINDOW if rule.window is None else rule.window
    numbers = geometry.past, geometry.slots, geometry.released, *dense_columns(geometry, rule), window, rule.sinks
    # Nor do they take a captured tensor of unknown size: a fixed one serves all usual batches.
    width = max(_BATCH, 1 << (geometry.batch - 1).bit_length())
    limits = torch.tensor(numbers, dtype=torch.int32, device="cpu")[:, None].repeat(1, width).to(device).unbind(0)
    for tensor in limits:
        torch._dynamo.mark_static(tensor)
    past, slots, released, dense_start, dense_stop, windows, sinks = limits

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row = q + past[b]
        column = torch.where(k < slots[b], k, k - slots[b] + released[b])
        dense = (row >= dense_start[b]) & (row < dense_stop[b])
        return (column <= row) & ((row - column < windows[b]) | (column < sinks[b]) | dense)

    return mask


def _padded_mask(batch: int, ranks: Ranks, rule: LayerRule, device: torch.device) -> Callable[..., Tensor]:
    """Make the mask of a pass with padding or segments (`swaa.attention.tiles.visible_ranks`), read by row and key."""
    window = NO_WINDOW if rule.window is None else rule.window
    low = torch.where(ranks.dense > 0, ranks.start, torch.maximum(ranks.query - window + 1, ranks.start))
    limits = ranks.query, ranks.start, ranks.start + rule.sinks, low, ranks.key
    query, start, sinks, low, key = (x.expand(batch, -1).contiguous().to(device) for x in limits)

    def mask(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        rank = key[b, k]
        near = (rank >= low[b, q]) | ((rank >= start[b, q]) & (rank < sinks[b, q]))
        return (rank <= query[b, q]) & near

    return mask
