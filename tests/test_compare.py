"""The comparison: its rows against the parts measured one by one, and the model afterwards."""

import math

import pytest
import torch

import swaa
import swaa.compare
from eval_runs import rig, short_books, tiny
from swaa.compare import MEASURES, Settings, choose_recipes, compare, steps
from swaa.config import ConfigError, LayerRule, SWAAConfig
from swaa.cost import active_weights, prefill_flops
from swaa.evaluate import accuracy_interval, generate_answers, perplexity, score_answers
from swaa.recipes import Recipe, load_recipe
from swaa.tasks import TASKS

LENGTH = 320
SETTINGS = Settings(length=LENGTH, samples=3, perplexity_samples=2, prefill_samples=2, batch_size=2)
NAMES = ["full", "naive", "fa-decode", "sinks", "sinks-fa-decode-tail"]
A_TOKEN = 4 * 2 * 2 * 8 * 4  # bytes: layers, keys and values, heads, head size, float32


@pytest.fixture(scope="module")
def short_book():
    with short_books("swaa.tasks.perplexity.prose"):
        yield


@pytest.fixture(scope="module")
def recipes():
    return choose_recipes(NAMES, length=LENGTH, window=40, sinks=4)


@pytest.fixture(scope="module")
def calls():
    """What the progress callback of `outcome` heard."""
    return []


@pytest.fixture(scope="module")
def outcome(short_book, tokenizer, recipes, calls):
    return compare(tiny(), tokenizer, recipes, SETTINGS, name="tiny", progress=lambda *call: calls.append(call))


# The rows


def test_rows_are_in_order_with_full_attention_first(outcome, recipes):
    assert [row["recipe"] for row in outcome.rows] == NAMES
    assert outcome.recipes == recipes
    assert (outcome.model, outcome.settings) == ("tiny", SETTINGS)
    assert outcome.seconds > 0
    for row in outcome.rows:
        assert {"recipe", *MEASURES, *(f"{measure}_ratio" for measure in MEASURES)} <= set(row)
        assert list(row) == list(outcome.rows[0])


def test_ratios_are_to_full_attention(outcome):
    full = outcome.rows[0]
    for row in outcome.rows:
        for measure in ("nll", "perplexity", "prefill_seconds", "kv_bytes"):
            assert row[f"{measure}_ratio"] == row[measure] / full[measure]
        # The random model answers nothing, and nothing can be compared with that.
        assert row["accuracy"] == 0
        assert row["accuracy_ratio"] is None
    assert len({row["nll_ratio"] for row in outcome.rows}) == len(NAMES)


def test_each_row_is_what_its_parts_measure(outcome, recipes, tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=3, seed=0)
    windows = TASKS["perplexity"].samples(tokenizer, length=LENGTH, count=2, seed=0)
    for recipe, row in zip(recipes, outcome.rows, strict=True):
        model = tiny() if recipe.config.window is None else swaa.adapt(tiny(), recipe.config)
        answers = list(score_answers(model, tokenizer, samples))
        assert row["nll"] == pytest.approx(sum(answer.nll for answer in answers) / 3, abs=1e-4)
        losses = list(perplexity(model, windows))
        assert row["perplexity"] == pytest.approx(math.exp(sum(losses) / 2), rel=1e-4)
        assert 0 < row["prefill_seconds"] < 60
        assert (row["accuracy_low"], row["accuracy_high"]) == accuracy_interval(0, 3)
        found = [p for p in outcome.predictions if p["recipe"] == recipe.name]
        assert [p["text"] for p in found] == [answer.text for answer in answers]


def test_kv_bytes_of_each_row(outcome):
    # A layer without FA decode keeps its sinks and what the next row's window still reaches.
    tokens = [LENGTH, 39, LENGTH, 4 + 39, LENGTH]
    assert [row["kv_bytes"] for row in outcome.rows] == [A_TOKEN * count for count in tokens]
    assert [row["kv_bytes_computed"] for row in outcome.rows] == [A_TOKEN * count for count in tokens]
    assert [row["kv_bytes_computed_ratio"] for row in outcome.rows] == [count / LENGTH for count in tokens]


