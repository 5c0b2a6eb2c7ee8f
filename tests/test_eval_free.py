"""Evaluation runs with free answers: fractions and their intervals, chain of thought, and texts without an answer."""

import numpy as np
import pytest
from transformers import StaticCache

from eval_runs import VOCABULARY, lines, parrot, registering, short_books, tiny
from swaa.compare import choose_recipes
from swaa.evaluate import accuracy_interval
from swaa.runs import RunFolder, RunSettings, run
from swaa.runs.summary import score_interval

LENGTH = 320
RECIPES = choose_recipes(["naive"], length=LENGTH, window=40)


@pytest.fixture
def echo(monkeypatch):
    """Registers a task of known words."""
    return registering(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def short_book():
    with short_books("swaa.tasks.perplexity.prose", "swaa.runs.engine.prose"):
        yield


# Free answers


def free(tmp_path, tokenizer, settings, model=None, **options):
    """Run full attention and the naive window; return the lines and the summary."""
    path = tmp_path / "run"
    summary = run(model or parrot("12?"), tokenizer, RECIPES, settings, RunFolder(path), **options)
    return lines(path), summary


def test_generation_is_scored_by_the_task_with_fractions(tmp_path, tokenizer, echo):
    # After "?" the model says "12?12?", after "x" "xxxxxx": three of four strings, and none.
    settings = RunSettings(("echo",), (48,), samples=9, batch_size=3, prefill_runs=0)
    rows, summary = free(tmp_path, tokenizer, settings)
    assert [(row["output"], row["score"]) for row in rows] == [("12?12?", 0.75), ("xxxxxx", 0.0)] * 4
    # The data set holds four samples of the nine.
    assert [row["count"] for row in summary] == [4, 4]
    for row in summary:
        assert row["score"] == 0.375
        assert 0 <= row["low"] < 0.375 < row["high"] <= 0.75
        assert (row["prefill_seconds"], row["nll"], row["score_ratio"]) == (None, None, 1.0)


def test_needles_are_generated_if_asked_for(tmp_path, tokenizer):
    settings = RunSettings(("needle",), (LENGTH,), samples=2, scoring="free", prefill_runs=0)
    rows, _ = free(tmp_path, tokenizer, settings, model=tiny())
    assert {len(tokenizer(row["output"])["input_ids"]) > 20 for row in rows} == {True}
    assert {row["nll"] for row in rows} == {None}


def test_a_static_cache_writes_the_same(tmp_path, tokenizer, monkeypatch):
    found, caches = [], []
    init = StaticCache.__init__
    monkeypatch.setattr(StaticCache, "__init__", lambda *args, **kwargs: caches.append(1) or init(*args, **kwargs))
    for static in (False, True):
        settings = RunSettings(
            ("needle",), (LENGTH,), samples=2, batch_size=2, scoring="free", prefill_runs=0, static_cache=static
        )
        rows, _ = free(tmp_path / str(static), tokenizer, settings, model=tiny())
        found.append((len(caches), [row["output"] for row in rows]))
    assert found[0][1] == found[1][1]
    # One for each recipe, full attention among them.
    assert [number for number, _ in found] == [0, len({row["recipe"] for row in rows})]


def test_chain_of_thought_is_a_dimension(tmp_path, tokenizer, echo):
    # "Answer:2" again and again in the room for reasoning, and the end of the text once.
    settings = RunSettings(
        ("echo", "perplexity"), (60,), samples=2, reasoning=("none", "prompt"), reasoning_tokens=40, prefill_runs=0
    )
    rows, summary = free(tmp_path, tokenizer, settings, model=parrot("?ĊAnswer:12"))
    cells = [(row["task"], row["reasoning"]) for row in summary if row["recipe"] == "full"]
    assert cells == [("echo", "none"), ("echo", "prompt"), ("perplexity", "none")]
    without, asked = (
        [row for row in rows if (row["recipe"], row["task"], row["reasoning"]) == ("full", "echo", way)]
        for way in ("none", "prompt")
    )
    assert [len(row["output"]) for row in without + asked] == [6, 6, 46, 46]
    assert (without[0]["answer"], without[0]["truncated"]) == ("Answe", False)
    assert asked[0]["output"].rpartition("Answer:")[2].strip() == asked[0]["answer"]
    assert asked[0]["score"] == 0.75
    # "xxxx.." never comes to an answer before the limit.
    assert [asked[1][key] for key in ("answer", "score", "truncated", "unparsed")] == [None, 0.0, True, False]
    by_way = {row["reasoning"]: row["truncated"] for row in summary if row["task"] == "echo"}
    assert by_way == {"none": 0, "prompt": 1}


def test_a_finished_text_without_an_answer_is_unparsed(tmp_path, tokenizer, echo):
    model = parrot("12?")
    model.generation_config.eos_token_id = [VOCABULARY.index("2"), VOCABULARY.index("<eos>")]
    settings = RunSettings(
        ("echo",), (48,), samples=2, batch_size=2, reasoning=("prompt",), reasoning_tokens=20, prefill_runs=0
    )
    rows, summary = free(tmp_path, tokenizer, settings, model=model)
    found = [(row["score"], row["unparsed"], row["truncated"]) for row in rows if row["recipe"] == "full"]
    assert found == [(0.0, True, False), (0.0, False, True)]
    assert [(row["unparsed"], row["truncated"]) for row in summary] == [(1, 1)] * 2


# Intervals


def test_intervals():
    assert score_interval([1.0, 0.0, 1.0]) == accuracy_interval(2, 3)
    scores = list(np.random.default_rng(1).beta(2, 3, 400))
    low, high = score_interval(scores)
    half = 1.96 * np.std(scores) / 20
    assert (low, high) == pytest.approx((np.mean(scores) - half, np.mean(scores) + half), abs=0.003)
    assert score_interval(scores) == (low, high)
    # Scores that are all the same are no proof that all others would be.
    assert score_interval([0.25] * 8) == accuracy_interval(2, 8)
