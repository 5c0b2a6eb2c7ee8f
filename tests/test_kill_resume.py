"""Commands that are really killed, and repeated: nothing is done twice, and the result is that of a run left alone."""

import csv
import json
import multiprocessing
import os
import re
import signal
import sys
from functools import partial

import pytest
import torch
from pyarrow.parquet import read_table
from safetensors.torch import load_file

from families import tiny_model
from swaa.cli import main
from training import CHATML, VOCABULARY, tiny_tokenizer

# A process that has imported everything; each command runs in a fork of it.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["peft", "pyarrow.parquet", "swaa.cli", "swaa.distill", "swaa.select.run", "swaa.train"])
PLACE = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny model, its tokenizer and data."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(vocab_size=len(VOCABULARY))
    # Texts end now and then.
    model.generation_config.eos_token_id = list(range(20))
    model.save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    rows = [{"prompt": f"number {i}?" * (1 + i % 3), "answer": "yes" if i % 2 else "no"} for i in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def swaa(*words, fatal=None, log=os.devnull):
    """Run the command line in a process of its own.

    Args:
        words: the command.
        fatal: asked whenever the process is about to open a file; once it says yes, the process dies by SIGKILL.
        log: file for what the command says.
    """
    process = SERVER.Process(target=_command, args=([str(word) for word in words], fatal, str(log)))
    process.start()
    process.join(300)
    return process.exitcode


def _command(words, fatal, log):
    torch.set_num_threads(1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    asking = False

    def hook(event, arguments):
        nonlocal asking
        if event == "open" and not asking:
            asking = True
            if fatal():
                os.kill(os.getpid(), signal.SIGKILL)
            asking = False

    if fatal is not None:
        sys.addaudithook(hook)
    sys.argv = ["swaa", *words]
    main()


def exists(path):
    return path.exists()


def holds(file, lines):
    return file.exists() and file.read_bytes().count(b"\n") >= lines


def killed(fatal, *words, log=os.devnull):
    """Run a command until it is killed."""
    assert swaa(*words, fatal=fatal, log=log) == -signal.SIGKILL


def finished(*words, log):
    """Run a command to its end; returns what it said."""
    code = swaa(*words, log=log)
    assert code == 0, log.read_text()
    return log.read_text()


def killed_twice(file, counts, *words, log):
    """Kill a command whenever `file` has so many lines, and let it finish; what was written stays as it was."""
    # A kill at the very beginning leaves a part of the record.
    file.parent.mkdir()
    (file.parent / "run.json.new").write_text("{")
    kept = b""
    for count in counts:
        killed(partial(holds, file, count), *words)
        before, kept = kept, file.read_bytes()
        assert len(kept) > len(before)
        assert kept.startswith(before)
    finished(*words, log=log)
    assert file.read_bytes().startswith(kept)


def content(folder):
    """Every file that a run leaves, less times, its own folder and the record of what was started."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".parquet":
            found[path.name] = read_table(path).to_pylist()
        elif path.suffix == ".csv":
            with path.open() as file:
                rows = list(csv.DictReader(file))
            found[path.name] = [{key: x for key, x in row.items() if "seconds" not in key} for row in rows]
        elif path.suffix in (".json", ".jsonl") and path.name not in ("run.json", "distill.json"):
            text = path.read_text().replace(str(folder), "DIR")
            found[path.name] = re.sub(r'("(prefill_)?seconds": )[0-9.]+', r"\1", text)
    return found


def test_eval(base, tmp_path):
    words = f"eval -m {base} -r naive --window 40 --tasks needle,needle-noise --lengths 400 --samples 4".split()
    words += ["--batch-size", "2", *PLACE, "-o"]
    finished(*words, tmp_path / "whole", log=tmp_path / "log")
    out = tmp_path / "out"
    # Each line holds the time that its sample took, so that one that is measured again is another one.
    killed_twice(out / "samples.jsonl", (1, 7), *words, out, log=tmp_path / "log")
    assert content(out) == content(tmp_path / "whole")
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 3


def test_select(base, tmp_path):
    words = f"select -m {base} --length 500 --samples 4 --test-samples 2 --budget 1 --method nll --window 40".split()
    words += ["--batch-size", "2", *PLACE, "-o"]
    finished(*words, tmp_path / "whole", log=tmp_path / "log")
    out = tmp_path / "out"
    killed_twice(out / "calibration.jsonl", (1, 6), *words, out, log=tmp_path / "log")
    assert content(out) == content(tmp_path / "whole")
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 3


def test_distill(base, tmp_path):
    words = f"distill -m {base} -d {base / 'rows.jsonl'} --samples 2 --max-new-tokens 12 --batch-size 4".split()
    words += [*PLACE, "-o"]
    finished(*words, tmp_path / "whole", log=tmp_path / "log")
    out = tmp_path / "out"
    killed_twice(out / "answers.jsonl", (1, 13), *words, out, log=tmp_path / "log")
    assert content(out) == content(tmp_path / "whole")


def test_train_without_options_for_checkpoints(base, tmp_path):
    words = f"train -m {base} -d {base / 'rows.jsonl'} --window 6 --sinks 2 --fa-decode --lr 3e-3 --epochs 2".split()
    words += ["--log-steps", "1", "--accumulate", "2", *PLACE, "-o"]
    out, log = tmp_path / "out", tmp_path / "log"
    finished(*words, tmp_path / "whole", log=log)
    # Before anything is saved, and in the middle of the second checkpoint of an epoch: the first one is still there.
    killed(partial(exists, out / "checkpoints" / "checkpoint-2"), *words, out)
    killed(partial(exists, out / "checkpoints" / "checkpoint-4"), *words, out, log=log)
    assert "no checkpoint yet: starting over at step 0" in log.read_text()
    assert not (out / "checkpoints" / "checkpoint-4" / "trainer_state.json").exists()
    said = finished(*words, out, log=log)
    assert f"going on from {out / 'checkpoints' / 'checkpoint-2'}\n" in said
    assert re.findall(r"step (\d+): loss", said) == [str(step) for step in range(3, 13)]
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"checkpoint-6", "checkpoint-12"}
    expected, got = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


def test_train(base, tmp_path):
    words = f"train -m {base} -d {base / 'rows.jsonl'} --window 6 --sinks 2 --fa-decode --lr 3e-3 --max-steps 6".split()
    words += ["--save-steps", "2", "--log-steps", "1", "--accumulate", "2", *PLACE, "-o"]
    out, log = tmp_path / "out", tmp_path / "log"
    finished(*words, tmp_path / "whole", log=log)
    # In the middle of a checkpoint: it is there, and the state of the Trainer is not.
    killed(partial(exists, out / "checkpoints" / "checkpoint-4"), *words, out)
    assert not (out / "checkpoints" / "checkpoint-4" / "trainer_state.json").exists()
    first = {file: file.stat().st_mtime_ns for file in (out / "checkpoints" / "checkpoint-2").iterdir()}
    said = finished(*words, out, log=log)
    assert re.findall(r"step (\d): loss", said) == ["3", "4", "5", "6"]
    assert {file: file.stat().st_mtime_ns for file in first} == first
    expected, got = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "out"))
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)
