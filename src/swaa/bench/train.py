"""A step of fine-tuning by LoRA: ours, full attention, and the reference's two attention calls, in one run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from swaa.adapting import adapt, plan_layers, restore
from swaa.attaching import adaptation, parts
from swaa.bench.floors import Floors
from swaa.bench.models import random_tokens
from swaa.bench.record import Row
from swaa.bench.split import by_flash, by_our_kernels, flash_unavailable, two_calls
from swaa.bench.timing import Effort, attempt, measure
from swaa.config import SWAAConfig
from swaa.cost import Weights, active_weights, prefill_flops
from swaa.recipes import Recipe
from swaa.train import Collator, Example, Lora, Objective, add_lora
from swaa.train.loss import install, uninstall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "recipe",
    "batch",
    "length",
    "answer",
    "seconds",
    "seconds_low",
    "seconds_high",
    "repeats",
    "tokens_per_s",
    "speedup",
    "floor_s",
    "ratio",
    "peak_mb",
    "note",
)
FULL_FLASH, FULL_CUDNN = "sdpa-flash-full", "sdpa-cudnn-full"
TWO_CALLS, TWO_CALLS_FLASH = "two-calls", "two-calls-flash-attn-4"
BASELINES = {
    FULL_FLASH: "the model of transformers as it was, by SDPA's FlashAttention-2; `speedup` compares with it",
    FULL_CUDNN: "the same by SDPA's cuDNN, the fastest kernel of PyTorch on Hopper",
    TWO_CALLS: "the reference's way, one attention call for the prompt and one for the answer, by our kernels",
    TWO_CALLS_FLASH: "the same by flash-attn-4, which has no sinks",
}


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Args:
        recipes: the adaptations.
        lengths: tokens of a sample, its answer included.
        batches: samples a step.
        answer: tokens of the answer, which are trained.
        checkpointing: compute the layers again in the backward pass.
        baselines: of `BASELINES`.

    Raises:
        ValueError: a baseline is unknown, or an answer leaves no room for a prompt.
    """

    recipes: tuple[Recipe, ...]
    lengths: tuple[int, ...]
    batches: tuple[int, ...] = (1,)
    answer: int = 512
    checkpointing: bool = True
    baselines: tuple[str, ...] = tuple(BASELINES)

    def __post_init__(self) -> None:
        """Check every value."""
        if unknown := [name for name in self.baselines if name not in BASELINES]:
            raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
        if not 1 < self.answer < min(self.lengths):
            raise ValueError(
                f"answer={self.answer}: use 2 tokens or more, and less than the {min(self.lengths)} of all"
            )

    def variants(self) -> list[tuple[str, SWAAConfig | None]]:
        """Return name and adaptation (None: the model as it was) of all that is timed, full attention first."""
        found: list[tuple[str, SWAAConfig | None]] = [
            (n, None) for n in (FULL_FLASH, FULL_CUDNN) if n in self.baselines
        ]
        phased = next((x.config for x in self.recipes if x.config.fa_decode), None)
        for name in (TWO_CALLS, TWO_CALLS_FLASH):
            if name in self.baselines and phased is not None:
                found.append((name, phased.replace(backend=name)))
        return found + [(recipe.name, recipe.config) for recipe in self.recipes]

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.variants()) * len(self.lengths) * len(self.batches)


def rows(
    model: PreTrainedModel, settings: Settings, floors: Floors, effort: Effort, announce: Callable[[str], None]
) -> Iterator[Row]:
    """Measure row by row; the model is restored and its adapters are taken off afterwards, whatever happens.

    Args:
        model: an unadapted model.
        settings: what.
        floors: of its device.
        effort: how often.
        announce: called with the name of the row that comes.
    """
    uses_cache = model.config.use_cache
    wrapped = add_lora(model, Lora()).train()
    model.config.use_cache = False
    if settings.checkpointing:
        # Newer versions of transformers warn of the older name.
        new = getattr(model, "activation_checkpointing_enable", None)
        (new or model.gradient_checkpointing_enable)({"use_reentrant": False})
    install(wrapped)
    full: dict[tuple[int, int], float] = {}
    try:
        for name, config in settings.variants():
            reason = _unavailable(name, model)
            with ExitStack() as stack:
                if reason is None:
                    _prepare(stack, wrapped, name, config)
                for length in settings.lengths:
                    for batch in settings.batches:
                        row: Row = {"recipe": name, "batch": batch, "length": length, "answer": settings.answer}
                        if reason is None:
                            announce(f"{name}, {batch} x {length}")
                            # That a peer fails is worth a note, and no mistake here.
                            blame: dict[str, str] = {"blame": "not possible: "} if name == TWO_CALLS_FLASH else {}
                            timed = partial(_row, wrapped, config, settings, length, batch, floors, effort)
                            row |= attempt(timed, **blame)
                        if name == FULL_FLASH and row.get("seconds"):
                            full[length, batch] = row["seconds"]
                        base = full.get((length, batch))
                        speedup = base / row["seconds"] if base and row.get("seconds") else None
                        yield row | {"speedup": speedup} | ({"note": reason} if reason else {})
                restore(wrapped)
    finally:
        restore(wrapped)
        uninstall(wrapped)
        wrapped.unload()
        (getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable)()
        model.config.use_cache = uses_cache
        model.eval()