def test_arithmetic_of_each_row(outcome, recipes):
    model = tiny()
    for recipe, row in zip(recipes, outcome.rows, strict=True):
        linear, attention = prefill_flops(model.config, recipe.config.resolve(4), LENGTH, active_weights(model))
        _, full = prefill_flops(model.config, [LayerRule()] * 4, LENGTH, active_weights(model))
        assert row["prefill_flops_ratio"] == pytest.approx((linear + attention) / (linear + full))
    assert outcome.rows[1]["prefill_flops_ratio"] < outcome.rows[0]["prefill_flops_ratio"] == 1


def test_every_prediction_is_kept(outcome, tokenizer):
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=3, seed=0)
    assert [(p["recipe"], p["index"]) for p in outcome.predictions] == [(n, i) for n in NAMES for i in range(3)]
    for prediction in outcome.predictions:
        sample = samples[prediction["index"]]
        assert (prediction["answer"], prediction["meta"]) == (sample.answer, sample.meta)
        assert set(prediction) == {"recipe", "index", "correct", "nll", "text", "answer", "meta"}
        assert len(prediction["text"]) > 0


def test_progress_reaches_the_last_step_of_every_recipe(outcome, calls):
    assert steps(SETTINGS) == 3 + 2 + 1
    for name in NAMES:
        done = [count for recipe, count, _ in calls if recipe == name]
        assert done == sorted(set(done))
        assert (done[0], done[-1]) == (1, steps(SETTINGS))
    order = [recipe for recipe, _, _ in calls]
    assert list(dict.fromkeys(order)) == NAMES
    assert order == sorted(order, key=NAMES.index)


def test_accuracy_and_progress_count_right_answers(monkeypatch, short_book, tokenizer):
    rig(monkeypatch, {None: 3, 40: 1, 80: 0})
    recipes = [load_recipe("full"), *(load_recipe("naive").replace(window=window) for window in (40, 80))]
    calls = []
    settings = Settings(length=LENGTH, samples=4, perplexity_samples=1, prefill_samples=1)
    rows = compare(tiny(), tokenizer, recipes, settings, progress=lambda *call: calls.append(call)).rows
    assert [row["accuracy"] for row in rows] == [0.75, 0.25, 0]
    assert [row["accuracy_ratio"] for row in rows] == [1, 1 / 3, 0]
    assert [(row["accuracy_low"], row["accuracy_high"]) for row in rows] == [accuracy_interval(n, 4) for n in (3, 1, 0)]
    assert [correct for _, _, correct in calls] == [1, 2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert [done for _, done, _ in calls] == [1, 2, 3, 4, 5, 6] * 3


def test_perplexity_is_measured_once_for_recipes_that_differ_in_fa_decode_only(monkeypatch, short_book, tokenizer):
    measured = []

    def spy(model, samples):
        measured.append(swaa.adaptation(model) and swaa.adaptation(model).config)
        return perplexity(model, samples)

    monkeypatch.setattr(swaa.compare, "perplexity", spy)
    rig(monkeypatch, {None: 1, 40: 1})
    names = ["naive", "fa-decode", "sinks-fa-decode", "sinks", "sinks-odd-fa-decode", "sinks-fa-decode-tail"]
    recipes = choose_recipes(names, length=LENGTH, window=40)
    some = Recipe("some", load_recipe("naive").config.replace(window=40, fa_decode=[1, 2]))
    settings = Settings(length=LENGTH, samples=1, perplexity_samples=1, prefill_samples=1)
    rows = compare(tiny(), tokenizer, [*recipes, some], settings).rows
    found = {row["recipe"]: row["perplexity"] for row in rows}
    assert found["naive"] == found["fa-decode"] == found["some"]
    assert found["sinks"] == found["sinks-fa-decode"]
    assert len(set(found.values())) == len(measured) == 5
    configs = {recipe.name: recipe.config for recipe in recipes}
    expected = ["naive", "sinks-fa-decode", "sinks-odd-fa-decode", "sinks-fa-decode-tail"]
    assert measured == [None, *(configs[name] for name in expected)]


def test_free_scoring_generates(short_book, tokenizer):
    settings = Settings(length=LENGTH, samples=2, perplexity_samples=1, prefill_samples=1, scoring="free")
    recipe = load_recipe("sinks-fa-decode").replace(window=40)
    outcome = compare(tiny(), tokenizer, [load_recipe("full"), recipe], settings)
    samples = TASKS["needle"].samples(tokenizer, length=LENGTH, count=2, seed=0)
    expected = generate_answers(swaa.adapt(tiny(), recipe.config), tokenizer, samples)
    assert [p["text"] for p in outcome.predictions if p["recipe"] == recipe.name] == [a.text for a in expected]


def test_task_seed_and_length_choose_the_samples(monkeypatch, short_book, tokenizer):
    timed, measure = [], swaa.compare.measure_prefill

    def spy(model, prompts):
        timed.extend(prompts)
        return measure(model, prompts)

    monkeypatch.setattr(swaa.compare, "measure_prefill", spy)
    rig(monkeypatch, {None: 1})
    settings = Settings("needle-noise", 310, 4, seed=7, perplexity_samples=3, prefill_samples=2)
    outcome = compare(tiny(), tokenizer, [load_recipe("full")], settings)
    samples = TASKS["needle-noise"].samples(tokenizer, length=310, count=4, seed=7)
    assert [p["meta"] for p in outcome.predictions] == [sample.meta for sample in samples]
    assert timed == [sample.prompt_ids for sample in samples[:2]]
    assert outcome.rows[0]["kv_bytes"] == A_TOKEN * 310
    losses = perplexity(tiny(), TASKS["perplexity"].samples(tokenizer, length=310, count=3, seed=7))
    assert outcome.rows[0]["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)


# The model afterwards


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 103)[None]).logits


