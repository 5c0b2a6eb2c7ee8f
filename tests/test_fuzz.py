"""Random recipe files and command lines end in clear errors, never in a traceback."""

import json

import pytest
import typer.main
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from families import tiny_model
from random_cases import cases
from swaa.adapting import plan_layers
from swaa.cli import app
from swaa.config import ConfigError, SWAAConfig, load_settings
from swaa.recipes import Recipe, load_recipe, load_recipes
from swaa.state import AdaptError

MODEL_CONFIG = tiny_model().config
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(
        ["odd", "even", "none", "all", "1/4", "1/4@3", "1/0", "1/4@9", "auto", "sdpa", "thinking", "x.yaml"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(0, 5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *SWAAConfig().to_dict(),
        *("sliding_window_size", "keep_first", "force_fa_decode", "non_sliding_layers"),
        *("config", "swaa_config", "windows"),
    ]
)
CONFIGS = st.dictionaries(FIELDS, VALUES, max_size=5)
# Mostly right, so that deeper checks are reached.
NEARLY = CONFIGS.map(lambda changes: {"window": 8, "sinks": 2} | {k: v for k, v in changes.items() if k != "config"})
KEYS = st.sampled_from(["description", "generation", "provenance", "plan", "name", "confg"])
RECIPES = st.builds(
    lambda config, more: {"config": config} | more, NEARLY | VALUES, st.dictionaries(KEYS, VALUES, max_size=3)
)
CONTENT = VALUES | CONFIGS | NEARLY | RECIPES | st.lists(RECIPES | NEARLY | VALUES, max_size=3)


def read(file):
    """Read a file in every way there is; what is read must work, too."""
    messages = []
    for reader in (load_recipes, load_recipe, load_settings, SWAAConfig.load):
        try:
            found = reader(file)
        except ConfigError as error:
            messages.append(str(error))
            continue
        for one in found if isinstance(found, list) else [found]:
            config = one.config if isinstance(one, Recipe) else one
            assert SWAAConfig.from_dict(config.to_dict()) == config
            if isinstance(one, Recipe):
                one.to_yaml()
            try:
                plan_layers(MODEL_CONFIG, config)
            except (ConfigError, AdaptError) as error:
                messages.append(str(error))
    assert all(messages)


@given(CONTENT, st.booleans())
@cases(700)
def test_files_of_any_content(tmp_path, content, as_yaml):
    file = tmp_path / ("recipe.yaml" if as_yaml else "recipe.json")
    file.write_text(yaml.safe_dump(content) if as_yaml else json.dumps(content), encoding="utf-8")
    read(file)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.sampled_from([".yaml", ".json"]))
@cases(300)
def test_files_of_any_bytes(tmp_path, content, suffix):
    file = tmp_path / f"recipe{suffix}"
    file.write_bytes(content)
    read(file)


def commands():
    """Every command with its parameters, but those that measure without a model or belong to another program."""
    found = {}

    def walk(command, words):
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, [*words, name])
        elif words not in (["lm_eval"], ["bench", "attention"]):
            found[" ".join(words)] = (words, command.params)

    walk(typer.main.get_command(app), [])
    return found


COMMANDS = commands()
# Nothing is measured: the model does not exist. These two work from a configuration alone.
CHEAP = {"inspect", "recommend"}
WORDS = st.sampled_from(
    [
        *("", " ", "0", "-1", "1", "7", "1k", "4K", "1.5", "1e9", "nan", "99999999999999999999", "odd", "1/4@3", "1/0"),
        *("3:0", "3:0,2,7:1", ":", ",", "none", "auto", "all", "x", "é", "a=b", "=", "naive", "sinks-fa-decode"),
        *("smollm2-4-layers", "missing.yaml", "broken.yaml", "list.json", "folder", "folder/x.yaml", "needle", "ruler"),
        *("cpu", "cuda:99", "float32", "int8", "speed", "forced", "layers", "heads", "{", "--help", "--", "-"),
    ]
) | st.text(max_size=5)


@st.composite
def command_lines(draw):
    words, parameters = COMMANDS[draw(st.sampled_from(sorted(COMMANDS)))]
    line, model = list(words), "tiny" if words[0] in CHEAP else "missing-model"
    for parameter in parameters:
        names = [name for name in [*parameter.opts, *parameter.secondary_opts] if name.startswith("-")]
        if "--model" in names:
            line += ["--model", model]
        elif any("url" in name for name in names):
            continue
        elif not names:
            line += draw(st.lists(WORDS, max_size=2))
        elif draw(st.integers(0, 3)) == 0:
            line.append(draw(st.sampled_from(names)))
            line += [] if getattr(parameter, "is_flag", False) else [draw(WORDS)]
    return line


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder to run in: a model's configuration, and files to stumble over."""
    monkeypatch.chdir(tmp_path)
    MODEL_CONFIG.save_pretrained(tmp_path / "tiny")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.yaml").write_text("config: {window: [")
    (tmp_path / "list.json").write_text("[1, {}]")


@given(command_lines())
@cases(250)
def test_command_lines_of_any_words(workplace, line):
    result = CliRunner().invoke(app, line)
    assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        assert "Traceback" not in result.output
        assert result.output.strip(), line
