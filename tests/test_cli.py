"""The command line as a whole: help, errors, interrupts, pipes, and how much it loads."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import typer

import swaa
import swaa.cli.recipes
from cli_runs import fail, piped, run, succeed
from swaa.cli import app, loading

ESCAPE = "\x1b"


# The app as a whole


def commands():
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        found[name] = command
        found |= {f"{name} {sub}": each for sub, each in getattr(command, "commands", {}).items()}
    return found


@pytest.mark.parametrize("name", commands())
def test_help_teaches(name):
    command = commands()[name]
    assert "Examples" in command.help
    assert command.help.count("`swaa ") + command.help.count("| swaa ") >= 2
    for parameter in command.params:
        assert parameter.name == "help" or len(parameter.help or "") > 10, parameter.name
    assert succeed(*name.split(), "--help").stdout


def test_import_is_light():
    code = "import sys, swaa.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version():
    assert succeed("--version").stdout == f"swaa {swaa.__version__}\n"


def test_unknown_command():
    result = run("inspekt", TERM="dumb")
    assert result.exit_code == 2
    assert "Did you mean 'inspect'?" in result.stderr


def test_debug_shows_the_traceback():
    for debugging in (run("--debug", "recipes", "show", "foo"), run("recipes", "show", "foo", SWAA_DEBUG="1")):
        assert debugging.exit_code == 2
        assert "Traceback" in debugging.stderr
        assert "ConfigError" in debugging.stderr
        assert debugging.stderr.splitlines()[-1].startswith("error: unknown recipe 'foo'")


def test_interrupt(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(swaa.cli.recipes, "recipe_names", interrupt)
    result = run("recipes")
    assert result.exit_code == 130
    assert "Traceback" not in result.output


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    def mistake():
        raise TypeError("ours")

    monkeypatch.setattr(swaa.cli.recipes, "recipe_names", mistake)
    assert isinstance(run("recipes").exception, TypeError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "there/mine.yaml"), "there/mine.yaml: No such file or"),
        (OSError("the hub is away\ntry later"), "the hub is away\n"),
    ],
)
def test_what_a_file_system_refuses_is_one_line(monkeypatch, error, text):
    def refuse():
        raise error

    monkeypatch.setattr(swaa.cli.recipes, "recipe_names", refuse)
    assert fail("recipes").startswith(f"error: {text}")
    assert "Traceback" in run("--debug", "recipes").stderr


def test_a_recommendation_needs_a_folder_before_a_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swaa.cli.loading.load_config", None)
    message = fail("recommend", "--length", "1k", "--calibrate", "-o", "missing/mine.yaml")
    assert message == "error: --output missing/mine.yaml: there is no folder missing; make it, or name another\n"


@pytest.mark.parametrize(("device", "threads"), [("cuda:0", 2), ("cpu", 6)])
def test_few_threads_beside_a_gpu(monkeypatch, device, threads):
    before = torch.get_num_threads()
    loaded = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr("swaa.models.load_model", lambda name, **_: (loaded, name))
    torch.set_num_threads(6)
    try:
        assert loading.load("mine", dtype="auto", device="auto") == (loaded, "mine")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


# In a process of its own, piped


def test_piped_error():
    result = piped("recipes", "show", "foo", stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: unknown recipe 'foo'.")
    assert ESCAPE not in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("recipes",), ("recipes", "show", "naive")])
def test_broken_pipe_is_quiet(command):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = piped(*command, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")
