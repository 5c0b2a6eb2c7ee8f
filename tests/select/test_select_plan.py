"""Layer plans: files that are recipes everywhere, for the model that they were made for."""

import dataclasses
import json
import re

import pytest
from typer.testing import CliRunner

from swaa.cli import app
from swaa.compare import Settings, choose_recipes, compare
from swaa.config import ConfigError, SWAAConfig, load_settings
from swaa.recipes import load_recipe, load_recipes, model_shape
from swaa.select.plan import LayerPlan

RECIPE = load_recipe("sinks-fa-decode").replace(window=32)


@pytest.fixture
def plan(tmp_path):
    config = RECIPE.config.replace(full_layers=[1, 3])
    scores = {0: 0.1, 1: 0.5, 2: -0.2, 3: 0.4}
    facts = {"source": "built-in", "length": 900, "samples": 6, "seed": 0, "sha256": "f"}
    plan = LayerPlan(config, (1, 3), scores, "nll", 2, "mine", facts, "tiny", "weights-1", {"nll": 1.5}, 30, 2.5)
    plan.save(tmp_path / "plan.json")
    return plan


def test_a_plan_is_what_it_was(tmp_path, plan):
    assert LayerPlan.load(tmp_path / "plan.json") == plan
    content = json.loads((tmp_path / "plan.json").read_text())
    wanted = {"layers", "scores", "method", "budget", "recipe", "calibration", "model", "model_revision", "environment"}
    assert wanted | {"seconds", "command", "passes", "measured", "format", "unit", "shape"} == content["plan"].keys()


def test_a_plan_is_a_recipe_everywhere(tmp_path, plan, folder):
    path = tmp_path / "plan.json"
    assert load_recipe(path).config == plan.config
    assert load_recipes(path)[0].plan["method"] == "nll"
    assert load_recipe(path).to_dict()["plan"]["scores"] == {"0": 0.1, "1": 0.5, "2": -0.2, "3": 0.4}
    assert "plan" not in load_recipe("full").to_dict()
    assert SWAAConfig.load(path) == plan.config
    assert load_settings(path) == [plan.config]
    assert SWAAConfig(window=8, full_layers=str(path)).full_layers == (1, 3)
    assert SWAAConfig(window=8, full_layers=path).to_dict()["full_layers"] == [1, 3]
    assert choose_recipes([str(path)], length=900)[1].config == plan.config
    (tmp_path / "mine.yaml").write_text(f"window: 8\nfull_layers: {path}\n")
    assert load_recipe(tmp_path / "mine.yaml").config == SWAAConfig(window=8, full_layers=[1, 3])
    for options in (["-r", path], ["--window", 8, "--full-layers", path]):
        shown = CliRunner().invoke(app, [str(x) for x in ("inspect", "-m", folder, "--json", *options)])
        assert json.loads(shown.stdout)["recipe"]["config"]["full_layers"] == [1, 3]


def test_a_plan_refuses_another_model(tmp_path, plan, folder, model, tokenizer):
    path = tmp_path / "plan.json"
    shape = model_shape(model.config)
    dataclasses.replace(plan, shape=shape).save(path)
    inspect = ("inspect", "-m", str(folder), "-r", str(path))
    assert CliRunner().invoke(app, inspect).exit_code == 0
    dataclasses.replace(plan, shape=shape | {"hidden_size": 64}).save(path)
    refused = CliRunner().invoke(app, inspect)
    assert refused.exit_code == 2
    assert "layers chosen for tiny (" in refused.stderr
    assert CliRunner().invoke(app, [*inspect, "--full-layers", "1"]).exit_code == 0
    with pytest.raises(ConfigError, match="layers chosen for tiny"):
        compare(model, tokenizer, [load_recipe("full"), load_recipe(path)], Settings(length=300))


def test_wrong_plans(tmp_path, plan):
    path = tmp_path / "plan.json"
    content = json.loads(path.read_text())
    for change, message in (
        ({"plan": content["plan"] | {"format": 9}}, "format 9, and this version reads 1"),
        ({"plan": {"layers": [1]}}, "is no layer plan: let `swaa select` write one"),
        ({"config": content["config"] | {"full_layers": [2]}}, "was edited by hand"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(ConfigError, match=re.escape(message)):
            LayerPlan.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(ConfigError, match="holds no layer plan"):
        SWAAConfig(window=8, full_layers=str(path))
    with pytest.raises(ConfigError, match="cannot read"):
        SWAAConfig(window=8, full_layers="missing.json")
    with pytest.raises(ConfigError, match="plan is no mapping"):
        load_recipe("full").from_dict("x", {"config": {}, "plan": [1]})
