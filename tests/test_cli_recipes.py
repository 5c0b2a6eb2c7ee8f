"""Recipes on the command line: `swaa recipes`, flags that change one, and how it is put into words."""

import json
import re
from types import SimpleNamespace

import pytest

from cli_runs import fail, succeed
from swaa.cli.common import resolve_recipe, token_count
from swaa.cli.wording import billions, layer_ranges, quantity, short_form
from swaa.config import ConfigError, SWAAConfig
from swaa.recipes import load_recipe, load_recipes, recipe_names

# Recipes


def test_recipes():
    lines = succeed("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == recipe_names()
    line = next(line for line in lines if line.startswith("paper-thinking-speed "))
    assert "window 4096, 128 sinks, FA decode, thinking on" in line
    assert load_recipe("paper-thinking-speed").description in line


def test_recipes_show(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(succeed("recipes", "show", "paper-thinking-speed").stdout)
    assert load_recipe(file).to_dict() == load_recipe("paper-thinking-speed").to_dict()


def test_recipes_show_of_a_reference_file(tmp_path):
    file, ours = tmp_path / "settings.json", tmp_path / "ours.yaml"
    file.write_text(json.dumps([{"sliding_window_size": 2048, "keep_first": 10}, {"sliding_window_size": None}]))
    ours.write_text(succeed("recipes", "show", file).stdout)
    assert load_recipes(ours) == load_recipes(file)
    assert [recipe.name for recipe in load_recipes(ours)] == ["settings[0]", "settings[1]"]
    assert [recipe.config for recipe in load_recipes(ours)] == [SWAAConfig(window=2048, sinks=10), SWAAConfig()]
    assert succeed("recipes", "show", ours).stdout == ours.read_text()
    file.write_text(json.dumps([{"sliding_window_size": 2048, "keep_first": 10}]))
    ours.write_text(succeed("recipes", "show", file).stdout)
    assert load_recipe(ours).config == SWAAConfig(window=2048, sinks=10)


def test_recipes_show_suggests():
    assert "Did you mean 'sinks-fa-decode'?" in fail("recipes", "show", "sink-fa-decode")


STORED = {"window": 64, "sinks": 4}


@pytest.mark.parametrize(
    ("recipe", "stored", "flags", "name", "config"),
    [
        (None, None, {}, "full", SWAAConfig()),
        (None, None, {"window": 8, "sinks": 2}, "flags", SWAAConfig(window=8, sinks=2)),
        (None, STORED, {}, "stored", SWAAConfig(window=64, sinks=4)),
        (None, STORED, {"sinks": 0}, "stored + flags", SWAAConfig(window=64)),
        ("naive", STORED, {}, "naive", SWAAConfig(window=2048)),
        ("fa-decode", None, {"fa_decode": False}, "fa-decode + flags", SWAAConfig(window=2048)),
        ("fa-decode", None, {"fa_decode_layers": "3, 1"}, "fa-decode + flags", SWAAConfig(2048, fa_decode=[1, 3])),
        ("naive", None, {"full_layers": "1/4@3"}, "naive + flags", SWAAConfig(2048, full_layers="1/4@3")),
        ("naive", None, {"full_layers": "7,1"}, "naive + flags", SWAAConfig(2048, full_layers=[1, 7])),
        ("naive", None, {"full_layers": "5"}, "naive + flags", SWAAConfig(2048, full_layers=[5])),
        ("naive", None, {"dense_tail": 9}, "naive + flags", SWAAConfig(2048, dense_tail=9)),
        (None, None, {"backend": "eager"}, "flags", SWAAConfig(backend="eager")),
    ],
)
def test_precedence(recipe, stored, flags, name, config):
    resolved = resolve_recipe(recipe, model_config=SimpleNamespace(swaa=stored), **flags)
    assert (resolved.name, resolved.config) == (name, config)
    assert bool(resolved.description) == (not flags)


def test_recipe_settings_survive_flags():
    assert resolve_recipe("paper-thinking-speed", sinks=1).chain_of_thought == "thinking"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sinks": 2}, "set window"),
        ({"window": 8, "full_layers": "od"}, "Did you mean 'odd'?"),
        ({"window": 8, "full_layers": "1,x"}, "'x' in '1,x' is no layer number"),
        ({"window": 8, "fa_decode": True, "fa_decode_layers": "1"}, "not both"),
        ({"window": 8, "fa_decode_layers": "odd"}, "'odd' is no list of layer numbers"),
    ],
)
def test_wrong_flags(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_recipe(None, **flags)


@pytest.mark.parametrize(("text", "count"), [("512", 512), ("4k", 4096), (" 2K", 2048), (7, 7), ("0", 0)])
def test_token_count(text, count):
    assert token_count(text) == count


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5k", "4kb", "four"])
def test_no_token_count(text):
    with pytest.raises(ValueError, match="no number of tokens"):
        token_count(text)


# Wording


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (SWAAConfig(), "full attention"),
        (SWAAConfig(window=8, sinks=1, backend="eager"), "window 8, 1 sink, backend eager"),
        (SWAAConfig(8, full_layers="odd", fa_decode=True), "window 8, odd layers full, FA decode"),
        (SWAAConfig(8, full_layers="none", dense_tail=3), "window 8, dense tail 3"),
        (SWAAConfig(8, full_heads={3: [0, 2]}), "window 8, KV heads 3:0,2 full"),
        (SWAAConfig(8, full_heads={layer: [0] for layer in range(9)}), "window 8, 9 KV heads full"),
        (SWAAConfig(8, 2, [0, 3], [1]), "window 8, 2 sinks, layers 0,3 full, FA decode on layers 1"),
    ],
)
def test_short_form(config, text):
    assert short_form(config) == text


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (range(7), "0-6"),
        ([4], "4"),
        ([0, 1, 2, 5, 7, 8], "0-2, 5, 7-8"),
        ([1, 3, 5], "1, 3, 5"),
        (range(1, 30, 2), "1, 3, ..., 29"),
    ],
)
def test_layer_ranges(layers, text):
    assert layer_ranges(list(layers)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0, "0 B"), (999, "999 B"), (999.7, "1 kB"), (188743680, "189 MB"), (4.52e12, "4.52 TB")],
)
def test_quantity(value, text):
    assert quantity(value, "B") == text


@pytest.mark.parametrize(("count", "text"), [(4_022_468_096, "4.02B"), (134_515_008, "135M"), (37_472, "37.5k")])
def test_billions(count, text):
    assert billions(count) == text
