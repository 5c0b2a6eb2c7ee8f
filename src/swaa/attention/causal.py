"""Plain causal attention on layers that stay full: PyTorch's own kernels are the fastest there, in linear memory."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from swaa.config import LayerRule
from swaa.geometry import Geometry

# On Hopper cuDNN is 1.7 times as fast as FlashAttention-2; where it does not apply, the next one is taken.
_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def kernel_order(dtype: torch.dtype) -> list[SDPBackend]:
    """Return PyTorch's kernels for a dtype, the fastest first."""
    return _ORDER if dtype in (torch.bfloat16, torch.float16) else _ORDER[2:]


def is_plain_causal(geometry: Geometry, rule: LayerRule, softcap: float | None, s_aux: Tensor | None) -> bool:
    """Tell whether all rows of a pass see exactly their past, on a full layer without anything special."""
    whole = geometry.past == 0 and geometry.rows > 1 and geometry.positions is None and geometry.key_mask is None
    return whole and rule.window is None and softcap is None and s_aux is None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, scaling: float) -> Tensor:
    """Attend causally over the whole pass; arguments and output as in `swaa.attention.Backend`."""
    with sdpa_kernel(kernel_order(query.dtype), set_priority=True):
        output = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    return output.transpose(1, 2)
