"""Evaluation runs: what they measure, write, continue after a kill, refuse to mix, and the command."""

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import StaticCache
from typer.testing import CliRunner

import swaa
import swaa.runs.engine
from families import tiny_model
from swaa.cli import app
from swaa.cli.progress import minute_lines
from swaa.compare import choose_recipes
from swaa.evaluate import accuracy_interval, perplexity, score_answers
from swaa.prose import prose
from swaa.results import append_lines, git_revision, model_revision, read_lines, replace_lines
from swaa.runs import Cell, RunFolder, RunSettings, run
from swaa.runs.summary import score_interval
from swaa.tasks import GROUPS, TASKS, Sample
from test_evaluate import VOCABULARY, bytes_tokenizer, parrot

LENGTH = 320
NAMES = ["naive", "sinks-fa-decode"]
SETTINGS = RunSettings(("needle", "perplexity"), (LENGTH,), samples=5, batch_size=2, prefill_runs=1)
COLUMNS = (
    "recipe,task,length,reasoning,count,score,low,high,nll,perplexity,unparsed,truncated,judge_agreement,"
    "prefill_seconds,kv_bytes,score_ratio"
)


class Killed(BaseException):
    """What no handler catches, like a kill."""


@dataclass(frozen=True)
class Echo:
    """A prompt that ends in letters of `ends`, one after another; the score is the share of `wanted` in the answer."""

    ends: str = "?x"
    wanted: tuple[str, ...] = ("1", "2", "9", "?")
    judged: bool = False
    path: str | None = "made"
    kind: ClassVar[str] = "generation"
    describe: ClassVar[str] = "an echo"
    max_new_tokens: ClassVar[int] = 6

    def samples(self, tokenizer, *, length, count, seed, split="test", reasoning="none"):
        letters = [self.ends[index % len(self.ends)] for index in range(min(count, 4))]
        texts = ["a" * (length - 1 - index) + letter for index, letter in enumerate(letters)]
        return [
            Sample(
                tuple(tokenizer(text)["input_ids"]),
                (),
                (),
                "12",
                {"index": index, "question": f"What is {index}?", "question_type": "multi-session"},
                self.wanted,
            )
            for index, text in enumerate(texts)
        ]

    def score(self, sample, text):
        return None if self.judged else sum(x in text for x in self.wanted) / len(self.wanted)


@pytest.fixture
def echo(monkeypatch):
    """Registers a task of known words."""

    def register(**options):
        monkeypatch.setitem(TASKS._entries, "echo", Echo(**options))

    register()
    return register


