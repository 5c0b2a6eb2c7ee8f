"""Fusing what lies between the attentions: `torch.compile` of each decoder layer, cut at cache and attention.

Norms, RoPE, activations and residuals are memory-bound: unfused they take as long as half of the matrix products. All
layers share one compiled code; attention and cache stay what they are.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from swaa import gemv
from swaa.attaching import adaptation, parts
from swaa.dispatch import attention
from swaa.state import AdaptError

ModelT = TypeVar("ModelT", bound=nn.Module)


def compile_layers(model: ModelT, *, backend: str | Callable[..., Any] = "inductor") -> ModelT:
    """Compile the decoder layers, the last norm and the LM head of an adapted model; `restore` takes it off again.

    Compilation happens in the first passes (about half a minute on a GPU, once for prompts and once for single tokens)
    and holds for all lengths; another batch size or dtype is compiled again.

    Args:
        model: an adapted model.
        backend: of `torch.compile`. Inductor gets the linear layers of a single token replaced by `swaa.gemv`.

    Returns:
        The same model.

    Raises:
        AdaptError: the model is not adapted, or its layers cannot be found.
    """
    state = adaptation(model)
    if state is None:
        raise AdaptError("compile_layers needs an adapted model: call swaa.adapt first")
    _, decoder = parts(model)
    cut_at_attention(decoder)
    chosen = gemv.inductor if backend == "inductor" else backend
    for module in _modules(model):
        module.compile(dynamic=True, backend=chosen)
        assert module._compiled_call_impl is not None
        module._compiled_call_impl = _Shared(module._compiled_call_impl)
    state.compiled = True
    return model


def cut_at_attention(decoder: Any) -> None:
    """Keep compiled layers out of the attention of an adapted model, until it is adapted anew.

    The description of a pass is plain Python that changes with every pass: nothing to trace.
    """
    AttentionInterface.register(decoder.config._attn_implementation, _untraced_attention())


@cache
def _untraced_attention() -> Callable[..., Any]:
    # Compiled code holds for this very object.
    return torch.compiler.disable(attention)


def compiled_forward(forward: Callable[..., Any], *, backend: str | Callable[..., Any] = "inductor") -> Any:
    """Compile the forward function of one layer; layers of one class share the code, for all lengths and batches."""
    return _Shared(torch.compile(forward, dynamic=True, backend=backend))


def uncompile_layers(model: nn.Module) -> None:
    """Let the layers run as they are again."""
    state = adaptation(model)
    if state is not None and state.compiled:
        for module in _modules(model):
            module._compiled_call_impl = None
        state.compiled = False


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Let the layers run as they are for a while; what was compiled is kept, unless the model is adapted meanwhile."""
    state = adaptation(model)
    modules = _modules(model) if state is not None and state.compiled else []
    calls = [module._compiled_call_impl for module in modules]
    for module in modules:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        if adaptation(model) is state:
            for module, call in zip(modules, calls, strict=True):
                module._compiled_call_impl = call


def _modules(model: nn.Module) -> list[nn.Module]:
    base, decoder = parts(model)
    norms = [child for name, child in decoder.named_children() if "norm" in name]
    head = base.get_output_embeddings()
    return [*decoder_layers(decoder), *norms, *([] if head is None else [head])]


def decoder_layers(decoder: Any) -> nn.ModuleList:
    """Return the list of a decoder's layers.

    Raises:
        AdaptError: there is no such list.
    """
    count = decoder.config.num_hidden_layers
    for child in decoder.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise AdaptError(f"{type(decoder).__name__} keeps its layers in no list of {count} modules")


class _Shared:
    """A compiled layer whose number is no constant: otherwise each layer would be compiled by itself."""

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(allow_unspec_int_on_nn_module=True):
            return self.call(*args, **kwargs)
