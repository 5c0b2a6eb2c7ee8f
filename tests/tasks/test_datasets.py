"""Data sets: files of every format, the hub, the order of the samples, and what is no data set."""

import sys
from pathlib import Path

import pytest

from dataset_files import choice_row, make, memory_row
from swaa.tasks import TASKS
from swaa.tasks.longbench import LongBenchV2
from swaa.tasks.longmemeval import LongMemEval

NAMES = ("ruler-qa-1", "ruler-qa-2", "longmemeval", "longbench-v2")


@pytest.mark.parametrize("name", NAMES)
def test_without_a_data_set_the_flag_is_named(tokenizer, name):
    with pytest.raises(ValueError, match=f"task '{name}' needs a data set: .* --data {name}=PATH"):
        make(TASKS[name], tokenizer)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_kept_back_for_calibration(tokenizer, name):
    with pytest.raises(ValueError, match=f"task '{name}' has no calibration split"):
        make(TASKS[name], tokenizer, split="calibration")


@pytest.mark.parametrize(("task", "row"), [(LongMemEval, memory_row), (LongBenchV2, choice_row)])
def test_every_format_gives_the_same_samples(tokenizer, write, task, row):
    rows = [row(number) for number in range(5)]
    first, *others = [
        make(task(write(rows, f"data.{suffix}")), tokenizer, count=3) for suffix in ("json", "jsonl", "parquet", "")
    ]
    assert len(first) == 3
    assert others == [first] * 3


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_rows(tokenizer, write, name):
    plain = Path(write([memory_row(number) for number in range(3)], name))
    marked = plain.with_name(f"marked-{name}")
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert make(LongMemEval(str(marked)), tokenizer) == make(LongMemEval(str(plain)), tokenizer)


@pytest.mark.parametrize(("task", "row"), [(LongMemEval, memory_row), (LongBenchV2, choice_row)])
def test_the_order_is_the_seeds_and_a_sample_does_not_depend_on_the_count(tokenizer, write, task, row):
    task = task(write([row(number) for number in range(8)]))
    every = make(task, tokenizer, count=20)
    assert make(task, tokenizer, count=3) == every[:3]
    assert sorted(sample.meta["row"] for sample in every) == list(range(8))
    assert [sample.meta["index"] for sample in every] == list(range(8))
    other = make(task, tokenizer, count=20, seed=1)
    assert [sample.meta["row"] for sample in other] != [sample.meta["row"] for sample in every]


def test_rows_of_another_schema_are_named(tokenizer, write):
    rows = [memory_row(0), {"question": "What?", "reply": "That."}]
    with pytest.raises(
        ValueError, match=r"row 1 of .* has fields question, reply; needed are answer, .*; or answer, pr"
    ):
        make(LongMemEval(write(rows)), tokenizer)
    for content, message in (({}, "holds no list of rows"), ([1], "holds no list of rows"), ([], "is empty")):
        with pytest.raises(ValueError, match=message):
            make(LongMemEval(write(content)), tokenizer)


def test_what_is_no_data_set(tokenizer, tmp_path):
    broken, binary = tmp_path / "broken.json", tmp_path / "broken.parquet"
    broken.write_text('{"a": 1}\n{"b"')
    binary.write_bytes(b"no parquet")
    (tmp_path / "odd.json").write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (broken, "is neither JSON nor a JSON object a line"),
        (binary, "is no parquet file"),
        (tmp_path / "odd.json", "cannot be read"),
        (tmp_path, "is neither a file nor a hub id"),
        (tmp_path / "missing.json", "is neither a file nor a hub id"),
        ("missing.json", "is neither a file nor a hub id"),
    ):
        with pytest.raises(ValueError, match=message):
            make(LongBenchV2(str(path)), tokenizer)


def test_a_hub_id_is_loaded_by_datasets(tokenizer, write, monkeypatch):
    import datasets

    rows = [choice_row(number) for number in range(3)]
    one = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})
    two = datasets.DatasetDict({"dev": one["train"], "test": one["train"].select([0])})
    known = {"owner/one": one, "owner/two": two}
    monkeypatch.setattr(datasets, "load_dataset", known.__getitem__)
    local = make(LongBenchV2(write(rows)), tokenizer)
    assert make(LongBenchV2("owner/one"), tokenizer) == local
    assert make(LongBenchV2("owner/two:dev"), tokenizer) == local
    assert len(make(LongBenchV2("owner/two:test"), tokenizer)) == 1
    with pytest.raises(ValueError, match="several splits: use one of owner/two:dev, owner/two:test"):
        make(LongBenchV2("owner/two"), tokenizer)
    with pytest.raises(ValueError, match="owner/one has no split 'dev': use one of train"):
        make(LongBenchV2("owner/one:dev"), tokenizer)
    with pytest.raises(ValueError, match="'owner/three' is no file and cannot be fetched from the Hugging Face hub"):
        make(LongBenchV2("owner/three"), tokenizer)


def test_a_file_of_the_hub_is_downloaded(tokenizer, write, monkeypatch):
    files = {
        ("owner/name", "folder/data.json", "dataset"): write([memory_row(0)]),
        ("owner/name", "data.parquet", "dataset"): write([memory_row(0)], "data.parquet"),
    }
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda repository, file, repo_type: files[repository, file, repo_type]
    )
    with pytest.raises(ValueError, match=r"'owner/name/other\.json' is no file and cannot be fetched"):
        make(LongMemEval("owner/name/other.json"), tokenizer)
    (sample,) = make(LongMemEval("owner/name/folder/data.json"), tokenizer)
    assert make(LongMemEval("owner/name/data.parquet"), tokenizer) == [sample]


@pytest.mark.parametrize(("module", "path"), [("pyarrow.parquet", "data.parquet"), ("datasets", "owner/name")])
def test_a_missing_package_is_named_with_the_extra(tokenizer, write, monkeypatch, module, path):
    path = path if "/" in path else write([choice_row(0)], path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'swaa\[data\]'"):
        make(LongBenchV2(path), tokenizer)
