"""The two rates that bound everything: dense matrix products and copies, measured in the same process."""

from dataclasses import dataclass

import torch

from swaa.bench.timing import Effort, measure, release

# Side of the square matrices, and bytes that a copy moves.
_SIZES = {"cuda": (8192, 4_000_000_000), "cpu": (1024, 256_000_000)}
_EFFORT = Effort(repeats=5, seconds=0.3, warmup=3)


@dataclass(frozen=True)
class Floors:
    """What this device reaches.

    Args:
        flops: floating-point operations a second of a dense matrix product in the dtype of the run.
        bandwidth: bytes a second of a copy, read and written ones counted.
        size: side of the matrices.
        copied: bytes that a copy moved.
    """

    flops: float
    bandwidth: float
    size: int
    copied: int


def measure_floors(device: torch.device, dtype: torch.dtype) -> Floors:
    """Measure both rates, in about a second. Run it before a model fills the memory."""
    size, copied = _SIZES["cuda" if device.type == "cuda" else "cpu"]
    floors = Floors(_product(size, device, dtype), _copy(copied, device), size, copied)
    release()
    return floors


def _product(size: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(a)
    return 2 * size**3 / measure(lambda: torch.mm(a, b, out=product), device, _EFFORT).median


def _copy(copied: int, device: torch.device) -> float:
    source = torch.zeros(copied // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return copied / measure(lambda: target.copy_(source), device, _EFFORT).median
