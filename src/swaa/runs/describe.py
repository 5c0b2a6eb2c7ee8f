"""The content of `run.json`: everything that is needed to understand a run and to make it again."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from swaa.adapting import layer_words
from swaa.recipes import Recipe
from swaa.results import command_line, environment, git_revision, model_revision
from swaa.runs.folder import FORMAT
from swaa.runs.settings import RunSettings


def describe_run(
    model: PreTrainedModel, recipes: Sequence[Recipe], settings: RunSettings, *, name: str, processes: int
) -> dict[str, Any]:
    """Return the content of a new `run.json`.

    `sessions` lists what was started to fill the folder, one entry a start; `cost` is filled while the run goes on.

    Args:
        model: the unadapted model.
        recipes: full attention first.
        settings: what is measured.
        name: of the model.
        processes: how many share the samples.

    Raises:
        ConfigError: a recipe does not fit the model.
        ValueError: a file of data cannot be read.
    """
    config = model.config.get_text_config()
    found: dict[str, str] = {**environment(), "git": git_revision() or "no checkout"}
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    session = {
        "command": command_line(),
        "started": started,
        "processes": processes,
        "batch_size": settings.batch_size,
        "environment": found,
    }
    return {
        "format": FORMAT,
        "command": command_line(),
        "model": name,
        "model_revision": model_revision(model),
        "dtype": _dtype(model),
        "seed": settings.seed,
        "settings": {**asdict(settings), "split": "test"},
        "data_hashes": {task: _data_hash(task, path) for task, path in settings.data.items()},
        "recipes": {recipe.name: recipe.to_dict() for recipe in recipes},
        "layers": {recipe.name: layer_words(config, recipe.config) for recipe in recipes},
        "model_config": {
            "model_type": config.model_type,
            "num_hidden_layers": config.num_hidden_layers,
            "hidden_size": getattr(config, "hidden_size", None),
            "max_position_embeddings": getattr(config, "max_position_embeddings", None),
        },
        "environment": found,
        "started": started,
        "sessions": [session],
        "cost": {},
    }


def _dtype(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


def _data_hash(task: str, path: str) -> str | None:
    """Return the SHA-256 of a file of data; None for a hub id, whose revision its loader knows."""
    file = Path(path).expanduser()
    if not file.exists():
        return None
    if not file.is_file():
        raise ValueError(f"the data of {task}, {path}, is no file: name one of the files in it")
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
