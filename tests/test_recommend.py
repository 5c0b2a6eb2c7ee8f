"""Recommendations: candidates and their costs, the choice by goal, calibration, and the command."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import swaa
from families import TINY, tiny_model
from swaa.attaching import adaptation
from swaa.cli import app
from swaa.cli.loading import load_config
from swaa.cost import Weights
from swaa.models import DEFAULT_MODEL, load_model
from swaa.recipes import Recipe, load_recipe, recipe_names
from swaa.recommend import _SHIPPED, KEPT, calibrate, candidates, recommend

WEIGHTS = Weights(106_203_456, 28_311_552)
GRID = Path(__file__).parents[1] / "benchmarks" / "reproduce" / "table.csv"


@pytest.fixture(scope="module")
def found():
    return candidates(load_config(DEFAULT_MODEL), 8192, WEIGHTS)


def names(candidates):
    return {each.recipe.name: each for each in candidates}


def calibrated(found, **accuracy):
    return [dataclasses.replace(each, accuracy=accuracy.get(each.recipe.name, 0.0)) for each in found]


def test_candidates_have_costs_as_fractions_of_full_attention(found):
    full, *sliding = found
    assert (full.cost.flops, full.cost.attention, full.cost.kv) == (1, 1, 1)
    assert full.kv_bytes == 2 * 3 * 64 * 2 * 30 * 8192
    by_name = names(found)
    assert by_name["constant-memory"].cost.kv == pytest.approx((128 + 1023) / 8192)
    assert by_name["trained-fast"].cost.kv == 1
    assert all(0 < each.cost.flops < 1 for each in sliding)
    assert by_name["trained-fast"].cost.flops < by_name["trained-quality"].cost.flops


def test_layers_chosen_for_another_model_or_for_shorter_prompts_are_no_candidates(found):
    plans = [each for each in found if each.recipe.plan]
    assert {each.recipe.name: each.retrieves for each in plans} == {
        "smollm2-24-heads-released-8k": "untrained",
        "smollm2-8-layers-released-8k": "unknown",
    }
    assert all(each.recipe == load_recipe(each.recipe.name) for each in plans)
    shorter = names(candidates(load_config(DEFAULT_MODEL), 2048, WEIGHTS))
    assert list(shorter).index("smollm2-2-layers-tail") < list(shorter).index("smollm2-24-heads-released-8k")
    other = candidates(tiny_model().config, 8192, Weights(1000, 0))
    assert not any(each.recipe.plan for each in other)


def test_what_recipes_kept_is_what_the_grid_measured():
    """Of the row with the same methods, of the weights that it is about."""
    with GRID.open() as file:
        rows = [row for row in csv.DictReader(file) if row["window"] == "256" and row["sinks"] == "64"]
    layers = {"none": "none", "1/4": "1 in 4", "odd": "1 in 2"}
    for name, retrieves, kept in _SHIPPED:
        config = load_recipe(name).config
        if name == "sinks-odd":  # the paper's figure: 63.6 of 74.6
            assert kept == round(63.6 / 74.6, 2)
            continue
        weights = "smollm2-fa-decode" if retrieves == "trained" else "original"
        wanted = (weights, layers[config.full_layers or "none"], str(bool(config.fa_decode)), str(config.dense_tail))
        (row,) = (row for row in rows if (row["weights"], row["layers"], row["fa_decode"], row["tail"]) == wanted)
        assert f"{float(row['of_full']):.2f}" == f"{kept:.2f}", name
        assert f"{kept:.2f} of full attention's score" in load_recipe(name).provenance
        if retrieves == "untrained":
            assert kept >= KEPT


def test_what_plans_kept_is_what_selection_measured():
    plans = [recipe for recipe in map(load_recipe, recipe_names()) if "accuracy_ratio" in recipe.plan]
    assert len(plans) >= 5
    for plan in plans:
        file = re.search(r"\((benchmarks/\S+[.]csv)\)", plan.provenance)[1]
        with (GRID.parents[2] / file).open() as rows:
            heads = [f"{layer}:{head}" for layer, each in plan.config.full_heads for head in each]
            chosen = " ".join(heads or map(str, plan.config.full_layers))
            ratios = {row["accuracy_ratio"] for row in csv.DictReader(rows) if row["layers"] == chosen}
        assert {round(float(ratio), 2) for ratio in ratios} == {plan.plan["accuracy_ratio"]}, plan.name
        assert f"{plan.plan['accuracy_ratio']} of full attention's accuracy on needles" in plan.provenance


@pytest.mark.parametrize(("length", "window", "sinks"), [(100, 64, 16), (2048, 256, 64), (131072, 4096, 128)])
def test_the_window_grows_with_the_length(length, window, sinks):
    config = names(candidates(tiny_model().config, length, Weights(1000, 0)))["constant-memory"].recipe.config
    assert (config.window, config.sinks) == (window, sinks)


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="several are called 'sinks-odd'"):
        candidates(tiny_model().config, 100, Weights(1000, 0), more=[load_recipe("sinks-odd")])


def test_without_calibration_the_choice_is_among_what_is_known_to_retrieve(found):
    speed, quality, memory = (recommend(found, goal).chosen for goal in ("speed", "quality", "memory"))
    untrained = [each for each in found[1:] if each.retrieves == "untrained"]
    assert speed.cost.flops == min(each.cost.flops for each in untrained)
    assert quality.kept == max(each.kept for each in untrained)
    assert memory.cost.kv == min(each.cost.kv for each in untrained)
    assert any("not measured here" in reason for reason in recommend(found, "speed").reasons)


def test_no_recipe_for_any_model_releases_and_retrieves_untrained():
    found = candidates(tiny_model().config, 8192, Weights(1000, 0))
    outcome = recommend(found, "memory")
    assert outcome.chosen is names(found)["sinks-odd"]
    assert any("swaa train" in reason for reason in outcome.reasons)


def test_a_calibration_decides(found):
    measured = calibrated(found, full=0.8, **{"constant-memory": 0.5, "sinks-odd": 0.73, "untrained-quality": 0.79})
    assert recommend(measured, "memory").chosen.recipe.name == "sinks-odd"
    assert recommend(measured, "speed").chosen.recipe.name == "sinks-odd"
    assert recommend(measured, "quality").chosen.recipe.name == "untrained-quality"
    low = calibrated(found, full=0.8, **{"sinks-odd": KEPT * 0.8 - 0.01})
    outcome = recommend(low, "memory")
    assert outcome.chosen is low[0]
    assert "larger window" in outcome.reasons[0]


def test_full_attention_where_a_window_saves_nothing():
    outcome = recommend(candidates(load_config(DEFAULT_MODEL), 128, WEIGHTS), "speed")
    assert outcome.chosen.recipe.name == "full"
    assert "not worth an adaptation" in outcome.reasons[0]


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_recipes_that_change_nothing_are_no_candidates(family):
    """Of these families the odd layers are the only ones without a window of their own."""
    config = tiny_model(family).config
    plan = Recipe("mine", load_recipe("sinks-odd").config)
    found = candidates(config, 4096, Weights(1000, 0), more=[plan])
    shown = names(found)
    assert not {"sinks-odd", "trained-quality", "untrained-quality"} & shown.keys()
    assert {"constant-memory", "untrained-balanced", "mine"} < shown.keys()
    for goal in ("speed", "quality"):
        outcome = recommend(found, goal)
        assert outcome.chosen.cost.flops < KEPT
        assert outcome.reasons[0].startswith(f"{outcome.chosen.recipe.name}: ")
    outcome = recommend(found, "memory")
    assert outcome.chosen is found[0]
    assert outcome.reasons[0].startswith("No recipe that saves KV bytes here is known to retrieve, fine-tuned or")
    # What one names oneself is shown, but not chosen however accurate.
    same = calibrated(found, full=0.8, mine=1.0, **{"untrained-fast": 0.79})
    assert recommend(same, "quality").chosen.recipe.name == "untrained-fast"


@pytest.mark.parametrize("goal", ["speed", "quality", "memory"])
def test_a_prompt_within_the_window_has_no_candidates(goal):
    found = candidates(tiny_model().config, 64, Weights(1000, 0))
    for each in (found, calibrated(found, full=0.8)):
        outcome = recommend(each, goal)
        assert outcome.candidates == [outcome.chosen]
        assert "the prompt fits into the window" in outcome.reasons[0]


@pytest.mark.parametrize("goal", ["speed", "quality"])
def test_where_the_tail_covers_what_the_window_leaves_out_only_training_helps(goal):
    """The untrained recipes' tail of 64 rows and their window of 64 are all of the prompt."""
    found = candidates(tiny_model().config, 128, Weights(1000, 0))
    assert names(found)["trained-fast"].cost.flops < KEPT
    outcome = recommend(found, goal)
    assert outcome.chosen is found[0]
    assert "None" not in outcome.reasons[0]
    assert "unless fine-tuned under (`swaa train`)" in outcome.reasons[0]


