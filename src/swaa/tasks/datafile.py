"""Data sets that a user brings: a local parquet, JSON or JSONL file, or a data set of the Hugging Face hub."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from swaa.prose import Split
from swaa.tasks.base import Sample, check_request

_INSTALL = "pip install 'swaa[data]'"


class NoRowsError(ValueError):
    """A data set without rows."""


def check_data_request(task: str, path: str | None, length: int, count: int, split: Split) -> str:
    """Check the arguments of `Task.samples`; return `path`.

    Raises:
        ValueError: as in `Task.samples`; there is no path, or `split` is not `"test"`: a data set has no text to spare
            for calibration.
    """
    check_request(length, count, split)
    if split != "test":
        raise ValueError(
            f"task {task!r} has no calibration split: its whole data set is for testing. "
            "Calibrate on 'needle' or 'perplexity'"
        )
    if path is None:
        raise ValueError(f"task {task!r} needs a data set: name a file or a hub id with --data {task}=PATH")
    return path


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds, or the rows of a JSONL file, whatever its name ends with.

    Raises:
        ValueError: it is neither, or cannot be read.
    """
    try:
        # With or without a byte order mark, which editors on Windows write.
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as whole:
        rows = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{str(path)!r} is neither JSON nor a JSON object a line: {whole} as a whole, and line {number} "
                    f"is broken: {error.msg}"
                ) from None
        return rows


def read_rows(path: str, schemas: Iterable[Iterable[str]]) -> list[dict[str, Any]]:
    """Read a data set whose rows have the fields of one of `schemas`.

    Args:
        path: a local file (parquet by its suffix, else JSON or JSONL), a file on the hub (`owner/name/file`), or a hub
            id (`owner/name`, `owner/name:split`).
        schemas: alternatives; each lists the fields that it needs.

    Raises:
        NoRowsError: there are none.
        ValueError: the data set does not exist, cannot be read, or has rows of no known schema.
        ModuleNotFoundError: reading it needs the extra `data`.
    """
    local = Path(path).expanduser()
    if local.is_file():
        rows = _read_parquet(local) if local.suffix == ".parquet" else read_json(local)
        # One line is JSON as a whole too.
        rows = [rows] if local.suffix == ".jsonl" and isinstance(rows, dict) else rows
    elif local.exists() or path.count("/") == 0 or path.startswith((".", "/", "~")):
        raise ValueError(f"{path!r} is neither a file nor a hub id such as owner/name")
    else:
        rows = _read_hub(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path!r} holds no list of rows")
    if not rows:
        raise NoRowsError(f"{path!r} is empty: it has no row")
    known = [set(schema) for schema in schemas]
    for number, row in enumerate(rows):
        if not any(schema <= row.keys() for schema in known):
            wanted = "; or ".join(", ".join(sorted(schema)) for schema in known)
            raise ValueError(f"row {number} of {path!r} has fields {', '.join(sorted(row))}; needed are {wanted}")
    return rows


def choose(
    rows: list[dict[str, Any]],
    make: Callable[[dict[str, Any], dict[str, Any]], tuple[Sample | None, int]],
    *,
    length: int,
    count: int,
    seed: int,
    task: str,
) -> list[Sample]:
    """Return samples of the first rows, in the seed's order, that fit; fewer than `count` if no more do.

    `meta` starts with `index`, `seed`, `split`, `row` (number of the row in the data set) and `left_out` (how many rows
    came before this one that did not fit).

    Args:
        rows: the data set.
        make: makes a sample of a row and the start of its `meta`, None if it is too long; and the tokens it needs.
        length: the bound, for the error.
        count: how many samples.
        seed: of the order.
        task: name of the task.

    Raises:
        ValueError: no row fits; the message says how many tokens the shortest needs.
    """
    order = random.Random(f"{task}/{seed}").sample(range(len(rows)), len(rows))
    samples: list[Sample] = []
    needed: list[int] = []
    for number in order:
        meta = {"index": len(samples), "seed": seed, "split": "test", "row": number, "left_out": len(needed)}
        sample, tokens = make(rows[number], meta)
        if sample is None:
            needed.append(tokens)
            continue
        samples.append(sample)
        if len(samples) == count:
            break
    if not samples:
        raise ValueError(f"no sample of {task!r} fits in length={length}: the shortest needs {min(needed)}")
    return samples


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"reading a parquet file needs pyarrow: {_INSTALL}", name="pyarrow") from error
    try:
        return list(read_table(path).to_pylist())
    except ArrowException as error:
        raise ValueError(f"{str(path)!r} is no parquet file: {error}") from error


def _read_hub(path: str) -> list[dict[str, Any]]:
    owner, name, *inside = path.split("/")
    if inside:
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(f"{owner}/{name}", "/".join(inside), repo_type="dataset"))
        except Exception as error:
            raise ValueError(_no_hub(path, error)) from error
        return _read_parquet(file) if file.suffix == ".parquet" else read_json(file)
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path!r} from the hub needs datasets: {_INSTALL}", name="datasets"
        ) from error
    name, _, split = name.partition(":")
    try:
        splits = load_dataset(f"{owner}/{name}")
    except Exception as error:
        raise ValueError(_no_hub(path, error)) from error
    if not split and len(splits) > 1:
        listed = ", ".join(f"{owner}/{name}:{known}" for known in splits)
        raise ValueError(f"{path!r} has several splits: use one of {listed}")
    if split and split not in splits:
        raise ValueError(f"{owner}/{name} has no split {split!r}: use one of {', '.join(splits)}")
    return list(splits[split or next(iter(splits))])


def _no_hub(path: str, error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"{path!r} is no file and cannot be fetched from the Hugging Face hub: {reason}"
