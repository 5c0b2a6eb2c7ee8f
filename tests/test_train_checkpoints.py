"""What a run of fine-tuning leaves for a kill, and what its repetition makes of it."""

import json
import re

import pytest
import torch

import swaa
from swaa.train.trainer import COMPLETE
from test_train_run import train, weights

# Twelve steps an epoch.
SLOW = {"learning_rate": 1e-3, "batch_size": 1, "accumulate": 1}


def checkpoints(folder):
    return sorted(int(file.parent.name.split("-")[1]) for file in (folder / "checkpoints").glob(f"*/{COMPLETE}"))


def killed(at, base, output, **options):
    """Train until the metrics of a step come."""

    def kill(step, metrics):
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, output, show=kill, **options)


def repeated(base, output, **options):
    """Train, and return what was said and the first step that was measured."""
    said, steps = [], []
    train(base, output, show=lambda step, metrics: steps.append(step), note=said.append, **options)
    return said, steps[0]


@pytest.mark.parametrize(
    ("options", "at", "kept", "left"),
    [
        # One epoch of 12 steps: a checkpoint after every second one.
        ({}, 8, [6], [12]),
        # Two: after every third one.
        ({"epochs": 2.0}, 17, [12, 15], [12, 24]),
        # Fewer than ten steps, which end within an epoch.
        ({"max_steps": 5}, 4, [3], [5]),
    ],
    ids=["one epoch", "two epochs", "steps"],
)
def test_a_tenth_of_a_run_is_lost_at_most_and_one_checkpoint_more_lies_there(base, tmp_path, options, at, kept, left):
    options = SLOW | options
    out = tmp_path / "out"
    train(base, tmp_path / "whole", **options)
    assert checkpoints(tmp_path / "whole") == left
    killed(at, base, out, **options)
    assert checkpoints(out) == kept
    said, first = repeated(base, out, **options)
    assert said == [f"going on from {out / 'checkpoints' / f'checkpoint-{kept[-1]}'}"]
    assert first == kept[-1] + 1
    assert checkpoints(out) == left
    expected, found = (weights(swaa.load(folder)) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "options",
    [{"max_steps": 5}, {"max_steps": 5, "save_steps": 2}, {"max_steps": 14}, {"epochs": 0.5}, {"epochs": 2.0}],
    ids=["steps", "checkpoints", "second epoch", "half an epoch", "two epochs"],
)
def test_nothing_is_trained_after_a_kill_behind_the_last_checkpoint(base, tmp_path, options):
    options, out = SLOW | options, tmp_path / "out"
    whole = train(base, tmp_path / "whole", **options)

    def kill(step, metrics):
        if "train_runtime" in metrics:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, out, show=kill, **options)
    found = train(base, out, **options)
    assert found["steps"] == whole["steps"]
    losses = [[line for line in record["log"] if "loss" in line] for record in (whole, found)]
    assert losses[0] == losses[1]
    assert checkpoints(out) == checkpoints(tmp_path / "whole")
    expected, got = (weights(swaa.load(folder)) for folder in (tmp_path / "whole", out))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_checkpoints_that_were_asked_for_stay(base, tmp_path):
    train(base, tmp_path / "out", save_steps=5, **SLOW)
    assert checkpoints(tmp_path / "out") == [5, 10, 12]
    # Also where the rest of the run has no such option.
    killed(7, base, tmp_path / "other", save_steps=5, **SLOW)
    assert repeated(base, tmp_path / "other", **SLOW)[1] == 6
    assert checkpoints(tmp_path / "other") == [5, 12]


def test_a_run_without_a_checkpoint_says_that_it_starts_over(base, tmp_path):
    out = tmp_path / "out"
    killed(2, base, out, **SLOW)
    # As runs were started before there were checkpoints within an epoch: the record is the same one.
    assert json.loads((out / "train.json").read_text())["settings"]["save_steps"] is None
    said, first = repeated(base, out, **SLOW)
    assert said == [f"no checkpoint yet: starting over at step 0, in {out}"]
    assert first == 1
    assert repeated(base, tmp_path / "fresh", **SLOW)[0] == []


def test_a_checkpoint_stays_until_the_next_one_is_whole(base, tmp_path, monkeypatch):
    """A kill after the Trainer's part of a checkpoint, and before ours."""
    saved = swaa.SWAAConfig.save

    def save(config, file):
        if re.search("checkpoint-4/", str(file)):
            raise KeyboardInterrupt
        saved(config, file)

    monkeypatch.setattr(swaa.SWAAConfig, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "out", **SLOW)
    assert checkpoints(tmp_path / "out") == [2]
    monkeypatch.undo()
    assert repeated(base, tmp_path / "out", **SLOW)[1] == 3
    assert checkpoints(tmp_path / "out") == [12]
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["checkpoint-12"]


def test_no_checkpoint_is_written_twice(base, tmp_path, monkeypatch):
    """The end of an epoch that is that of a tenth too: a kill in the second writing would find half of it, marked."""
    steps, saved = [], swaa.SWAAConfig.save

    def save(config, file):
        steps.extend(map(int, re.findall(r"checkpoint-(\d+)/", str(file))))
        saved(config, file)

    monkeypatch.setattr(swaa.SWAAConfig, "save", save)
    train(base, tmp_path / "out", epochs=2.0, **SLOW)
    assert steps == [3, 6, 9, 12, 15, 18, 21, 24]


def test_no_checkpoints_where_the_trainer_is_told_so(base, tmp_path):
    train(base, tmp_path / "out", more={"save_strategy": "no"}, **SLOW)
    assert checkpoints(tmp_path / "out") == []
