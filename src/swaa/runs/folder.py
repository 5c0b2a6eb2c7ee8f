"""The folder of a run: `run.json`, `samples.jsonl` and the summary; continued only by the same configuration."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swaa.results import append_lines, begin_folder, read_lines, replace_json, replace_lines
from swaa.runs.settings import Cell

FORMAT = 1
# What changes how long a run takes and which near-ties of 16-bit numbers win, but not what is measured.
_FREE_TO_CHANGE = ("batch_size", "prefill_runs", "static_cache", "judge")


class Key(NamedTuple):
    """Which sample a line of `samples.jsonl` is about."""

    recipe: str
    cell: Cell
    number: int


class RunFolder:
    """The files of a run. Several processes may add samples, each to a file of its own.

    Args:
        path: the folder.
        rank: number of this process; 0 writes everything but the other processes' samples.
    """

    def __init__(self, path: Path, rank: int = 0):
        self.path = path
        self.rank = rank
        self.run: dict[str, Any] = {}

    @property
    def samples_file(self) -> Path:
        """Where all samples are in the end."""
        return self.path / "samples.jsonl"

    def open(self, content: dict[str, Any]) -> None:
        """Start the folder, or go on in it.

        Args:
            content: of `run.json`. Its session is added to those of a run that is there; its judge is noted when it
                has given scores (`judged`).

        Raises:
            ValueError: the folder holds a run of another configuration, or files that are none of a run.
        """
        file = self.path / "run.json"
        content["key"] = run_key(content)
        if file.exists():
            there = json.loads(file.read_text(encoding="utf-8"))
            if there.get("key") != content["key"]:
                raise ValueError(
                    f"{self.path} holds a run of another configuration: {'; '.join(_differences(there, content))}. "
                    f"Choose another --output, or repeat its own command: {there.get('command')}"
                )
            self._check_judge(there["settings"]["judge"], content["settings"]["judge"])
            content = there | {"sessions": [*there["sessions"], *content["sessions"]]}
        else:
            begin_folder(self.path)
            content = content | {"settings": content["settings"] | {"judge": None}}
        self.run = content
        if self.rank == 0:
            self.save()

    def save(self) -> None:
        """Write `run.json`."""
        replace_json(self.path / "run.json", self.run)

    def collect(self) -> None:
        """Bring the samples of all processes together in `samples.jsonl`; only for process 0 while no other writes."""
        shards = sorted(self.path.glob("samples.*.jsonl"))
        rows = [row for file in (self.samples_file, *shards) for row in read_lines(file)]
        if shards:
            # A kill between the two steps below leaves samples in both places.
            replace_lines(self.samples_file, {key_of(row): row for row in rows}.values())
        for shard in shards:
            shard.unlink()

    def read(self) -> dict[Key, dict[str, Any]]:
        """Read `samples.jsonl`."""
        return {key_of(row): row for row in read_lines(self.samples_file)}

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add samples; they are on the disk when this returns."""
        own = self.samples_file if self.rank == 0 else self.path / f"samples.{self.rank}.jsonl"
        append_lines(own, rows)

    def replace(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write `samples.jsonl` anew."""
        replace_lines(self.samples_file, rows)

    def judged(self, judge: dict[str, Any]) -> None:
        """Note in `run.json` who gave the scores that tasks leave open."""
        self.run["settings"]["judge"] = judge
        self.save()

    def _check_judge(self, old: dict[str, Any] | None, new: dict[str, Any] | None) -> None:
        # The same model may be reached elsewhere.
        if old and new and (old | {"url": None}) != (new | {"url": None}):
            raise ValueError(
                f"{self.path} is judged by {old['model']} with {old['votes']} votes, not by {new['model']} with "
                f"{new['votes']}: the scores of one run come from one judge, choose another --output"
            )


def key_of(row: dict[str, Any]) -> Key:
    """Return which sample a line of `samples.jsonl` is about."""
    return Key(row["recipe"], Cell(row["task"], row["length"], row["reasoning"]), row["index"])


def prompt_hash(ids: Sequence[int]) -> str:
    """Return the SHA-256 of a prompt: of its token ids in decimal, joined by commas."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def run_key(content: dict[str, Any]) -> str:
    """Return the SHA-256 of all that changes a run's results: model, weights, dtype, recipes and most settings."""
    return hashlib.sha256(json.dumps(_identity(content), sort_keys=True).encode()).hexdigest()


def _identity(content: dict[str, Any]) -> dict[str, Any]:
    settings = {name: x for name, x in content["settings"].items() if name not in _FREE_TO_CHANGE}
    identity = {name: content.get(name) for name in ("format", "model", "model_revision", "dtype", "data_hashes")}
    return identity | settings | {"recipes": {name: x["config"] for name, x in content["recipes"].items()}}


def _differences(there: dict[str, Any], content: dict[str, Any]) -> list[str]:
    # Through JSON, so that a tuple here is no other value than a list there.
    old, new = (json.loads(json.dumps(_identity(x))) for x in (there, content))
    return list(_compare(old, new, ""))


def _compare(old: Any, new: Any, name: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _compare(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
    elif old != new:
        yield f"{name} is {json.dumps(old)} there and {json.dumps(new)} here"
