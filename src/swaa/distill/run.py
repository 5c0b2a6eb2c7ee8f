"""One distillation from beginning to end, in a folder that can be continued."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from swaa.distill.filters import Filters
from swaa.distill.prompts import Prompt, fingerprint
from swaa.distill.teachers import Request, Sampling, Teacher
from swaa.endpoint import Reply
from swaa.errors import require
from swaa.results import append_lines, begin_folder, command_line, environment, read_lines, replace_json, replace_lines
from swaa.runs.parallel import Workers
from swaa.train.data import REJECTED

RECORD, ANSWERS, KEPT = "distill.json", "answers.jsonl", "answers.parquet"
_IDENTITY = ("teacher", "sampling", "prompts_sha256")
Progress = Callable[[str, int, int], None]


def distill(
    prompts: Sequence[Prompt],
    teacher: Teacher,
    output: str | Path,
    sampling: Sampling | None = None,
    filters: Filters | None = None,
    *,
    data: str = "",
    workers: Workers | None = None,
    progress: Progress = lambda text, done, total: None,
) -> dict[str, Any]:
    """Let the teacher answer prompts, and keep what passes the filters.

    The folder gets `answers.parquet`: what is kept, ready for `swaa train`, with all that tells where it comes from;
    `rejected.parquet`: the rest; `answers.jsonl`: every answer as it came; `distill.json`: the record. A folder that
    holds a part of the same run is continued, to the same answers. With other filters, nothing is asked again.

    Args:
        prompts: what is asked (`read_prompts`).
        teacher: who answers.
        output: folder for the result.
        sampling: how answers are drawn; None: one each, at temperature 1.
        filters: what an answer must pass; None: it is finished.
        data: name of the prompts' file or data set, for the record.
        workers: the processes that share the work, if there are several.
        progress: called with a text, the answers so far, and all of them.

    Returns:
        the content of `distill.json`, in process 0 (in others only its start); its `counts`: `prompts`, `answers`,
        `kept`, `prompts_kept` (with an answer that is kept), and `rejected`: how many each filter took out.

    Raises:
        ValueError: the folder holds something else, or a filter needs right answers that are not there.
        EndpointError: teacher or judge cannot be reached. Answers so far are kept.
        ModuleNotFoundError: writing parquet needs the extra `train`.
    """
    sampling, filters = sampling or Sampling(), filters or Filters()
    filters.check(prompts)
    require("writing a parquet file", "train", "pyarrow")
    output = Path(output).expanduser()
    record = {
        "command": command_line(),
        "data": data,
        "prompts_sha256": fingerprint(prompts),
        "teacher": teacher.describe(),
        "sampling": asdict(sampling),
        "filters": filters.describe(),
        "environment": environment(),
    }
    workers = workers or Workers()
    if workers.rank == 0:
        _open(output, record)
        _collect(output)
    workers.wait()
    _answer(prompts, teacher, sampling, output, workers, progress)
    workers.wait()
    if workers.rank:
        return record
    _collect(output)
    replies = _read(output)
    if filters.judge is not None:
        filters.judge.keep(output / "judge.jsonl")
    verdicts = filters.apply(prompts, replies, progress)
    rows: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for prompt in prompts:
        for sample in range(sampling.samples):
            request = Request(prompt.row, sample)
            kept = all(verdicts[request].values())
            rows[kept].append(_row(prompt, request, replies[request], verdicts[request], record))
    _write_parquet(output / KEPT, rows[True])
    _write_parquet(output / REJECTED, rows[False])
    rejected = Counter(next(name for name, passed in verdicts[x].items() if not passed) for x in _rejected(verdicts))
    record["counts"] = {
        "prompts": len(prompts),
        "answers": len(replies),
        "kept": len(rows[True]),
        "prompts_kept": len({row["row"] for row in rows[True]}),
        "rejected": dict(rejected),
    }
    replace_json(output / RECORD, record)
    return record


def _open(output: Path, record: dict[str, Any]) -> None:
    file = output / RECORD
    if not file.exists():
        begin_folder(output)
        replace_json(file, record)
        return
    there = json.loads(file.read_text(encoding="utf-8"))
    if different := [name for name in _IDENTITY if there.get(name) != record[name]]:
        values = "; ".join(f"{name} is {there.get(name)} there and {record[name]} here" for name in different)
        raise ValueError(
            f"{output} holds another run: {values}. Choose another --output, or repeat its own command: "
            f"{there.get('command')}"
        )


def _answer(
    prompts: Sequence[Prompt],
    teacher: Teacher,
    sampling: Sampling,
    output: Path,
    workers: Workers,
    progress: Progress,
) -> None:
    """Have everything answered that the folder does not hold yet; every process has a file of its own."""
    done, total = set(_read(output)), len(prompts) * sampling.samples
    if len(done) == total:
        return
    file = output / (ANSWERS if workers.rank == 0 else f"answers.{workers.rank}.jsonl")
    progress("answering", len(done), total)
    before, own = len(done), 0
    for new in teacher.answers(prompts, sampling, done):
        append_lines(file, (request._asdict() | asdict(reply) for request, reply in new.items()))
        own += len(new)
        # The others are about as far.
        progress("answering", min(before + own * workers.count, total), total)


def _read(output: Path) -> dict[Request, Reply]:
    lines = read_lines(output / ANSWERS)
    return {Request(x["row"], x["sample"]): Reply(x["text"], x["finished"], x["tokens"]) for x in lines}


def _collect(output: Path) -> None:
    """Bring the answers of all processes together."""
    shards = sorted(output.glob("answers.*.jsonl"))
    if shards:
        # A kill between the two steps leaves answers in both places.
        lines = [line for file in (output / ANSWERS, *shards) for line in read_lines(file)]
        replace_lines(output / ANSWERS, {(line["row"], line["sample"]): line for line in lines}.values())
    for shard in shards:
        shard.unlink()


def _rejected(verdicts: Mapping[Request, dict[str, bool]]) -> list[Request]:
    return [request for request, found in verdicts.items() if not all(found.values())]


def _row(
    prompt: Prompt, request: Request, reply: Reply, verdicts: dict[str, bool], record: dict[str, Any]
) -> dict[str, Any]:
    teacher, sampling = record["teacher"], record["sampling"]
    # Templates add their own spaces.
    answer = reply.text.strip()
    return {
        "prompt": None if prompt.chat else prompt.messages[0][1],
        "messages": [*prompt.turns(), {"role": "assistant", "content": answer}] if prompt.chat else None,
        "answer": answer,
        "reference": prompt.reference,
        **request._asdict(),
        "data": record["data"],
        "model": teacher["model"],
        "revision": teacher["revision"],
        **{name: sampling[name] for name in ("temperature", "top_p", "max_new_tokens", "seed")},
        "tokens": reply.tokens,
        "finished": reply.finished,
        **{f"passed_{name}": verdicts.get(name) for name in ("length", "exact", "judge")},
    }


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, numbers, flags = pa.string(), pa.int64(), pa.bool_()
    schema = pa.schema(
        {
            "prompt": texts,
            "messages": pa.list_(pa.struct({"role": texts, "content": texts})),
            **dict.fromkeys(("answer", "reference"), texts),
            **dict.fromkeys(("row", "sample"), numbers),
            **dict.fromkeys(("data", "model", "revision"), texts),
            **dict.fromkeys(("temperature", "top_p"), pa.float64()),
            **dict.fromkeys(("max_new_tokens", "seed", "tokens"), numbers),
            **dict.fromkeys(("finished", "passed_length", "passed_exact", "passed_judge"), flags),
        }
    )
    beside = path.with_name(path.name + ".new")
    pq.write_table(pa.Table.from_pylist(rows, schema), beside)
    os.replace(beside, path)
