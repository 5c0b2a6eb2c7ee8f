"""What is measured: a model by name or by configuration, and the recipes on it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from swaa.config import ConfigError
from swaa.recipes import Recipe, load_recipes
from swaa.registry import Registry

DEFAULT_RECIPES = ("sinks", "sinks-odd", "sinks-fa-decode", "full")
# Published shapes, so that a measurement needs no download. A row is what `AutoConfig.for_model` takes.
CONFIGURATIONS: Registry[dict[str, Any]] = Registry(
    "configuration",
    {
        "qwen3-4b": {
            "model_type": "qwen3",
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "max_position_embeddings": 262144,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        "smollm2-135m": {
            "model_type": "llama",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "tie_word_embeddings": True,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
    },
)


def configuration(name: str) -> Any:
    """Return a configuration of transformers by its name in `CONFIGURATIONS`.

    Raises:
        ValueError: there is none of this name.
    """
    return AutoConfig.for_model(**CONFIGURATIONS[name])


def random_model(config: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Make a model with random weights, directly on its device."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def random_tokens(model: Any, batch: int, length: int) -> torch.Tensor:
    """Draw a prompt, `[batch, length]`, on the model's device."""
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(0, vocabulary, (batch, length), device=model.device)


def choose_recipes(
    names: Sequence[str] | None, *, window: int | None = None, sinks: int | None = None, backend: str | None = None
) -> list[Recipe]:
    """Load the recipes of a run, in the order given.

    Args:
        names: recipe names or files; None: `DEFAULT_RECIPES`.
        window: replaces the window of every recipe that has one.
        sinks: replaces the sinks of every recipe that has some.
        backend: replaces the backend of every recipe.

    Raises:
        ConfigError: a recipe does not exist or is wrong, or two have one name.
    """
    chosen = []
    for recipe in (recipe for name in names or DEFAULT_RECIPES for recipe in load_recipes(name)):
        changes: dict[str, Any] = {} if backend is None else {"backend": backend}
        if recipe.config.window is not None and window is not None:
            changes["window"] = window
        if recipe.config.sinks and sinks is not None:
            changes["sinks"] = sinks
        chosen.append(recipe.replace(**changes))
    if twice := [name for name, count in Counter(recipe.name for recipe in chosen).items() if count > 1]:
        raise ConfigError(f"recipes: several are called {twice[0]!r}; tables and plots need one name for each")
    return chosen
