"""A model's configuration without its weights, and transformers kept quiet."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swaa.models import DEFAULT_MODEL, ModelError, default_model_path


def load_config(name: str) -> Any:
    """Read a model's configuration, without its weights.

    Raises:
        ModelError: there is no such model, the hub cannot be reached, or it is no decoder-only language model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from transformers import AutoConfig

    path = default_model_path() if name == DEFAULT_MODEL else Path(name).expanduser()
    try:
        if path.suffix == ".gguf" and path.is_file():
            config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        elif path.exists():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        else:
            offline = False
            # One quick question first: without a network, transformers retries for more than 20 seconds.
            try:
                get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=10)
            except Exception:
                offline = True
            config = AutoConfig.from_pretrained(name, local_files_only=offline, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot read the configuration of {name!r}: {str(error).strip().splitlines()[0]}") from error
    if config.is_encoder_decoder:
        raise ModelError(f"{name!r} is an encoder-decoder model; swaa adapts decoder-only language models")
    return config


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own log lines and progress bars off the terminal."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
