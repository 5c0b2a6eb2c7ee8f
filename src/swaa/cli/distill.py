"""`swaa distill`: the original model answers prompts, for `swaa train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from swaa.cli.common import (
    PLACE,
    DeviceOption,
    DtypeOption,
    ModelOption,
    StaticCacheOption,
    names,
    notes,
    positive_tokens,
    warn,
)
from swaa.cli.progress import time_left
from swaa.cli.unused import refuse_unused
from swaa.models import DEFAULT_MODEL

_ANSWERS, _FILTERS = "Answers", "Filters"
_REASONS = {
    "length": "not finished in {max_new_tokens} tokens (or no room for them), or shorter than {min_tokens}",
    "exact": "another answer than the right one",
    "judge": "not right to the judge, or not clearly",
}


def distill(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="PATH",
            help="Rows with `prompt` or `messages`, and maybe `answer` (the right one): JSONL, JSON, parquet or a hub "
            "id, as in `-d prompts.jsonl`.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for the answers, as in `-o answers`; one that holds a part of the same run is continued.",
            rich_help_panel=PLACE,
        ),
    ],
    model: ModelOption = DEFAULT_MODEL,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Let the model of this name behind an OpenAI-compatible endpoint answer, as in "
            "`--url http://localhost:8000/v1`. A key is read from SWAA_TEACHER_KEY or OPENAI_API_KEY.",
            rich_help_panel=PLACE,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(help="Answers to each prompt, as in `--samples 4`.", rich_help_panel=_ANSWERS)
    ] = 1,
    temperature: Annotated[
        float,
        typer.Option(help="Of the answers; 1: what the model itself would say.", rich_help_panel=_ANSWERS),
    ] = 1.0,
    top_p: Annotated[
        float, typer.Option(help="Share of the probability to draw from: `--top-p 0.95`.", rich_help_panel=_ANSWERS)
    ] = 1.0,
    max_new_tokens: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Where an answer is cut off, thoughts included, as in `--max-new-tokens 4k`.",
            rich_help_panel=_ANSWERS,
        ),
    ] = 1024,
    seed: Annotated[int, typer.Option(help="Of the answers, as in `--seed 1`.", rich_help_panel=_ANSWERS)] = 0,
    filters: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="What an answer must pass: `length` (finished), `exact` (it is the right one, but for capitals and "
            "punctuation), `judge`, as in `--filters length,judge`; `none` keeps all.",
            rich_help_panel=_FILTERS,
        ),
    ] = "length",
    min_tokens: Annotated[
        int, typer.Option(help="Of an answer, for `length`, as in `--min-tokens 20`.", rich_help_panel=_FILTERS)
    ] = 1,
    judge_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="That judges, as in `--judge-model Qwen/Qwen3-32B`.", rich_help_panel=_FILTERS
        ),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Its OpenAI-compatible endpoint; OpenAI's by default. A key is read from SWAA_JUDGE_KEY or "
            "OPENAI_API_KEY.",
            rich_help_panel=_FILTERS,
        ),
    ] = None,
    judge_votes: Annotated[
        int,
        typer.Option(help="Times that it is asked; the majority wins: `--judge-votes 3`.", rich_help_panel=_FILTERS),
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(help="Answers drawn at a time, as in `--batch-size 64`.", rich_help_panel=PLACE)
    ] = 8,
    static_cache: StaticCacheOption = False,
    parallel: Annotated[
        int, typer.Option(help="Requests to `--url` at a time, as in `--parallel 64`.", rich_help_panel=PLACE)
    ] = 16,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Let the original model, with full attention, answer prompts: data that teaches the window and nothing else.

    What passes the filters is in `answers.parquet`, which `swaa train -d` reads; the rest is in `rejected.parquet`.
    Every answer is on the disk as soon as it is there: repeat the command with the same `--output` and it goes on where
    it was killed, to the same result. With other filters, nothing is asked again.

    **Examples**

    - `swaa distill -d prompts.jsonl -o answers`, and then
      `swaa train -r sinks-fa-decode -d answers/answers.parquet -o adapters/first`
    - `swaa distill -d questions.parquet --samples 4 --filters length,exact --batch-size 64 -o answers`
    - `accelerate launch --num_processes 8 -m swaa.cli distill -m Qwen/Qwen3-4B -d me/questions -o answers`
    - `swaa distill -m Qwen/Qwen3-4B --url http://localhost:8000/v1 -d me/questions --samples 4 --max-new-tokens 4k
      --filters length,judge --judge-model Qwen/Qwen3-32B --judge-url http://localhost:8001/v1 -o answers`
    """
    from swaa.cli.loading import load
    from swaa.distill import Filters, LocalTeacher, RemoteTeacher, Sampling, Teacher, read_prompts
    from swaa.distill import distill as run
    from swaa.judge import Judge
    from swaa.models import quiet_transformers
    from swaa.results import model_revision
    from swaa.runs.parallel import joined

    sampling = Sampling(samples, temperature, top_p, max_new_tokens, seed)
    passing = tuple(name for name in names(filters) if name != "none")
    if "judge" not in passing:
        reason = f"no judge is asked by --filters {filters}: add it, as in --filters length,judge"
        refuse_unused(context, reason, "judge_model", "judge_url", "judge_votes")
    if "length" not in passing:
        refuse_unused(context, f"no length is looked at by --filters {filters}: add it", "min_tokens")
    if temperature == 0:
        refuse_unused(context, "nothing is drawn at temperature 0: use a higher one", "top_p", "seed")
    if url is None:
        refuse_unused(context, "there is no server to ask: name one by --url", "parallel")
    else:
        reason = "the server of --url answers, and not this process: drop --url"
        refuse_unused(context, reason, "batch_size", "static_cache", "dtype", "device")
    judge = Judge(judge_model, judge_url, votes=judge_votes) if judge_model else None
    chosen = Filters(passing, min_tokens, judge)
    prompts = read_prompts(data)
    chosen.check(prompts)
    teacher: Teacher
    with joined(device) as workers, quiet_transformers(), time_left(shown=workers.rank == 0) as progress:
        if url is not None:
            if workers.count > 1:
                raise ValueError(
                    "--url: one process asks the server, however many GPUs that has: leave the launcher out"
                )
            teacher = RemoteTeacher(model, url, parallel=parallel)
        else:
            loaded, tokenizer = load(model, dtype=dtype, device=workers.device)
            revision, share = model_revision(loaded), (workers.rank, workers.count)
            options: dict[str, Any] = {"name": model, "revision": revision, "batch_size": batch_size, "share": share}
            teacher = LocalTeacher(loaded, tokenizer, static_cache=static_cache, **options)
        record = run(prompts, teacher, output, sampling, chosen, data=data, workers=workers, progress=progress)
    if workers.rank:
        return
    counts = record["counts"]
    notes().print(
        f"kept {counts['kept']} of {counts['answers']} answers, to {counts['prompts_kept']} of {counts['prompts']} "
        f"prompts: {output / 'answers.parquet'}"
    )
    values = {"max_new_tokens": max_new_tokens, "min_tokens": min_tokens}
    for name, count in counts["rejected"].items():
        notes().print(f"left out {count}: {_REASONS[name].format(**values)}")
    if not counts["kept"]:
        rest = output / "rejected.parquet"
        warn(f"no answer is kept: look at {rest}, and choose other filters or a higher --max-new-tokens")
