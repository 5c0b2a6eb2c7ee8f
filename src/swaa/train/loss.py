"""The loss of the trained tokens alone: their likelihood (SFT), and the divergence from full attention (KL).

Logits are what does not fit in memory (32k tokens of a vocabulary of 152k take 20 GB in float32). So hidden rows are
picked before the LM head, and the head runs over a few of them at a time, again in the backward pass.
"""

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint

from swaa.attaching import parts
from swaa.registry import Registry
from swaa.switching import adapters_off

# What the models' losses leave out.
NO_LABEL = -100
# Logits that exist at once: half a gigabyte in float32, a few times over.
_LOGITS = 1 << 27
# Weights of the likelihood and of the divergence.
LOSSES: Registry[tuple[bool, bool]] = Registry(
    "loss", {"sft": (True, False), "kl": (False, True), "sft+kl": (True, True)}
)


@dataclass(frozen=True)
class Objective:
    """What is minimised at each trained token.

    Args:
        loss: "sft", the negative log likelihood; "kl", the divergence of the model's distribution from the one of the
            original model under full attention, KL(original || model) (Hinton et al., arXiv 1503.02531); "sft+kl".
        kl_weight: of the divergence.
        temperature: both distributions are flattened by it, and the divergence is multiplied by its square, which
            keeps the size of the gradient.

    Raises:
        ValueError: a value is out of range, or has no effect; the message names it.
    """

    loss: str = "sft"
    kl_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check every value."""
        _, kl = LOSSES[self.loss]
        for name in ("kl_weight", "temperature"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value}: use a number above 0")
            if value != 1 and not kl:
                raise ValueError(f"{name}={value} has no effect on loss={self.loss!r}: use 'kl' or 'sft+kl'")

    @property
    def sft(self) -> bool:
        """Whether the likelihood counts."""
        return LOSSES[self.loss][0]

    @property
    def kl(self) -> bool:
        """Whether the divergence counts."""
        return LOSSES[self.loss][1]

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum up what `TokenLosses` returned, to one number."""
        counted = [losses["nll"].sum()] if self.sft else []
        return torch.stack([*counted, *([self.kl_weight * losses["kl"].sum()] if self.kl else [])]).sum()


def install(model: nn.Module) -> None:
    """Let a call with `objective` return the losses of the trained tokens; every other call is as it was.

    That it is a call of the model itself lets the wrappers for several processes do their work.

    Args:
        model: an adapted model, PEFT-wrapped or not. `model(.., labels=labels, objective=objective)` then returns
            `nll` and, where the objective has it, `kl`: `[trained tokens]` float32 in nats, in the order of
            `labels[:, 1:]`; of the two, what the objective does not count carries no gradient.
    """
    base: Any = parts(model)[0]

    def forward(self: Any, *args: Any, objective: Objective | None = None, **kwargs: Any) -> Any:
        if objective is None:
            return type(self).forward(self, *args, **kwargs)
        return _token_losses(self, objective, **kwargs)

    # What transformers looks at before it calls.
    vars(forward)["__signature__"] = inspect.signature(type(base).forward)
    vars(base)["forward"] = types.MethodType(forward, base)


def uninstall(model: nn.Module) -> None:
    """Undo `install`."""
    vars(parts(model)[0]).pop("forward", None)


def _token_losses(base: Any, objective: Objective, *, labels: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    labels = labels[:, 1:]
    # PEFT hands down what it was not given.
    inputs = {name: value for name, value in kwargs.items() if value is not None}
    name, backbone = _backbone(base)
    trained = (labels != NO_LABEL).nonzero(as_tuple=True)
    output = backbone(**inputs, use_cache=False)
    rows = [output.last_hidden_state[trained]]
    if objective.kl:
        # Only now: a wrapper that shards the weights must not meet the adapters for the first time switched off.
        with torch.no_grad(), evaluating(base), adapters_off(base):
            inputs.pop("dense_rows", None)
            rows.append(backbone(**inputs, use_cache=False, full_attention=True).last_hidden_state[trained])

    def head(hidden: Tensor) -> Tensor:
        """Return the logits of hidden rows as the model's own forward does, soft caps and scales included."""
        vars(base)[name] = lambda **_: type(output)(last_hidden_state=hidden[None])
        try:
            return type(base).forward(base, use_cache=False).logits[0]
        finally:
            del vars(base)[name]

    def losses(gold: Tensor, student: Tensor, teacher: Tensor | None = None) -> tuple[Tensor, ...]:
        logits = head(student).float()
        nll = cross_entropy(logits if objective.sft else logits.detach(), gold, reduction="none")
        if teacher is None:
            return (nll,)
        with torch.no_grad(), ExitStack() as stack:
            # Only what lies outside of the decoder takes part, and the decoder's many modules take long to go through.
            for child in base.children():
                if child is not backbone:
                    stack.enter_context(adapters_off(child))
            aim = (head(teacher).float() / objective.temperature).log_softmax(-1)
        found = (logits / objective.temperature).log_softmax(-1)
        kl = kl_div(found, aim, reduction="none", log_target=True).sum(-1)
        return nll, kl * objective.temperature**2

    found = _in_pieces(losses, labels[trained], *rows, size=max(_LOGITS // base.config.get_text_config().vocab_size, 1))
    return dict(zip(("nll", "kl"), found, strict=False))


def _in_pieces(call: Callable[..., tuple[Tensor, ...]], *tensors: Tensor, size: int) -> list[Tensor]:
    """Call with some rows at a time, and again in the backward pass; the results are put together."""
    pieces = list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
    if len(pieces) == 1:
        return list(call(*pieces[0]))
    found = [checkpoint(call, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _backbone(base: nn.Module) -> tuple[str, nn.Module]:
    """Return the child that turns tokens into hidden rows: the decoder, or what holds it."""
    decoder = parts(base)[1]
    return next((name, child) for name, child in base.named_children() if any(x is decoder for x in child.modules()))


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch dropout off."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
