"""LoRA on an adapted model, and folding it into the weights."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swaa.adapters import PEFT_FILE
from swaa.attaching import parts
from swaa.registry import suggestion
from swaa.storage import load, save


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters beside frozen weights. The defaults are those of arXiv 2512.10411.

    Args:
        rank: of the adapters.
        alpha: scale; None: 8 times what leaves the adapters unscaled (128 at rank 16; 32 there with rsLoRA).
        rslora: divide alpha by the root of the rank, not by the rank.
        targets: names of the linear layers that get an adapter.
        dropout: share of the adapters' inputs that is dropped in training.

    Raises:
        ValueError: a value is out of range.
    """

    rank: int = 16
    alpha: float | None = None
    rslora: bool = False
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check every value."""
        if self.rank < 1 or not self.targets:
            raise ValueError(f"LoRA of rank {self.rank} on {self.targets}: give a rank of 1 or more, and a target")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"LoRA: alpha={self.alpha}: use a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"LoRA: dropout={self.dropout} is no share: use 0 or more and less than 1")

    @property
    def scale(self) -> float:
        """Alpha as PEFT wants it."""
        return self.alpha if self.alpha is not None else 8 * (self.rank**0.5 if self.rslora else self.rank)


def add_lora(model: Any, lora: Lora) -> Any:
    """Wrap a model, freeze its weights, and add fresh adapters.

    Args:
        model: an adapted model of transformers.
        lora: the adapters.

    Returns:
        the `PeftModel`.

    Raises:
        ValueError: the model has no linear layer of a target's name.
    """
    from peft import LoraConfig, get_peft_model

    linear = {
        name.rpartition(".")[2]
        for name, module in parts(model)[1].named_modules()
        if isinstance(module, torch.nn.Linear) or hasattr(module, "in_features")
    }
    for target in lora.targets:
        if target not in linear:
            raise ValueError(
                f"LoRA: the model has no layer {target!r}.{suggestion(target, linear)} Its linear layers are "
                f"{', '.join(sorted(linear))}"
            )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale,  # type: ignore[arg-type]  # PEFT computes with any number
        use_rslora=lora.rslora,
        target_modules=list(lora.targets),
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merge(adapter: str | Path, output: str | Path) -> None:
    """Fold an adapter into the weights of its model, and save a plain model with its tokenizer and adaptation.

    The sum is computed in float32 and stored in the number format of the original model.

    Args:
        adapter: folder of an adapter that `swaa.save` or `fine_tune` wrote.
        output: a fresh folder.

    Raises:
        ValueError: `adapter` is none that can be merged, or `output` holds files; the message says what to do.
    """
    adapter, output = Path(adapter).expanduser(), Path(output).expanduser()
    if not (adapter / PEFT_FILE).is_file():
        merged = " (it is a whole model: there is nothing to merge)" if (adapter / "config.json").is_file() else ""
        raise ValueError(f"{adapter} holds no adapter: {PEFT_FILE} is missing{merged}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is there already: choose another --output")
    kind = json.loads((adapter / PEFT_FILE).read_text(encoding="utf-8")).get("peft_type")
    if kind != "LORA":
        raise ValueError(f"{adapter} is an adapter of kind {kind}, and only LoRA can be folded into the weights")
    try:
        model: Any = load(adapter, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"the model that {adapter} belongs to cannot be loaded: {error}") from error
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "the weights are quantised, and the sum would be rounded to them: merge on the original weights"
        )
    stored = _stored_dtype(model)
    whole = model.merge_and_unload(safe_merge=True).to(stored)
    save(whole, output)
    _tokenizer(adapter, model).save_pretrained(output)


def _stored_dtype(model: Any) -> torch.dtype:
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(model.get_base_model().config.name_or_path).dtype
    return kind if isinstance(kind, torch.dtype) else torch.float32


def _tokenizer(adapter: Path, model: Any) -> Any:
    from transformers import AutoTokenizer

    with_it = (adapter / "tokenizer_config.json").is_file()
    return AutoTokenizer.from_pretrained(adapter if with_it else model.get_base_model().config.name_or_path)
