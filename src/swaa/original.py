"""The original model inside an adapted one: adapters off, without a copy of the weights."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Switch off the PEFT adapters that are on. Without any: does nothing.

    PEFT's own switch makes the active adapters trainable when it puts them on again: here they are what they were.
    """
    layers = list(_adapter_layers(model))
    flags = [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def _adapter_layers(model: nn.Module) -> Iterator[Any]:
    if "peft" not in sys.modules:
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) and not module.disable_adapters:
            yield module