def _unavailable(name: str, model: PreTrainedModel) -> str | None:
    if name == FULL_CUDNN and model.device.type != "cuda":
        return f"it needs a CUDA device, not {model.device.type}"
    return flash_unavailable(model.device, model.dtype) if name == TWO_CALLS_FLASH else None


def _prepare(stack: ExitStack, model: Any, name: str, config: SWAAConfig | None) -> None:
    """Make the model compute as a variant does, for as long as the stack is open."""
    if name in (TWO_CALLS, TWO_CALLS_FLASH):
        stack.enter_context(two_calls(name, by_our_kernels if name == TWO_CALLS else by_flash))
    if config is not None:
        adapt(model, config)
    elif model.device.type == "cuda":
        stack.enter_context(
            sdpa_kernel(SDPBackend.FLASH_ATTENTION if name == FULL_FLASH else SDPBackend.CUDNN_ATTENTION)
        )


def _row(
    model: Any, config: SWAAConfig | None, settings: Settings, length: int, batch: int, floors: Floors, effort: Effort
) -> Row:
    step = training_step(model, length, batch, settings.answer)
    timing = measure(step, model.device, effort)
    operations = flops(model, config or SWAAConfig(), length, settings.answer, checkpointing=settings.checkpointing)
    floor = None if operations is None else batch * operations / floors.flops
    return {
        "seconds": timing.median,
        "seconds_low": timing.low,
        "seconds_high": timing.high,
        "repeats": timing.repeats,
        "tokens_per_s": batch * length / timing.median,
        "floor_s": floor,
        "ratio": None if floor is None else timing.median / floor,
        "peak_mb": None if timing.peak is None else timing.peak / 1e6,
    }


def training_step(model: Any, length: int, batch: int, answer: int) -> Callable[[], Tensor]:
    """Return a call that trains one step on random samples, as `swaa train` does it: forward, backward, AdamW.

    Args:
        model: a `PeftModel` in training mode with `swaa.train.loss.install` on it, adapted or not.
        length: tokens of a sample.
        batch: samples.
        answer: tokens of each that are trained; the model is given their rows as dense where that makes a difference.

    Returns:
        the call; it returns the loss, nats a token, in a tensor.
    """
    state = adaptation(model)
    tokens = random_tokens(model, batch, length).tolist()
    flags = (False,) * (length - answer) + (True,) * answer
    collate = Collator(state is not None and state.has_phases)
    inputs = {
        name: tensor.to(model.device)
        for name, tensor in collate([[Example(tuple(ids), flags)] for ids in tokens]).items()
    }
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    half = model.dtype in (torch.bfloat16, torch.float16)
    objective = Objective()

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # PEFT keeps the adapters of half-precision weights in float32.
        with torch.autocast(model.device.type, model.dtype if half else torch.bfloat16, enabled=half):
            losses = model(**inputs, objective=objective)
        loss = objective.total(losses) / len(losses["nll"])
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def flops(model: Any, config: SWAAConfig, length: int, answer: int, *, checkpointing: bool) -> float | None:
    """Count the operations of a step; None for a family of unknown sizes.

    The backward pass of frozen weights costs a forward pass (gradients of the inputs only), that of attention 2.5 (five
    products for two). Checkpointing adds a forward pass. The adapters are too small to count.

    Args:
        model: the model.
        config: the adaptation.
        length: tokens of a sample.
        answer: trained tokens of it, the only ones that reach the head.
        checkpointing: the layers are computed twice.
    """
    base: Any = parts(model)[0]
    body, head = active_weights(base)
    adapters = sum(parameter.numel() for parameter in base.parameters() if parameter.requires_grad)
    rules: Sequence[Any] = plan_layers(base.config.get_text_config(), config.replace(backend="auto"))
    linear, pairs = prefill_flops(base.config, rules, length - answer, Weights(body - adapters, 0), answer)
    if pairs is None:
        return None
    forwards = 2 if checkpointing else 1
    return (forwards + 1) * linear + (forwards + 2.5) * pairs + 2 * 2.0 * head * answer


def figures(rows: Sequence[Row], title: str) -> Mapping[str, "Figure"]:
    """Draw throughput and memory against the length, one figure each a batch size."""
    from swaa.report.scaling import against_length, lines

    found = {}
    for batch in dict.fromkeys(row["batch"] for row in rows):
        chosen = [row for row in rows if row["batch"] == batch]
        head: dict[str, Any] = {"title": "A step of fine-tuning by LoRA", "subtitle": f"{title}, batch {batch}"}
        for value, name, label in (
            ("tokens_per_s", "throughput", "tokens a second"),
            ("peak_mb", "peak", "MB held at the peak"),
        ):
            if points := lines(chosen, "recipe", value):
                found[f"{name}-{batch}"] = against_length(points, label=label, **head)
    return found
