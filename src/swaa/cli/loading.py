"""What a command works on: a model, or its configuration without the weights."""

from pathlib import Path
from typing import Any

from swaa.errors import ModelError
from swaa.models import DEFAULT_MODEL, default_model_path, quiet_transformers
from swaa.registry import suggestion

# Threads of the processor beside a GPU. What is left to compute there is small, and many threads waiting for each other
# slow down every process of the machine.
_THREADS_BESIDE_A_GPU = 2


def load(name: str, *, dtype: Any, device: str) -> Any:
    """Load a model and its tokenizer for a command that has this process to itself; see `swaa.models.load_model`."""
    import torch

    from swaa.models import load_model

    loaded, tokenizer = load_model(name, dtype=dtype, device=device)
    if loaded.device.type != "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), _THREADS_BESIDE_A_GPU))
    return loaded, tokenizer


def load_config(name: str) -> Any:
    """Read a model's configuration, without its weights; that of an adapter's model has the adapter's adaptation.

    Args:
        name: as in `swaa.models.load_model`.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or it is no decoder-only language model.
    """
    from transformers import AutoConfig

    path = default_model_path() if name == DEFAULT_MODEL else Path(name).expanduser()
    from swaa.adapters import adapter_base, stored_adaptation

    if (base := adapter_base(path)) is not None:
        config = load_config(base)
        if (stored := stored_adaptation(path)) is not None:
            config.swaa = stored
        return config
    where: dict[str, Any] = {"trust_remote_code": False}
    reason = "" if path.exists() else _unreachable(name)
    try:
        with quiet_transformers():
            if path.suffix == ".gguf" and path.is_file():
                config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, **where)
            elif path.exists():
                config = AutoConfig.from_pretrained(path, **where)
            else:
                config = AutoConfig.from_pretrained(name, local_files_only=bool(reason), **where)
    except (OSError, ValueError, ImportError) as error:
        why = reason or next(iter(str(error).strip().splitlines()), type(error).__name__)
        hint = suggestion(name, [DEFAULT_MODEL])
        raise ModelError(f"cannot read the configuration of {name!r}: {why.rstrip('.')}.{hint}") from error
    if config.is_encoder_decoder:
        raise ModelError(f"{name!r} is an encoder-decoder model; swaa adapts decoder-only language models")
    return config


def _unreachable(name: str) -> str:
    """Tell why the hub does not give a model's configuration, "" if it does.

    One quick question, because without a network transformers retries for more than 20 seconds.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
    except HFValidationError:
        return "it is neither an existing path nor a hub id (owner/name)"
    except Exception as error:
        return f"no such path, and the Hugging Face hub cannot give it ({type(error).__name__})"
    return ""
