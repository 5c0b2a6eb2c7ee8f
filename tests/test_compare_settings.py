"""What a comparison is asked for: its settings, and the recipes that it chooses."""

import json

import pytest

from swaa.compare import DEFAULT_PLAN, DEFAULT_RECIPES, Settings, choose_recipes, steps
from swaa.config import ConfigError, SWAAConfig
from swaa.models import DEFAULT_MODEL
from swaa.recipes import load_recipe
from swaa.tasks import TASKS

# Settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "nedle"}, r"unknown task 'nedle'\. Did you mean 'needle'\? Known: .*, needle, "),
        ({"task": "perplexity"}, "task 'perplexity' retrieves nothing"),
        ({"task": "ruler-vt"}, "task 'ruler-vt' has only free answers: measure it with `swaa eval`"),
        ({"scoring": "fre"}, "scoring='fre': use one of forced, free"),
        ({"length": 0}, "length=0: use 1 or more"),
        ({"samples": 0}, "samples=0: use 1 or more"),
        ({"samples": -3}, "samples=-3: use 1 or more"),
        ({"batch_size": 0}, "batch_size=0: use 1 or more"),
        ({"perplexity_samples": 0}, "perplexity_samples=0: use 1 or more"),
        ({"prefill_samples": 0}, "prefill_samples=0: use 1 or more"),
    ],
)
def test_settings_refuse_what_cannot_be_compared(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_settings_take_every_task_that_retrieves():
    kept = [Settings(task).task for task in TASKS if TASKS[task].kind == "retrieval"]
    assert kept == ["needle", "needle-multikey", "needle-noise"]
    assert steps(Settings(samples=20, perplexity_samples=5)) == 26


# The recipes of a comparison


def test_default_recipes_have_a_window_of_an_eighth_of_the_length():
    recipes = choose_recipes(None, length=1000)
    assert [recipe.name for recipe in recipes] == list(DEFAULT_RECIPES)
    assert [recipe.config.window for recipe in recipes] == [None, *[125] * 6]
    for recipe in recipes[1:]:
        assert recipe == load_recipe(recipe.name).replace(window=125)
    assert choose_recipes(None, length=1000, model="other") == recipes
    *same, planned = choose_recipes(None, length=1000, model=DEFAULT_MODEL)
    assert same == recipes
    assert planned == load_recipe(DEFAULT_PLAN).replace(window=125)
    assert planned.plan["model"] == "SmolLM2-135M-Instruct"
    assert {recipe.config.window for recipe in choose_recipes(None, length=3)} == {None, 1}
    assert {recipe.config.window for recipe in choose_recipes(None, length=1000, window=77)} == {None, 77}


def test_named_recipes_keep_their_own_window():
    recipes = choose_recipes(["sinks", "naive"], length=1000)
    assert recipes == [load_recipe("full"), load_recipe("sinks"), load_recipe("naive")]


@pytest.mark.parametrize(("names", "order"), [(["naive"], "naive"), (["naive", "full", "sinks"], "naive sinks")])
def test_full_attention_is_added_or_moved_to_the_front(names, order):
    assert [recipe.name for recipe in choose_recipes(names, length=100)] == ["full", *order.split()]
    assert [recipe.name for recipe in choose_recipes([], length=100)] == ["full"]


def test_window_and_sinks_replace_those_that_there_are():
    names = ["naive", "sinks-fa-decode", "full", "sinks-odd-fa-decode"]
    recipes = choose_recipes(names, length=1000, window=60, sinks=5)
    assert [(r.name, r.config.window, r.config.sinks) for r in recipes] == [
        ("full", None, 0),
        ("naive", 60, 0),
        ("sinks-fa-decode", 60, 5),
        ("sinks-odd-fa-decode", 60, 5),
    ]
    only = choose_recipes(["sinks"], length=1000, sinks=0)[1]
    assert (only.config.window, only.config.sinks) == (2048, 0)
    with pytest.raises(ConfigError, match="window=0"):
        choose_recipes(["naive"], length=1000, window=0)
    with pytest.raises(ConfigError, match="sinks=-1"):
        choose_recipes(["sinks"], length=1000, sinks=-1)


def test_recipes_from_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("config: {window: 30, dense_tail: 2}")
    (tmp_path / "baseline.yaml").write_text("config: {window: null}\ngeneration: {chain_of_thought: prompt}")
    many = [{"name": "wide", "config": {"window": 90}}, {"config": {"window": 10}}, {"window": 20}]
    (tmp_path / "many.json").write_text(json.dumps(many))
    reference = [
        {"swaa_config": {"sliding_window_size": 2000, "keep_first": 10, "force_fa_decode": True}},
        {"swaa_config": {"sliding_window_size": None, "keep_first": 10, "non_sliding_layers": [1]}},
    ]
    (tmp_path / "setting.json").write_text(json.dumps(reference))
    files = [str(tmp_path / name) for name in ("mine.yaml", "many.json", "setting.json")]
    recipes = choose_recipes([*files, "sinks"], length=1000)
    names = ["setting[1]", "mine", "wide", "many[1]", "many[2]", "setting[0]", "sinks"]
    assert [recipe.name for recipe in recipes] == names
    assert [recipe.config.window for recipe in recipes] == [None, 30, 90, 10, 20, 2000, 2048]
    assert recipes[5].config == SWAAConfig(window=2000, sinks=10, fa_decode=True)
    assert choose_recipes([files[0], str(tmp_path / "baseline.yaml")], length=9)[0].name == "baseline"


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"unknown recipe 'sink'\. Did you mean 'sinks'"):
        choose_recipes(["naive", "sink"], length=1000)
