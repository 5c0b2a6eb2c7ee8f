"""What an adapted model carries: its adaptation, and what is known of a running pass and the `generate` around it."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch.utils.hooks import RemovableHandle
from transformers import Cache

from swaa.attention import Backend
from swaa.config import LayerRule, SWAAConfig
from swaa.geometry import Geometry


class AdaptError(ValueError):
    """A model cannot be adapted; the message names the reason."""


@dataclass(eq=False)
class Adaptation:
    """The adaptation on a model, as `swaa.adaptation(model)` returns it.

    Args:
        config: the configuration.
        rules: the rule of each layer; None: not ours (a native sliding window, linear attention): left as it is.
        backend: name of the attention backend (of prompts, where it is chosen for every pass).
        reason: why `backend` was chosen.
        native: the attention implementation that the model had.
        handles: hooks to remove.
        generate: what `model.generate` becomes.
        original_up_to: tokens of the longest prompt that `generate` leaves to the original model; 0: none.
        compiled: the decoder layers are compiled (`swaa.compile_layers`).
    """

    config: SWAAConfig
    rules: tuple[LayerRule | None, ...]
    backend: str
    reason: str
    native: str
    handles: list[RemovableHandle]
    generate: Callable[..., Any]
    original_up_to: int = 0
    compiled: bool = False

    @property
    def fa_decode(self) -> bool:
        """Whether any layer has FA decode."""
        return any(rule is not None and rule.fa_decode for rule in self.rules)

    @property
    def has_phases(self) -> bool:
        """Whether it matters which rows are prompt and which are generated: FA decode or a dense tail on any layer."""
        return self.fa_decode or any(rule is not None and rule.dense_tail > 0 for rule in self.rules)


@dataclass(eq=False)
class Pass:
    """What the decoder's pre-hook hands to the attention of each layer."""

    adaptation: Adaptation
    rules: tuple[LayerRule | None, ...]
    geometry: Geometry
    prompt_end: int | None
    attend: Backend
    cache: Cache | None


@dataclass(eq=False)
class Generation:
    """A running `generate`: its adaptation, the first column that it generates, whether drafts may be rejected."""

    adaptation: Adaptation
    prompt_end: int
    drafts: bool
    cache: Cache | None = None
    columns: int | None = None

    def is_of(self, cache: Cache | None, columns: int) -> bool:
        """Tell whether a pass is of the generated sequence, whose prompt comes first.

        Logits processors may read others in between, as guidance without the prompt does.

        Args:
            cache: of the pass.
            columns: tokens of the sequence after it; without a cache all of them come again, and one more.
        """
        if self.columns is None:
            self.cache = cache
        elif cache is not self.cache or (cache is None and columns != self.columns + 1):
            return False
        self.columns = columns
        return True


GENERATION: ContextVar["Generation | None"] = ContextVar("swaa_generation", default=None)
