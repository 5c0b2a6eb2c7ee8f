"""What both kinds of forgetting layers share: the error, the view of released keys, the check of a pass."""

from dataclasses import replace

from torch import Tensor

from swaa.geometry import Geometry

KEEP = "adapt with release_kv=False to keep everything"


class ReleasedError(ValueError):
    """Something asks for keys that were released; the message names the way out."""


def released_view(geometry: Geometry, released: int, sinks: int) -> Geometry:
    """Return the geometry of a pass whose keys are `sinks` slots and the columns from `released` on."""
    if not released:
        return geometry
    key = ("released", released, sinks)
    if key not in geometry.memo:
        geometry.memo[key] = replace(geometry, released=released, slots=sinks, memo={})
    return geometry.memo[key]


def check_announced(geometry: Geometry | None, seen: int, new: Tensor) -> None:
    """Raise `ReleasedError` unless the coming pass was announced: the cache is used by another model otherwise."""
    if geometry is None or geometry.past != seen or geometry.rows != new.shape[-2]:
        raise ReleasedError(
            "this cache belongs to an adapted model and has released tokens that others need: use a new cache with "
            f"other models, or {KEEP}"
        )


def select(tensor: Tensor, index: Tensor) -> Tensor:
    """Gather columns (dim 2) by an index `[batch or 1, columns]`."""
    index = index.to(tensor.device)[:, None, :, None].expand(tensor.shape[0], tensor.shape[1], -1, tensor.shape[3])
    return tensor.gather(2, index)
