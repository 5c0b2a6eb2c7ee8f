"""`swaa serve`, without vLLM: what it hands to vLLM's server, and what it refuses before starting it."""

import json
import os

import pytest
from typer.testing import CliRunner

from families import tiny_model
from swaa.cli import app
from swaa.config import ConfigError, SWAAConfig
from swaa.recipes import Recipe, load_recipe
from swaa.vllm import serve


@pytest.fixture
def folder(tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def started(monkeypatch):
    """The command that replaces the process."""
    commands = []
    monkeypatch.setattr(serve, "find_spec", lambda name: name)
    monkeypatch.setattr(serve, "_has_command_line", lambda: True)
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command))
    return commands


def run(*arguments):
    return CliRunner().invoke(app, ["serve", *arguments])


def overrides(command):
    return json.loads(command[command.index("--hf-overrides") + 1])


def test_flags_of_both_kinds(folder, started):
    result = run("-m", folder, "--window", "1k", "--port", "8001", "-tp", "2", "--full-layers", "odd", "--async")
    assert result.exit_code == 0, result.output
    (command,) = started
    assert command[1:5] == ["-m", "vllm.entrypoints.cli.main", "serve", folder]
    assert overrides(command) == {"swaa": SWAAConfig(window=1024, full_layers="odd").to_dict()}
    assert command[-5:] == ["--port", "8001", "-tp", "2", "--async"]


def test_recipe_and_overrides_of_the_user(folder, started):
    run("-m", folder, "-r", "sinks", "--hf-overrides", '{"rope_theta": 1}', '--hf_overrides={"x": 2}')
    wanted = {"rope_theta": 1, "x": 2, "swaa": load_recipe("sinks").config.to_dict()}
    assert overrides(started[0]) == wanted
    assert started[0].count("--hf-overrides") == 1


def test_names_and_thinking():
    recipe = load_recipe("paper-thinking-speed")
    arguments = serve.server_arguments("owner/name", recipe, [], command_line=False)
    assert arguments[:3] == ["vllm.entrypoints.openai.api_server", "--model", "owner/name"]
    assert arguments[arguments.index("--served-model-name") + 1] == "owner/name"
    assert json.loads(arguments[arguments.index("--default-chat-template-kwargs") + 1]) == {"enable_thinking": True}
    arguments = serve.server_arguments("owner/name", load_recipe("full"), ["--served-model-name", "me"])
    assert arguments.count("--served-model-name") == 1
    assert "--default-chat-template-kwargs" not in arguments


@pytest.mark.parametrize(
    ("recipe", "flags", "message"),
    [
        (Recipe("r", SWAAConfig(window=8, full_heads={0: [1]})), [], "full_layers"),
        (load_recipe("sinks"), ["--hf-overrides", "x"], "no JSON object"),
        (load_recipe("sinks"), ["--hf-overrides"], "no JSON object"),
        (load_recipe("sinks"), ["--hf-overrides", "3"], "no JSON object"),
        (load_recipe("sinks"), ["--hf-overrides", '{"swaa": {}}'], "not both"),
    ],
)
def test_refusals(recipe, flags, message):
    with pytest.raises(ConfigError, match=message):
        serve.server_arguments("m", recipe, flags)


def test_a_recipe_that_does_not_fit_is_refused_before_the_server_starts(folder, started):
    result = run("-m", folder, "--window", "8", "--full-layers", "7")
    assert result.exit_code == 2
    assert "0 to 3" in result.output
    assert started == []


def test_vllm_is_named_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    result = run("-m", folder, "--window", "8")
    assert result.exit_code == 2
    assert "swaa[vllm]" in result.output
