"""What results are written with: lines that survive a kill, new folders, CSV and JSON, and where they come from."""

import json
import math
import re
import sys

import pytest
import torch

import swaa
from eval_runs import tiny
from swaa.results import (
    append_lines,
    command_line,
    environment,
    fresh_folder,
    git_revision,
    model_revision,
    new_folder,
    read_lines,
    replace_lines,
    write_csv,
    write_json,
)
from swaa.runs import RunFolder

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


# Folders and files


def test_new_folders_are_never_reused(monkeypatch, tmp_path):
    monkeypatch.setattr("swaa.results.time.strftime", lambda form: "20260102-030405")
    base = tmp_path / "not" / "there"
    folders = [new_folder(base, "compare-tiny") for _ in range(3)]
    stem = "compare-tiny-20260102-030405"
    assert [folder.name for folder in folders] == [stem, f"{stem}-2", f"{stem}-3"]
    assert all(folder.parent == base for folder in folders)
    (base / f"{stem}-4").write_text("a file is in the way")
    assert new_folder(str(base), "compare-tiny").name == f"{stem}-5"
    assert new_folder(base, "other").name == "other-20260102-030405"
    for number in range(6, 1000):
        (base / f"{stem}-{number}").mkdir()
    with pytest.raises(FileExistsError, match="choose another --output"):
        new_folder(base, "compare-tiny")


def test_folders_carry_date_and_time(tmp_path):
    assert re.fullmatch(r"name-\d{8}-\d{6}", new_folder(tmp_path, "name").name)


def test_empty_folders_go_after_an_error(tmp_path):
    base = tmp_path / "not" / "there"

    def interrupted(file=None):
        with fresh_folder(base, "name") as folder:
            if file:
                (folder / file).write_text("kept")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        interrupted("table.csv")
    (folder,) = base.iterdir()
    assert (folder / "table.csv").read_text() == "kept"
    with fresh_folder(base, "name") as other:
        assert other != folder
    assert sorted(base.iterdir()) == sorted([folder, other])
    with pytest.raises(ValueError, match=r"table\.csv \(Not a directory\): choose another --output"):
        new_folder(folder / "table.csv", "name")


def test_csv_and_json_are_for_people(tmp_path):
    path = tmp_path / "file"
    write_csv(path, [{"a": 1 / 3, "b": "x, y", "c": 123456789}, {"a": 2e-7, "b": None, "c": True}])
    assert path.read_bytes() == b'a,b,c\n0.333333,"x, y",123456789\n2e-07,,True\n'
    write_json(path, {"a": ["ü", None, 0.1]})
    text = path.read_text(encoding="utf-8")
    assert "ü" in text
    assert text.count("\n") > 3
    assert json.loads(text) == {"a": ["ü", None, 0.1]}


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


def test_environment_and_command(monkeypatch):
    found = environment()
    assert found["swaa"] == swaa.__version__
    assert found["torch"] == torch.__version__
    assert int(found["threads"]) == torch.get_num_threads()
    assert all(isinstance(value, str) and value for value in found.values())
    monkeypatch.setattr(sys, "argv", ["/a/b/swaa", "compare", "-r", "naive,sinks"])
    assert command_line() == "swaa compare -r naive,sinks"
