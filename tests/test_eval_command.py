"""`swaa eval`: alone and in several processes, what it says, and wrong commands."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from eval_runs import lines, short_books, tiny, written
from swaa.cli import app
from swaa.cli.progress import minute_lines
from test_evaluate import bytes_tokenizer

LENGTH = 320


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module", autouse=True)
def short_book():
    with short_books("swaa.tasks.perplexity.prose", "swaa.runs.engine.prose"):
        yield


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
