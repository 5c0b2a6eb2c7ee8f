"""Recommendations: candidates and their costs, the choice by goal, calibration, and the command."""

import dataclasses

import pytest
from typer.testing import CliRunner

import swaa
from families import TINY, tiny_model
from swaa.attaching import adaptation
from swaa.cli import app
from swaa.cli.loading import load_config
from swaa.models import DEFAULT_MODEL, load_model
from swaa.recipes import Recipe, load_recipe
from swaa.recommend import KEPT, calibrate, candidates, recommend

PARAMETERS = 134_515_008


@pytest.fixture(scope="module")
def found():
    return candidates(load_config(DEFAULT_MODEL), 8192, PARAMETERS)


def names(candidates):
    return {each.recipe.name: each for each in candidates}


def calibrated(found, **accuracy):
    return [dataclasses.replace(each, accuracy=accuracy.get(each.recipe.name, 0.0)) for each in found]


def test_candidates_have_costs_as_fractions_of_full_attention(found):
    full, *sliding = found
    assert (full.cost.flops, full.cost.attention, full.cost.kv) == (1, 1, 1)
    assert full.kv_bytes == 2 * 3 * 64 * 2 * 30 * 8192
    by_name = names(found)
    assert by_name["sinks"].cost.kv == pytest.approx((128 + 1023) / 8192)
    assert by_name["sinks-fa-decode"].cost.kv == 1
    assert all(0 < each.cost.flops < 1 for each in sliding)
    assert by_name["sinks-fa-decode"].cost.flops < by_name["sinks-odd-fa-decode"].cost.flops


def test_layers_chosen_for_another_model_are_no_candidates(found):
    assert "smollm2-4-layers + tail" in names(found)
    other = candidates(tiny_model().config, 8192, 1000)
    assert not any(each.recipe.plan for each in other)


@pytest.mark.parametrize(("length", "window", "sinks"), [(100, 64, 16), (2048, 256, 64), (131072, 4096, 128)])
def test_the_window_grows_with_the_length(length, window, sinks):
    config = names(candidates(tiny_model().config, length, 1000))["sinks"].recipe.config
    assert (config.window, config.sinks) == (window, sinks)


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="several are called 'sinks'"):
        candidates(tiny_model().config, 100, 1000, more=[load_recipe("sinks")])


def test_without_calibration_the_choice_is_among_what_is_known_to_retrieve(found):
    by_name = names(found)
    speed, quality, memory = (recommend(found, goal).chosen for goal in ("speed", "quality", "memory"))
    untrained = [each for each in found[1:] if each.retrieves == "untrained"]
    assert speed.cost.flops == min(each.cost.flops for each in untrained)
    assert quality.cost.flops == max(each.cost.flops for each in untrained)
    # Nothing that releases is known to retrieve untrained.
    assert memory is by_name["sinks-odd"]
    assert any("swaa train" in reason for reason in recommend(found, "memory").reasons)
    assert any("not measured on this model" in reason for reason in recommend(found, "speed").reasons)


def test_a_calibration_decides(found):
    measured = calibrated(found, full=0.8, sinks=0.5, **{"sinks-odd": 0.73, "sinks-odd-fa-decode": 0.79})
    assert recommend(measured, "memory").chosen.recipe.name == "sinks-odd"
    assert recommend(measured, "speed").chosen.recipe.name == "sinks-odd"
    assert recommend(measured, "quality").chosen.recipe.name == "sinks-odd-fa-decode"
    low = calibrated(found, full=0.8, **{"sinks-odd": KEPT * 0.8 - 0.01})
    outcome = recommend(low, "memory")
    assert outcome.chosen is low[0]
    assert "larger window" in outcome.reasons[0]


def test_full_attention_where_a_window_saves_nothing():
    outcome = recommend(candidates(load_config(DEFAULT_MODEL), 128, PARAMETERS), "speed")
    assert outcome.chosen.recipe.name == "full"
    assert "not worth an adaptation" in outcome.reasons[0]


def test_unknown_goal(found):
    with pytest.raises(ValueError, match="speed, quality, memory"):
        recommend(found, "beauty")


def test_calibration_tells_recipes_apart_and_restores_the_model():
    model, tokenizer = load_model(device="cpu", dtype="float32")
    good = Recipe("good", swaa.SWAAConfig(window=64, sinks=16, fa_decode=True, dense_tail=64))
    bad = Recipe("bad", swaa.SWAAConfig(window=8))
    full, *_, mine, worse = candidates(model.config, 256, PARAMETERS, more=[good, bad])
    measured = calibrate(model, tokenizer, [full, mine, worse], length=256, samples=3)
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