def check_untouched(model, before):
    assert swaa.adaptation(model) is None
    assert not hasattr(model.config, "swaa")
    assert torch.equal(logits(model), before)


def test_the_model_is_restored(monkeypatch, short_book, tokenizer):
    rig(monkeypatch, {None: 1, 40: 1})
    model = tiny()
    before = logits(model)
    settings = Settings(length=LENGTH, samples=1, perplexity_samples=1, prefill_samples=1)
    compare(model, tokenizer, [load_recipe("full"), load_recipe("naive").replace(window=40)], settings)
    check_untouched(model, before)


@pytest.mark.parametrize("part", ["measure_prefill", "perplexity"])
def test_the_model_is_restored_when_a_recipe_fails_half_way(monkeypatch, short_book, tokenizer, recipes, part):
    model, real = tiny(), getattr(swaa.compare, part)
    before = logits(model)

    def fail(model, *args):
        if swaa.adaptation(model):
            raise RuntimeError("out of memory")
        return real(model, *args)

    monkeypatch.setattr(swaa.compare, part, fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        compare(model, tokenizer, recipes, SETTINGS)
    check_untouched(model, before)


def test_the_model_is_restored_after_an_interrupt(short_book, tokenizer, recipes):
    model = tiny()
    before = logits(model)

    def interrupt(name, done, correct):
        if name == "sinks":
            assert swaa.adaptation(model).config.sinks == 4
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(model, tokenizer, recipes, SETTINGS, progress=interrupt)
    check_untouched(model, before)


def test_what_cannot_work_fails_before_anything_runs(short_book, tokenizer, recipes):
    def never(*call):
        raise AssertionError

    deep = Recipe("deep", SWAAConfig(window=40, full_layers=[9]))
    with pytest.raises(ConfigError, match=r"layers 0 to 3, not \[9\]"):
        compare(tiny(), tokenizer, [*recipes, deep], SETTINGS, progress=never)
    with pytest.raises(ValueError, match="length=50 has no room"):
        compare(tiny(), tokenizer, recipes, Settings(length=50), progress=never)
    with pytest.raises(ValueError, match="length=6000 is out of range for this tokenizer"):
        compare(tiny(), tokenizer, recipes, Settings("needle-noise", 6000, samples=1), progress=never)
