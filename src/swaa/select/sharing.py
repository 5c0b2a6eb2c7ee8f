"""Work shared between passes: layers below the first one that differs compute the same, so they return what they did.

Sets of full layers are scored in an order in which neighbours share as many of their lowest layers as possible
(`shared_order`). Toggling each of n layers in turn then costs half of n passes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from swaa.attaching import parts
from swaa.compiling import compiled_forward, decoder_layers
from swaa.config import LayerRule
from swaa.cost import reusing_layers

Rules = Sequence[LayerRule | None]


class SharedLayers:
    """Layers that remember the outputs of the last pass.

    Attributes:
        start: the next pass computes the layers from this one on; those below return what they returned last.
    """

    def __init__(self, layers: nn.ModuleList):
        self.start = 0
        self.layers = layers
        self._outputs: list[Any] = [None] * len(layers)
        self._rules: tuple[LayerRule | None, ...] = ()

    def begin(self, rules: Rules) -> None:
        """Prepare a pass over the same input as the one before it, under these rules."""
        self.start = common_start(self._rules, rules)
        self._rules = tuple(rules)

    def forget(self) -> None:
        """Another input comes next (or the last pass broke off)."""
        self._rules, self._outputs = (), [None] * len(self.layers)

    def compute(self, index: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """Be layer `index` in a pass."""
        if index >= self.start:
            self._outputs[index] = forward(*args, **kwargs)
        return self._outputs[index]


@contextmanager
def shared_layers(model: nn.Module, *, compiled: bool = False) -> Iterator[SharedLayers]:
    """Let a model's layers share work inside the block; afterwards they are as before.

    Memory: one output a layer, `[batch, rows, hidden_size]`.

    Args:
        model: adapted or not.
        compiled: compile what the layers do beside attention (`swaa.compiling.cut_at_attention` after each `adapt`).

    Raises:
        AdaptError: the layers cannot be found, or the model cannot be adapted.
    """
    decoder = parts(model)[1]
    layers = decoder_layers(decoder)
    shared = SharedLayers(layers)
    # A layer that reads keys of an earlier one would miss them: those layers always compute.
    hands_down = any(reusing_layers(decoder.config))
    own = [vars(layer).get("forward") for layer in layers]
    compute = compiled_forward if compiled else (lambda forward: forward)
    if not hands_down:
        for index, layer in enumerate(layers):
            vars(layer)["forward"] = _forward(shared, index, compute(layer.forward))
    try:
        yield shared
    finally:
        for layer, forward in zip(layers, own, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward


def common_start(one: Rules, other: Rules) -> int:
    """Return the first layer whose rules differ; the last layer if none does (something has to run)."""
    same = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        same += 1
    return min(same, len(other) - 1) if one else 0


def shared_order(plans: Sequence[Rules]) -> list[int]:
    """Return an order of the plans in which the layers that neighbours share are as many as possible.

    That is the order of a depth-first walk through the tree of their common beginnings.
    """
    return sorted(range(len(plans)), key=lambda index: [repr(rule) for rule in plans[index]])


def _forward(shared: SharedLayers, index: int, forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        return shared.compute(index, forward, *args, **kwargs)

    return run
