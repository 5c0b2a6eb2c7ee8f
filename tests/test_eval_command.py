"""`swaa eval`: alone and in several processes, what it says, and wrong commands."""

import csv
import json
import math
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import swaa
from eval_runs import VOCABULARY, lines, overflowing, save, short_books, tiny, written
from families import tiny_model
from swaa.cli import app
from swaa.cli.progress import minute_lines
from swaa.evaluate import perplexity

LENGTH = 320


@pytest.fixture(scope="module", autouse=True)
def short_book():
    with short_books("swaa.tasks.perplexity.prose", "swaa.runs.engine.prose"):
        yield


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model on disk."""
    return save(tiny(), tmp_path_factory.mktemp("models") / "tiny")


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
        (
            ["--tasks", "needle,ruler-vt,perplexity", "--judge-model", "gpt-4", "--judge-url", "http://localhost:1/v1"],
            "--judge-model gpt-4: nothing is left to a judge by the tasks needle, ruler-vt, perplexity; leave it out, "
            "or choose one that needs a judge: longmemeval\n",
        ),
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


def warnings_of(result):
    assert result.exit_code == 0, result.output
    return [line.removeprefix("warning: ") for line in result.stderr.splitlines() if line.startswith("warning: ")]


def test_rows_are_over_all_their_samples_or_have_no_number(tmp_path, model_folder, monkeypatch):
    def overflow(model, samples):
        for sample, nll in zip(samples, perplexity(model, samples), strict=True):
            yield math.inf if swaa.adaptation(model) and sample.meta["index"] in (1, 3) else nll

    monkeypatch.setattr("swaa.runs.engine.perplexity", overflow)
    path = tmp_path / "run"
    words = arguments(model_folder, path, "--tasks", "perplexity", "-r", "naive")
    note = f"naive, perplexity at {LENGTH} tokens: the NLL of 2 of 5 samples is not finite, so the row has none"
    # Again from the files alone, too.
    for _ in range(2):
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert warnings_of(result) == [f"{note}; try another --dtype"]
        full, naive = json.loads((path / "summary.json").read_text())
        assert full["perplexity"] == pytest.approx(math.exp(full["nll"]))
        assert [naive[key] for key in ("recipe", "count", "nll", "perplexity")] == ["naive", 5, None, None]
        assert [row["nll"] is None for row in lines(path)] == [False] * 5 + [False, True, False, True, False]


def test_forced_answers_that_overflow(tmp_path):
    model, path = save(overflowing(math.inf), tmp_path / "model"), tmp_path / "run"
    result = CliRunner().invoke(app, arguments(model, path, "--tasks", "needle", "-r", "full", "--prefill-runs", "0"))
    note = f"full, needle at {LENGTH} tokens: the NLL of 5 of 5 samples is not finite, so the row has none"
    assert warnings_of(result) == [f"{note}; try another --dtype"]
    (row,) = json.loads((path / "summary.json").read_text())
    assert (row["score"], row["nll"]) == (0, None)
    # A free answer has no NLL to begin with.
    free = arguments(model, tmp_path / "free", "--tasks", "needle", "-r", "full", "--scoring", "free")
    assert warnings_of(CliRunner().invoke(app, [*free, "--samples", "1", "--prefill-runs", "0"])) == []


def test_a_perplexity_that_no_float_holds(tmp_path):
    model, path = save(overflowing(2e3), tmp_path / "model"), tmp_path / "run"
    words = arguments(model, path, "--tasks", "perplexity", "-r", "full", "--prefill-runs", "0", "--dtype", "float32")
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    (row,) = json.loads((path / "summary.json").read_text())
    assert (row["nll"] > 710, row["perplexity"]) == (True, None)
    (written,) = csv.DictReader((path / "summary.csv").read_text().splitlines())
    assert written["perplexity"] == ""
    note = f"the perplexity is not finite at an NLL of {row['nll']:.0f}, so the row has none; try another --dtype"
    assert warnings_of(result) == [f"full, perplexity at {LENGTH} tokens: {note}"]


def test_recipes_under_which_nothing_slides(tmp_path):
    model = save(tiny_model("gemma3_text", vocab_size=len(VOCABULARY)), tmp_path / "model")
    words = arguments(model, tmp_path / "run", "-r", "naive,sinks-odd-fa-decode", "--tasks", "needle")
    result = CliRunner().invoke(app, [*words, "--samples", "1"])
    note = "sinks-odd-fa-decode: every layer that could slide keeps full attention, nothing slides"
    assert warnings_of(result) == [note]
