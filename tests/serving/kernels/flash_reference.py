"""What vLLM's FlashAttention backend calls, in PyTorch: paged attention with windows, and its log-sum-exp."""

import torch


def flash_attn_varlen_func(
    *,
    q,
    k,
    v,
    cu_seqlens_q,
    seqused_k,
    softmax_scale,
    causal,
    window_size,
    block_table,
    out=None,
    return_softmax_lse=False,
    softcap=0.0,
    **unused,
):
    """As FlashAttention: `q` is `[rows, heads, dim]`, `k` and `v` are `[blocks, block, kv_heads, dim]`.

    The mask is aligned to the last row and the last key. A row that sees nothing is undefined.
    """
    assert softcap == 0.0
    result = torch.full_like(q, float("nan"))
    lse = torch.full((q.shape[1], q.shape[0]), float("nan"))
    left = -1 if window_size is None else window_size[0]
    for index, count in enumerate(seqused_k.tolist()):
        low, high = int(cu_seqlens_q[index]), int(cu_seqlens_q[index + 1])
        if low == high or count == 0:
            continue
        blocks = block_table[index, : -(-count // k.shape[1])].long()
        keys, values = (x[blocks].flatten(0, 1)[:count].transpose(0, 1) for x in (k, v))
        groups = q.shape[1] // keys.shape[0]
        keys, values = (x.repeat_interleave(groups, dim=0) for x in (keys, values))
        position = torch.arange(count - (high - low), count)[:, None]
        key = torch.arange(count)
        seen = torch.ones(high - low, count, dtype=torch.bool)
        if causal:
            seen &= key <= position
        if left >= 0:
            seen &= key >= position - left
        scores = (q[low:high].transpose(0, 1) @ keys.transpose(1, 2) * softmax_scale).masked_fill(~seen, float("-inf"))
        lse[:, low:high] = scores.logsumexp(-1)
        result[low:high] = ((scores - lse[:, low:high, None]).exp() @ values).transpose(0, 1)
    if out is not None:
        out.copy_(result)
        result = out
    return (result, lse) if return_softmax_lse else result


def merge_attn_states(output, one, one_lse, other, other_lse, output_lse=None):
    """As vLLM's: put two partial results together by their log-sum-exp."""
    lse = torch.logaddexp(one_lse, other_lse)
    parts = [x * (w - lse).exp().T[..., None] for x, w in ((one, one_lse), (other, other_lse))]
    output.copy_(parts[0] + parts[1])
    if output_lse is not None:
        output_lse.copy_(lse)


def reshape_and_cache_flash(key, value, key_cache, value_cache, slots, *unused):
    """Store keys and values at their slots."""
    real = slots >= 0
    block, offset = slots[real] // key_cache.shape[1], slots[real] % key_cache.shape[1]
    key_cache[block, offset] = key[: len(slots)][real]
    value_cache[block, offset] = value[: len(slots)][real]


def install(patch):
    """Put these in the place of FlashAttention; `patch` is pytest's monkeypatch."""
    from vllm.v1.attention.backends import fa_utils, flash_attn

    patch.setattr(fa_utils, "flash_attn_varlen_func", flash_attn_varlen_func, raising=False)
    for name in ("flash_attn_varlen_func", "_FA4_DENSE_ATTENTION_KERNEL"):
        patch.setattr(flash_attn, name, flash_attn_varlen_func, raising=False)
    patch.setattr(flash_attn, "reshape_and_cache_flash", reshape_and_cache_flash, raising=False)
    patch.setattr(flash_attn, "get_flash_attn_version", lambda *_, **__: 2)
    patch.setattr(flash_attn, "flash_attn_supports_quant_query_input", lambda: False, raising=False)
    from swaa.vllm import flash

    patch.setattr(flash, "flash_attn_varlen_func", flash_attn_varlen_func)
    patch.setattr(flash, "merge_attn_states", merge_attn_states)