def tiny():
    return tiny_model(vocab_size=len(VOCABULARY))


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module", autouse=True)
def short_book():
    """A second of tokenising less in each run."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("swaa.tasks.perplexity.prose", "swaa.runs.engine.prose"):
            patch.setattr(place, lambda split: prose(split)[:5000])
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


def lines(path):
    """The lines of a run without their times."""
    return [{key: x for key, x in row.items() if key != "seconds"} for row in read_lines(path / "samples.jsonl")]


def written(path):
    """The files of a run without times."""
    summary = json.loads((path / "summary.json").read_text())
    return lines(path), [{key: x for key, x in row.items() if key != "prefill_seconds"} for row in summary]


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


# Free answers


def free(tmp_path, tokenizer, settings, model=None, **options):
    """Run full attention and the naive window; return the lines and the summary."""
    path = tmp_path / "run"
    summary = run(model or parrot("12?"), tokenizer, RECIPES, settings, RunFolder(path), **options)
    return lines(path), summary


RECIPES = choose_recipes(["naive"], length=LENGTH, window=40)


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


# Lines on the disk


def test_lines_survive_a_torn_end_and_nothing_else(tmp_path):
    file = tmp_path / "x.jsonl"
    assert read_lines(file) == []
    append_lines(file, [{"a": "é"}, {"a": 2}])
    append_lines(file, [{"a": 3}])
    whole = file.read_bytes()
    for end in (b'{"a": 4', b'{"a": 4}', b"\0\0\0\0\n", b'{"a"\n'):
        file.write_bytes(whole + end)
        assert read_lines(file) == [{"a": "é"}, {"a": 2}, {"a": 3}]
        assert file.read_bytes() == whole
    file.write_bytes(b'{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2, is no JSON"):
        read_lines(file)
    replace_lines(file, [{"a": 9}])
    assert file.read_text() == '{"a": 9}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        append_lines(file, [{"a": math.nan}])


def test_shards_are_collected_once(tmp_path):
    row = {"recipe": "full", "task": "needle", "length": 8, "reasoning": "none"}
    folder = RunFolder(tmp_path)
    folder.append([row | {"index": 0, "by": 0}, row | {"index": 2, "by": 0}])
    # A kill between collecting and deleting leaves a sample in two places, and the shard's last line may be torn.
    for rank, own in ((1, [1, 2]), (2, [3])):
        RunFolder(tmp_path, rank).append([row | {"index": index, "by": rank} for index in own])
    with (tmp_path / "samples.2.jsonl").open("a") as file:
        file.write('{"recipe": "fu')
    folder.collect()
    assert sorted(row["index"] for row in folder.read().values()) == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.jsonl"]


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


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("nedle",)}, "Did you mean 'needle'"),
        ({"tasks": ()}, "tasks: name at least one"),
        ({"tasks": ("needle", "needle")}, "'needle' is named twice"),
        ({"lengths": (0,)}, "lengths: 0 is no number"),
        ({"samples": 0}, "samples=0: use 1 or more"),
        ({"reasoning": ("thinkin",)}, "Did you mean 'thinking'"),
        ({"reasoning": ("prompt",), "scoring": "forced"}, "leaves no room for a chain of thought"),
        ({"scoring": "fre"}, "use one of forced, free"),
        ({"prefill_runs": -1}, "use 0 or more"),
        ({"data": {"ruler-qa-1": "x.json"}}, "not among the tasks"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**changes)


def test_data_sets_name_their_flag(monkeypatch, echo):
    echo(path=None)
    with pytest.raises(ValueError, match="give it by --data echo=PATH"):
        RunSettings(("echo",)).task("echo")
    assert RunSettings(("echo",), data={"echo": "x.json"}).task("echo").path == "x.json"
    with pytest.raises(ValueError, match="'needle' makes its own samples"):
        RunSettings(("needle",), data={"needle": "x.json"}).task("needle")


def test_cells_and_groups():
    settings = RunSettings(("needle", "perplexity"), (8, 4), reasoning=("none", "prompt"))
    assert settings.scoring == "free"
    assert settings.cells()[:3] == [
        Cell("needle", 8, "none"),
        Cell("needle", 8, "prompt"),
        Cell("perplexity", 8, "none"),
    ]
    assert [cell.length for cell in settings.cells()] == [8] * 3 + [4] * 3
    assert RunSettings(("ruler", "needle")).tasks == (*GROUPS["ruler"], "needle")
    assert not [name for name in GROUPS["ruler"] if hasattr(TASKS[name], "path")]


# Several processes and the command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer):
    """A tiny model on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def arguments(model_folder, path, *more):
    words = f"eval -m {model_folder} -r naive,sinks-fa-decode --window 40 --sinks 4 --tasks needle,needle-noise"
    return [*words.split(), *f"--lengths {LENGTH} --samples 5 --batch-size 2 -o {path}".split(), *more]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def test_processes_share_the_samples(tmp_path, model_folder):
    path, alone = tmp_path / "run", tmp_path / "alone"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "swaa.cli"]
    more = ("--device", "cpu", "--dtype", "float32")
    done = subprocess.run(
        [*command, *arguments(model_folder, path, *more)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sinks-fa-decode") == 2
    assert json.loads((path / "run.json").read_text())["sessions"][0]["processes"] == 2
    assert sorted(file.name for file in path.iterdir()) == ["run.json", "samples.jsonl", "summary.csv", "summary.json"]
    assert CliRunner().invoke(app, arguments(model_folder, alone, *more)).exit_code == 0
    assert written(path) == written(alone)


def test_the_command(tmp_path, model_folder):
    path = tmp_path / "run"
    result = CliRunner().invoke(app, arguments(model_folder, path), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert result.stdout.count("sinks-fa-decode") == 2
    assert f"samples and summary in {path}" in result.stderr
    assert len(lines(path)) == 30


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge-url", "http://localhost:1/v1"], "name its model too, by --judge-model"),
        (["--data", "needle"], "write NAME=PATH"),
        (["--data", "needle=x.json"], "makes its own samples"),
        (["--reasoning", "thinking"], "needs a chat template"),
        (["-r", "naiv"], "Did you mean 'naive'"),
    ],
)
def test_wrong_commands_leave_nothing(tmp_path, model_folder, more, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", "-m", str(model_folder), "--lengths", str(LENGTH), *more])
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not list(tmp_path.rglob("*.json*"))


def test_recipes_that_reason_are_told_about(tmp_path, model_folder):
    result = CliRunner().invoke(
        app, arguments(model_folder, tmp_path / "run", "-r", "paper-thinking-speed", "--samples", "1")
    )
    assert "paper-thinking-speed is meant for --reasoning thinking, which is not asked for" in result.stderr


def test_progress_without_a_terminal_is_a_line_a_minute(capsys):
    times = iter([0.0, 20.0, 90.0, 100.0, 180.0])
    show = minute_lines(lambda: next(times))
    for done in (0, 10, 15, 60):
        show("naive: needle, 4096", done, 80)
    assert capsys.readouterr().err == (
        "12% done, about 0:10:30 left (naive: needle, 4096)\n75% done, about 0:01:00 left (naive: needle, 4096)\n"
    )


# Where the numbers come from


def test_revisions(tmp_path):
    assert model_revision(tiny()) == model_revision(tiny())
    model = tiny()
    with torch.no_grad():
        model.model.norm.weight[3] += 1
    assert model_revision(model) != model_revision(tiny())
    model.config._commit_hash = "abc"
    assert model_revision(model) == "abc"
    revision = git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
