"""Evaluation runs: what they measure and write, that they go on after a kill, and what they refuse to mix."""

import csv
import json
import math
import os
from dataclasses import replace

import pytest
import torch

import swaa
import swaa.runs.engine
from eval_runs import VOCABULARY, lines, short_books, tiny, written
from families import tiny_model
from swaa.compare import choose_recipes
from swaa.evaluate import accuracy_interval, perplexity, score_answers
from swaa.results import append_lines, model_revision, read_lines
from swaa.runs import RunFolder, RunSettings, run
from swaa.tasks import TASKS

LENGTH = 320
NAMES = ["naive", "sinks-fa-decode"]
SETTINGS = RunSettings(("needle", "perplexity"), (LENGTH,), samples=5, batch_size=2, prefill_runs=1)
COLUMNS = (
    "recipe,task,length,reasoning,count,score,low,high,nll,perplexity,unparsed,truncated,judge_agreement,"
    "prefill_seconds,kv_bytes,score_ratio"
)


class Killed(BaseException):
    """What no handler catches, like a kill."""


@pytest.fixture(scope="module", autouse=True)
def short_book():
    with short_books("swaa.tasks.perplexity.prose", "swaa.runs.engine.prose"):
        yield


@pytest.fixture(scope="module")
def recipes():
    return choose_recipes(NAMES, length=LENGTH, window=40, sinks=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer, recipes):
    """A folder of a run that nothing has interrupted, its summary, and what the progress callback heard."""
    calls, path = [], tmp_path_factory.mktemp("runs") / "whole"
    folder = RunFolder(path)
    summary = run(tiny(), tokenizer, recipes, SETTINGS, folder, progress=lambda *call: calls.append(call))
    return path, summary, calls


# What is measured


def test_every_recipe_has_every_sample_in_order(whole):
    keys = [(row["task"], row["recipe"], row["index"]) for row in lines(whole[0])]
    assert keys == [(t, r, i) for t in ("needle", "perplexity") for r in ("full", *NAMES) for i in range(5)]


def test_samples_are_what_their_parts_measure(whole, tokenizer, recipes):
    rows = lines(whole[0])
    needles = TASKS["needle"].samples(tokenizer, length=LENGTH, count=5, seed=0)
    windows = TASKS["perplexity"].samples(tokenizer, length=LENGTH, count=5, seed=0)
    for recipe in recipes:
        model = tiny() if recipe.config.window is None else swaa.adapt(tiny(), recipe.config)
        found = [row for row in rows if (row["recipe"], row["task"]) == (recipe.name, "needle")]
        for row, answer, sample in zip(found, score_answers(model, tokenizer, needles), needles, strict=True):
            assert (row["output"], row["answer"], row["score"]) == (answer.text, answer.text, float(answer.correct))
            assert row["nll"] == pytest.approx(answer.nll, abs=1e-4)
            assert (row["references"], row["meta"]) == ([sample.answer], sample.meta)
        found = [row for row in rows if (row["recipe"], row["task"]) == (recipe.name, "perplexity")]
        assert [row["nll"] for row in found] == pytest.approx(list(perplexity(model, windows)), abs=1e-4)
        assert {row["score"] for row in found} == {None}
    assert len({row["prompt_sha256"] for row in rows}) == 10


