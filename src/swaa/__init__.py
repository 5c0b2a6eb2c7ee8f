"""Sliding window attention adaptation (SWAA) of pretrained full-attention language models.

model = AutoModelForCausalLM.from_pretrained(name, dtype="bfloat16")
swaa.adapt(model, swaa.SWAAConfig(window=2048, sinks=128, full_layers="odd", fa_decode=True))
model.generate(**inputs)          # unchanged; prefill is linear in the prompt
swaa.restore(model)               # bit-identical to the original again
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from swaa.adapting import adapt, restore
    from swaa.attaching import adaptation
    from swaa.compiling import compile_layers
    from swaa.config import ConfigError, SWAAConfig
    from swaa.state import Adaptation, AdaptError
    from swaa.storage import load, save
    from swaa.switching import switched_off

# Where each public name lives; imported on first use, so that `import swaa` stays fast and patches nothing.
_EXPORTS = {
    "AdaptError": "state",
    "Adaptation": "state",
    "ConfigError": "config",
    "SWAAConfig": "config",
    "adapt": "adapting",
    "adaptation": "attaching",
    "compile_layers": "compiling",
    "load": "storage",
    "restore": "adapting",
    "save": "storage",
    "switched_off": "switching",
}
__all__ = [
    "AdaptError",
    "Adaptation",
    "ConfigError",
    "SWAAConfig",
    "adapt",
    "adaptation",
    "compile_layers",
    "load",
    "restore",
    "save",
    "switched_off",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'swaa' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"swaa.{_EXPORTS[name]}"), name)
    globals()[name] = value
    return value
