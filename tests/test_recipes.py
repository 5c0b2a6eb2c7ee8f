"""Recipes: the shipped files, files of one's own, and errors that name the fix."""

import json
from dataclasses import replace

import pytest
import yaml
from transformers import AutoConfig

from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.recipes import CHAIN_OF_THOUGHT, FOLDER, Recipe, load_recipe, load_recipes, model_shape, recipe_names

SHIPPED = recipe_names()


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_names_are_the_files_of_the_folder():
    assert sorted(p.stem for p in FOLDER.iterdir() if p.suffix in (".yaml", ".json")) == SHIPPED
    assert {"full", "naive", "sinks", "fa-decode", "sinks-fa-decode", "sinks-odd-fa-decode"} < set(SHIPPED)
    assert sorted(SHIPPED) == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_is_complete(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert 10 < len(recipe.description) < 110
    assert "\n" not in recipe.description
    assert len(recipe.provenance) > 3
    assert recipe.chain_of_thought in CHAIN_OF_THOUGHT
    # Nothing of the file is lost on the way.
    (file,) = (path for path in FOLDER.iterdir() if path.stem == name)
    written = yaml.safe_load(file.read_text())  # JSON is YAML too
    assert set(written) <= {"description", "config", "generation", "provenance", "plan"}
    assert recipe.plan == written.get("plan", {})
    assert recipe.config == SWAAConfig(**written["config"])
    assert recipe.generation == written.get("generation", {})


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("layers", [28, 30, 36])
def test_a_shipped_recipe_fits_models_of_any_depth(name, layers):
    config = load_recipe(name).config
    rules = config.resolve(layers)
    assert len(rules) == layers
    sliding = LayerRule(config.window, config.sinks, bool(config.fa_decode), config.dense_tail)
    full, heads = set(config.full_layer_numbers(layers)), dict(config.full_heads)
    assert list(rules) == [
        LayerRule() if layer in full else replace(sliding, full_heads=heads.get(layer, ())) for layer in range(layers)
    ]
    assert sliding in rules


def test_what_the_names_promise():
    configs = {name: load_recipe(name).config for name in SHIPPED}
    assert configs["full"] == SWAAConfig()
    assert configs["naive"] == SWAAConfig(window=2048)
    for name, config in configs.items():
        if not name.startswith(("paper-", "smollm2-", "trained-", "untrained-", "constant-")):
            assert (config.sinks > 0) == ("sinks" in name), name
            assert config.fa_decode == ("fa-decode" in name), name
            assert (config.full_layers == "odd") == ("odd" in name), name
            assert (config.dense_tail > 0) == ("tail" in name), name
    for trained, tail in (("trained", 0), ("untrained", 64)):
        for purpose, layers in (("fast", ()), ("balanced", "1/4"), ("quality", "odd")):
            wanted = SWAAConfig(window=4096, sinks=128, full_layers=layers, fa_decode=True, dense_tail=tail)
            assert configs[f"{trained}-{purpose}"] == wanted
    assert configs["constant-memory"] == SWAAConfig(window=4096, sinks=128)
    for name in ("paper-thinking-speed", "paper-thinking-quality"):
        assert load_recipe(name).chain_of_thought == "thinking"
    assert load_recipe("naive").chain_of_thought == "none"


SHAPE = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


@pytest.mark.parametrize("name", [name for name in SHIPPED if load_recipe(name).plan])
def test_a_plan_fits_its_model_only(name):
    recipe = load_recipe(name)
    own = AutoConfig.for_model(**SHAPE)
    assert model_shape(own) == recipe.plan["shape"]
    recipe.check_model(own)
    recipe.replace(window=64, sinks=3).check_model(own)
    other = AutoConfig.for_model(**SHAPE | {"num_hidden_layers": 32})
    for changed in (recipe, recipe.replace(window=64)):
        with pytest.raises(ConfigError, match=r"num_hidden_layers 30.* another model .*layers 32.*swaa select"):
            changed.check_model(other)
    # Layers that one names oneself are one's own business.
    recipe.replace(full_layers=[1, 2], full_heads={}).check_model(other)
    load_recipe("sinks").check_model(other)


def everything():
    config = SWAAConfig(512, 3, [1, 5], fa_decode=[0, 2], dense_tail=7, backend="eager", release_kv=False)
    return Recipe("mine", config, "a: colon, a 'quote' and ünïcode", {"chain_of_thought": "prompt"}, "x" * 200)


@pytest.mark.parametrize("recipe", [*map(load_recipe, SHIPPED), everything()], ids=lambda recipe: recipe.name)
def test_round_trip(tmp_path, recipe):
    path = write(tmp_path / f"{recipe.name}.yaml", recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert load_recipe(str(path)) == recipe
    assert load_recipe(write(tmp_path / f"{recipe.name}.json", recipe.to_dict())) == recipe
    assert Recipe.from_dict(recipe.name, yaml.safe_load(recipe.to_yaml())) == recipe


def test_yaml_spells_every_field_out_in_order():
    content = yaml.safe_load(load_recipe("naive").to_yaml())
    assert list(content) == ["description", "config", "generation", "provenance"]
    assert list(content["config"]) == list(SWAAConfig().to_dict())


def test_replace_changes_the_configuration_only():
    recipe = everything()
    changed = recipe.replace(window=64, sinks=0)
    assert changed.config == recipe.config.replace(window=64, sinks=0)
    assert (changed.name, changed.generation, changed.provenance) == ("mine", recipe.generation, recipe.provenance)
    with pytest.raises(ConfigError, match="Did you mean 'window'"):
        recipe.replace(windw=3)


def test_a_bare_configuration_is_a_recipe(tmp_path):
    path = write(tmp_path / "mine.yml", "window: 12\nsinks: 3\n")
    assert load_recipe(path) == Recipe("mine", SWAAConfig(window=12, sinks=3))


def test_names_in_a_list(tmp_path):
    content = [
        {"name": "wide", "description": "first", "config": {"window": 9}},
        {"config": {"window": 5}, "generation": {"chain_of_thought": "prompt"}},
        {"window": 7, "sinks": 1},
        {"swaa_config": {"sliding_window_size": 8, "keep_first": 2, "force_fa_decode": True}, "model_list": ["a"]},
        {"sliding_window_size": None, "keep_first": 2},
    ]
    for file in (tmp_path / "mine.json", tmp_path / "mine.yaml"):
        recipes = load_recipes(write(file, content))
        assert [recipe.name for recipe in recipes] == ["wide", "mine[1]", "mine[2]", "mine[3]", "mine[4]"]
        assert [recipe.config for recipe in recipes] == [
            SWAAConfig(window=9),
            SWAAConfig(window=5),
            SWAAConfig(window=7, sinks=1),
            SWAAConfig(window=8, sinks=2, fa_decode=True),
            SWAAConfig(),
        ]
        assert recipes[0].description == "first"
        assert recipes[1].chain_of_thought == "prompt"
        with pytest.raises(ConfigError, match=r"mine\.\w+ holds 5 configurations where one recipe is needed"):
            load_recipe(file)
    one = write(tmp_path / "one.json", content[:1])
    assert load_recipe(one).name == "wide"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"config": {"window": 4}, "descriptoin": "x"},
            ["mine", "'descriptoin'", "Did you mean 'description'", "Known"],
        ),
        ({"config": {"window": 4}, "name": "x"}, ["unknown key 'name'", "Known: config, description"]),
        ({"config": {"windw": 4}}, ["'windw'", "Did you mean 'window'"]),
        ({"windw": 4}, ["'windw'", "Did you mean 'window'"]),
        ({"config": {"window": 0}}, ["window=0", "1 or more"]),
        ({"config": {"sinks": 4}}, ["sinks=4", "set window"]),
        ({"config": 3}, ["mapping", "int"]),
        ({"config": None}, ["mapping", "NoneType"]),
        ([3], ["mapping", "int"]),
        ("text", ["mapping", "str"]),
        (
            {"config": {}, "generation": {"temperature": 1}},
            ["mine", "generation setting 'temperature'", "known: chain_of_thought"],
        ),
        (
            {"config": {}, "generation": {"chain_of_thought": "thnking"}},
            ["mine", "chain_of_thought='thnking'", "'none', 'prompt', 'thinking'"],
        ),
        ([{"config": {}, "generation": {"chain_of_thought": True}}], ["mine[0]", "chain_of_thought=True"]),
        ([{"config": {}}, {"name": "x", "config": {}, "extra": 1}], ["recipe x", "'extra'"]),
        ({"config": {}, "plan": {"shape": 3}}, ["mine", "the plan's shape is 3", "leave it out"]),
        ([{"config": {}, "plan": 3}], ["mine[0]", "plan is no mapping"]),
    ],
)
def test_wrong_files_name_what_is_wrong(tmp_path, content, words):
    path = write(tmp_path / "mine.json", json.dumps(content))
    with pytest.raises(ConfigError) as error:
        load_recipes(path)
    for word in (f"{path}: ", *words):
        assert word in str(error.value)


def test_unknown_recipe_and_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown recipe 'nave'\. Did you mean 'naive'") as error:
        load_recipe("nave")
    for name in SHIPPED:
        assert name in str(error.value)
    assert "or give a .yaml or .json file" in str(error.value)
    with pytest.raises(ConfigError, match=r"unknown recipe '\.\./recipes/naive'"):
        load_recipe("../recipes/naive")
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.yaml"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(write(tmp_path / "broken.yaml", "a: ["))


def test_recipes_compare_by_value_and_are_hashable():
    assert load_recipe("naive") == load_recipe("naive")
    assert len({load_recipe("naive"), load_recipe("naive"), load_recipe("sinks")}) == 2
    # Generation settings are no part of the hash, but of equality.
    thinking = Recipe("a", SWAAConfig(), generation={"chain_of_thought": "thinking"})
    assert thinking != Recipe("a", SWAAConfig())
    assert len({thinking, Recipe("a", SWAAConfig())}) == 2
