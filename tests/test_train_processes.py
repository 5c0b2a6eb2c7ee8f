"""Fine-tuning in two processes (gloo, CPU): data parallel and FSDP2 give what one process gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import swaa
from families import tiny_model
from swaa.attaching import adaptation
from swaa.cli import app
from swaa.train import merge
from test_train_run import logits, weights
from training import CHATML, VOCABULARY, tiny_tokenizer

TESTS = Path(__file__).parent
ROWS = [{"prompt": f"number {i}?" * (1 + i % 3), "answer": "yes" if i % 2 else "no, " * i} for i in range(1, 25)]
FSDP = (
    "--use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_state_dict_type FULL_STATE_DICT"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny model, its tokenizer and data."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocab_size=len(VOCABULARY)).save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder


def command(base, output, *more):
    words = ["train", "-m", base, "-d", base / "rows.jsonl", "-o", output, "--window", 6, "--sinks", 2, "--fa-decode"]
    words += ["--full-layers", "3", "--lr", "3e-3", "--max-steps", 4, "--log-steps", 1, "--save-steps", 2]
    words += ["--device", "cpu", "--dtype", "float32", "--eval-data", base / "rows.jsonl", "--pack", 150, *more]
    return [str(word) for word in words]


def single(words):
    """Run the command in this process."""
    return CliRunner().invoke(app, words, env={"COLUMNS": "200"})


def launch(words, launcher="--multi_gpu", program=("-m", "swaa.cli")):
    """Run the command as `accelerate launch` does, in two processes."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith(("COV_", "PYTEST"))}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent / "src"), str(TESTS)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    prefix = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", *launcher.split()]
    prefix += f"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}".split()
    done = subprocess.run([*prefix, *program, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def sharded(words):
    return launch(words, launcher=FSDP, program=[str(TESTS / "fsdp_on_cpu.py")])


def same_logs(one, two):
    """Losses, gradients and evaluations of each step."""
    logs = [json.loads((folder / "train.json").read_text())["log"] for folder in (one, two)]
    assert len(logs[0]) == len(logs[1])
    compared = ("loss", "nll", "kl", "grad_norm", "learning_rate", "eval_nll", "eval_kl", "epoch")
    for a, b in zip(*logs, strict=True):
        values = [{name: line[name] for name in compared if name in line} for line in (a, b)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)


def same_weights(one, two):
    expected, found = (weights(swaa.load(folder)) for folder in (one, two))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """One process with twice the rows a pass, and the divergence in the loss."""
    output = tmp_path_factory.mktemp("alone") / "adapter"
    done = single(command(base, output, "--loss", "sft+kl", "--batch-size", 2, "--accumulate", 2))
    assert done.exit_code == 0, done.output
    return output


def test_data_parallel(base, tmp_path, alone):
    words = command(base, tmp_path / "out", "--loss", "sft+kl", "--batch-size", 1, "--accumulate", 2)
    done = launch(words)
    same_logs(alone, tmp_path / "out")
    same_weights(alone, tmp_path / "out")
    assert done.stderr.count("step 4: loss") == 1
    assert done.stderr.count("4 steps on 24 samples") == 1
    # One process is another run.
    assert "processes is 2 there and 1 here" in single(words).stderr


def test_fsdp2_with_lora(base, tmp_path, alone):
    more = ["--loss", "sft+kl", "--batch-size", 1, "--accumulate", 2, "--gradient-checkpointing"]
    words = command(base, tmp_path / "out", *more)
    sharded(words)
    same_logs(alone, tmp_path / "out")
    same_weights(alone, tmp_path / "out")
    loaded = swaa.load(tmp_path / "out")
    assert adaptation(loaded).config.window == 6
    # Checkpoints can be merged, and continued.
    merge(tmp_path / "out" / "checkpoints" / "checkpoint-2", tmp_path / "half")
    expected = logits(swaa.load(alone / "checkpoints" / "checkpoint-2"))
    torch.testing.assert_close(logits(swaa.load(tmp_path / "half")), expected, atol=1e-3, rtol=1e-3)
    interrupt(tmp_path / "out")
    assert "step 2:" not in sharded(words).stderr
    same_logs(alone, tmp_path / "out")
    same_weights(alone, tmp_path / "out")


def interrupt(folder):
    """Leave what a run has after its second step."""
    for file in (folder / "checkpoints" / "checkpoint-4").iterdir():
        file.unlink()
    (folder / "checkpoints" / "checkpoint-4").rmdir()
    for file in folder.iterdir():
        if file.is_file() and file.name != "train.json":
            file.unlink()
    record = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps({name: x for name, x in record.items() if name != "log"}))


def test_fsdp2_with_all_weights(base, tmp_path):
    done = single(command(base, tmp_path / "one", "--full", "--batch-size", 2, "--accumulate", 2))
    assert done.exit_code == 0, done.output
    sharded(command(base, tmp_path / "two", "--full", "--batch-size", 1, "--accumulate", 2))
    same_logs(tmp_path / "one", tmp_path / "two")
    same_weights(tmp_path / "one", tmp_path / "two")