def test_unknown_goal(found):
    with pytest.raises(ValueError, match="speed, quality, memory"):
        recommend(found, "beauty")


def test_calibration_tells_recipes_apart_and_restores_the_model():
    model, tokenizer = load_model(device="cpu", dtype="float32")
    good = Recipe("good", swaa.SWAAConfig(window=64, sinks=16, fa_decode=True, dense_tail=64))
    bad = Recipe("bad", swaa.SWAAConfig(window=8))
    full, *_, mine, worse = candidates(model.config, 256, WEIGHTS, more=[good, bad])
    measured = calibrate(model, tokenizer, [full, mine, worse], length=256, samples=2)
    accuracies = [each.accuracy for each in measured]
    assert adaptation(model) is None
    assert accuracies[0] > 0.5
    assert accuracies[1] > accuracies[2] == 0
    assert recommend(measured, "speed").chosen.recipe.name != "bad"


def run(*words):
    return CliRunner().invoke(app, ["recommend", *map(str, words)], env={"COLUMNS": "200"})


def test_the_command_works_from_a_configuration_alone(tmp_path):
    tiny_model().config.save_pretrained(tmp_path / "model")
    file = tmp_path / "mine.yaml"
    result = run("-m", tmp_path / "model", "-n", "4k", "--goal", "memory", "-o", file)
    assert result.exit_code == 0, result.output
    assert "Recommended: sinks-odd" in result.output
    assert f"{TINY['max_position_embeddings']} positions" in result.stderr
    written = load_recipe(file)
    assert written.config == swaa.SWAAConfig(window=512, sinks=128, full_layers="odd")
    assert "--goal memory" in written.provenance
    again = run("-m", tmp_path / "model", "-n", "4k", "-o", file)
    assert again.exit_code == 2
    assert "does not exist yet" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-n", "0"], "1 token or more"),
        (["-n", "1k", "--goal", "beauty"], "--goal 'beauty'"),
        (["-n", "1k", "--calibrate", "--samples", "0"], "--samples 0"),
        (["-n", "1k", "-r", "nothing"], "unknown recipe"),
        (["-n", "1k", "-m", "/nowhere/model"], "cannot read the configuration"),
    ],
)
def test_wrong_words_end_in_one_line(words, message):
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.stderr