def test_the_summary_is_of_the_samples(whole):
    path, summary, _ = whole
    assert json.loads((path / "summary.json").read_text()) == summary
    text = (path / "summary.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    assert [row["recipe"] for row in csv.DictReader(text.splitlines())] == [row["recipe"] for row in summary]
    rows = lines(path)
    for row in summary:
        own = [x for x in rows if (x["recipe"], x["task"]) == (row["recipe"], row["task"])]
        assert row["count"] == 5
        assert row["nll"] == pytest.approx(sum(x["nll"] for x in own) / 5)
        assert row["kv_bytes"] > 0
        assert row["prefill_seconds"] > 0
        if row["task"] == "perplexity":
            assert row["perplexity"] == pytest.approx(math.exp(row["nll"]))
            assert (row["score"], row["low"], row["score_ratio"]) == (None, None, None)
        else:
            right = sum(x["score"] for x in own)
            assert (row["score"], row["perplexity"]) == (right / 5, None)
            assert (row["low"], row["high"]) == accuracy_interval(int(right), 5)


def test_costs_and_layers_of_each_recipe(whole):
    run_file = json.loads((whole[0] / "run.json").read_text())
    assert run_file["layers"] == {"full": ["full"] * 4, "naive": ["sliding"] * 4, "sinks-fa-decode": ["sliding"] * 4}
    costs = {name: cost[str(LENGTH)] for name, cost in run_file["cost"].items()}
    a_token = 4 * 2 * 2 * 8 * 4
    assert [costs[name]["kv_bytes"] for name in ("full", *NAMES)] == [LENGTH * a_token, 39 * a_token, LENGTH * a_token]
    ratios = [costs[name]["prefill_flops_ratio"] for name in ("full", *NAMES)]
    assert ratios[0] == 1 > ratios[2] > ratios[1] > 0
    assert run_file["environment"]["torch"] == torch.__version__
    assert run_file["model_revision"] == model_revision(tiny())
    assert (run_file["seed"], run_file["settings"]["split"]) == (0, "test")


def test_progress_ends_when_the_work_is_done(whole):
    calls = whole[2]
    done = [done for _, done, _ in calls]
    assert done == sorted(done)
    assert calls[-1][1] == calls[-1][2] == 3 * 2 * 5 * LENGTH
    assert calls[-1][0] == f"sinks-fa-decode: perplexity, {LENGTH}"


def test_the_model_is_restored(tokenizer, recipes, tmp_path, monkeypatch):
    model = tiny()
    monkeypatch.setattr("swaa.runs.engine.perplexity", lambda model, batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(model, tokenizer, recipes, SETTINGS, RunFolder(tmp_path / "run"))
    assert swaa.adaptation(model) is None


# Going on after a kill


def interrupted(path, tokenizer, recipes, batches, monkeypatch, settings=SETTINGS):
    """Start a run that is killed after so many batches, the last of them torn on the disk."""
    count, append = [0], RunFolder.append

    def torn(self, rows):
        count[0] += 1
        append(self, rows)
        if count[0] == batches:
            file = path / "samples.jsonl"
            os.truncate(file, file.stat().st_size - 17)
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", torn)
        with pytest.raises(Killed):
            run(tiny(), tokenizer, recipes, settings, RunFolder(path))


@pytest.mark.parametrize("batches", [1, 2, 3, 8, 13, 18])
def test_a_killed_run_goes_on_to_the_same_result(whole, tmp_path, tokenizer, recipes, batches, monkeypatch):
    path = tmp_path / "run"
    interrupted(path, tokenizer, recipes, batches, monkeypatch)
    kept = (path / "samples.jsonl").read_bytes().rpartition(b"\n")[0]
    calls = []
    run(tiny(), tokenizer, recipes, SETTINGS, RunFolder(path), progress=lambda *call: calls.append(call))
    assert written(path) == written(whole[0])
    assert (path / "samples.jsonl").read_bytes().startswith(kept)
    assert calls[-1][1] == calls[-1][2] == LENGTH * (30 - len(kept.splitlines()))
    assert len(json.loads((path / "run.json").read_text())["sessions"]) == 2


def test_a_run_that_is_complete_measures_nothing(whole, tmp_path, tokenizer, recipes, monkeypatch):
    before = {file.name: file.read_bytes() for file in whole[0].iterdir()}
    monkeypatch.setattr("swaa.runs.engine.score_answers", None)
    monkeypatch.setattr("swaa.runs.engine.measure_prefill", None)
    assert run(tiny(), tokenizer, recipes, SETTINGS, RunFolder(whole[0])) == whole[1]
    after = {file.name: file.read_bytes() for file in whole[0].iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["run.json"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"samples": 6}, "samples is 5 there and 6 here"),
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"tasks": ("needle",)}, r'tasks is \["needle", "perplexity"\] there and \["needle"\] here'),
        ({"scoring": "free"}, 'scoring is "forced" there and "free" here'),
    ],
)
def test_another_configuration_is_refused(whole, tokenizer, recipes, changes, named):
    before = {file.name: file.read_bytes() for file in whole[0].iterdir()}
    with pytest.raises(ValueError, match=f"{named}.*Choose another --output"):
        run(tiny(), tokenizer, recipes, replace(SETTINGS, **changes), RunFolder(whole[0]))
    assert {file.name: file.read_bytes() for file in whole[0].iterdir()} == before


def test_another_recipe_model_or_dtype_is_refused(whole, tokenizer, recipes):
    wider = choose_recipes(NAMES, length=LENGTH, window=41, sinks=4)
    with pytest.raises(ValueError, match=r"recipes\.naive\.window is 40 there and 41 here"):
        run(tiny(), tokenizer, wider, SETTINGS, RunFolder(whole[0]))
    with pytest.raises(ValueError, match=r"recipes\.sinks-fa-decode is .* there and null here"):
        run(tiny(), tokenizer, recipes[:2], SETTINGS, RunFolder(whole[0]))
    other = tiny_model(vocab_size=len(VOCABULARY), seed=1)
    with pytest.raises(ValueError, match=r'model_revision is "weights-\w+" there'):
        run(other, tokenizer, recipes, SETTINGS, RunFolder(whole[0]))
    with pytest.raises(ValueError, match='dtype is "float32" there and "bfloat16" here'):
        run(tiny().bfloat16(), tokenizer, recipes, SETTINGS, RunFolder(whole[0]))


def test_other_prompts_are_refused(whole, tmp_path, tokenizer, recipes):
    path = tmp_path / "run"
    path.mkdir()
    rows = read_lines(whole[0] / "samples.jsonl")[:4]
    rows[3]["prompt_sha256"] = "0" * 64
    append_lines(path / "samples.jsonl", rows)
    (path / "run.json").write_bytes((whole[0] / "run.json").read_bytes())
    with pytest.raises(ValueError, match="holds other prompts of needle at 320"):
        run(tiny(), tokenizer, recipes, SETTINGS, RunFolder(path))


def test_a_folder_of_something_else_is_refused(tmp_path, tokenizer, recipes):
    (tmp_path / "letter.txt").write_text("dear all")
    with pytest.raises(ValueError, match="is not empty and holds no run"):
        run(tiny(), tokenizer, recipes, SETTINGS, RunFolder(tmp_path))
    with pytest.raises(ValueError, match=r"letter\.txt is not empty and holds no run"):
        run(tiny(), tokenizer, recipes, SETTINGS, RunFolder(tmp_path / "letter.txt"))
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_batch_size_may_change(whole, tmp_path, tokenizer, recipes, monkeypatch):
    path = tmp_path / "run"
    interrupted(path, tokenizer, recipes, 4, monkeypatch)
    run(tiny(), tokenizer, recipes, replace(SETTINGS, batch_size=3), RunFolder(path))
    for row, expected in zip(lines(path), lines(whole[0]), strict=True):
        assert row["nll"] == pytest.approx(expected["nll"], abs=1e-4)
        assert row["output"] == expected["output"]
    assert [x["batch_size"] for x in json.loads((path / "run.json").read_text())["sessions"]] == [2, 3]
