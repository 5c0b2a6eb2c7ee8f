"""`swaa eval`: recipes over tasks, lengths and chain of thought, in a folder that can be continued."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swaa.cli.common import (
    PLACE,
    AllSinksOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    StaticCacheOption,
    names,
    no_empty_folder,
    notes,
    output,
    positive_tokens,
    token_count,
    warn,
    warn_of_length,
)
from swaa.cli.progress import time_left
from swaa.cli.unused import refuse_unused
from swaa.cli.wording import quantity
from swaa.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.table import Table

    from swaa.recipes import Recipe
    from swaa.runs import RunSettings

_SAMPLES, _ANSWERS, _JUDGE = "Samples", "Answers", "Judge"


def _lengths(text: str | tuple[int, ...]) -> tuple[int, ...]:
    return text if isinstance(text, tuple) else tuple(positive_tokens(part) for part in names(text))


def _data(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"--data {pair!r}: write NAME=PATH, as in --data longmemeval=longmemeval_s.json")
        found[name.strip()] = path.strip()
    return found


def eval(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    recipes: Annotated[
        str | None,
        typer.Option(
            "--recipes",
            "-r",
            metavar="NAMES",
            help="Comma list of recipe names and files, as in `-r naive,sinks-fa-decode,plan.json`; full attention is "
            "always added. Default: those of `swaa compare`, with a window of an eighth of the shortest length.",
        ),
    ] = None,
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma list, as in `--tasks ruler,needle,perplexity`; `ruler` is all of RULER's tasks that need no "
            "data. A wrong name lists them all.",
            rich_help_panel=_SAMPLES,
        ),
    ] = "needle,perplexity",
    lengths: Annotated[
        Any,
        typer.Option(
            parser=_lengths,
            metavar="TOKENS",
            help="Comma list, as in `--lengths 4k,8k`.",
            rich_help_panel=_SAMPLES,
        ),
    ] = "1k",
    samples: Annotated[
        int,
        typer.Option(
            help="Samples of each task and length, as in `--samples 100`; a data set may hold fewer.",
            rich_help_panel=_SAMPLES,
        ),
    ] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the samples, as in `--seed 1`.", rich_help_panel=_SAMPLES)] = 0,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="Where a data-set task finds its samples, a file or a hub id, as in "
            "`--data longmemeval=longmemeval_s.json`; once for each such task.",
            rich_help_panel=_SAMPLES,
        ),
    ] = None,
    window: Annotated[
        Any,
        typer.Option(parser=token_count, metavar="TOKENS", help="Window of every recipe that slides: `--window 256`."),
    ] = None,
    sinks: AllSinksOption = None,
    reasoning: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Chain of thought, each way a row of its own: `none`, `prompt` (an instruction to reason first), "
            "`thinking` (the chat template's switch), as in `--reasoning none,thinking`.",
            rich_help_panel=_ANSWERS,
        ),
    ] = "none",
    reasoning_tokens: Annotated[
        Any,
        typer.Option(
            parser=positive_tokens,
            metavar="TOKENS",
            help="Room for the reasoning, beside the task's for the answer: `--reasoning-tokens 4k`.",
            rich_help_panel=_ANSWERS,
        ),
    ] = 1024,
    scoring: Annotated[
        str | None,
        typer.Option(
            metavar="forced|free",
            help="Of needles: `forced`: greedy exact match after the start of the answer; `free`: the model writes its "
            "own answer. Default: forced, or free where a chain of thought is asked for.",
            rich_help_panel=_ANSWERS,
        ),
    ] = None,
    judge_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model that judges free answers (LongMemEval), as in `--judge-model gpt-4o-2024-08-06`.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint, as in `--judge-url http://localhost:8000/v1`; OpenAI's by default. Its "
            "key is read from SWAA_JUDGE_KEY or OPENAI_API_KEY.",
            rich_help_panel=_JUDGE,
        ),
    ] = None,
    judge_votes: Annotated[
        int,
        typer.Option(
            help="Times that the judge is asked; the majority wins and the share that agrees is reported, as in "
            "`--judge-votes 3`.",
            rich_help_panel=_JUDGE,
        ),
    ] = 1,
    batch_size: Annotated[
        int, typer.Option(help="Samples a pass, as in `--batch-size 8`; more than 1 pays on a GPU.")
    ] = 1,
    prefill_runs: Annotated[
        int, typer.Option(help="Prompts whose prefill is timed, as in `--prefill-runs 0` for none.")
    ] = 3,
    static_cache: StaticCacheOption = False,
    output_folder: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder of the run, as in `-o results/mine`; one that holds a part of the same run is continued. "
            "Default: a fresh folder below `results`.",
            rich_help_panel=PLACE,
        ),
    ] = None,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
) -> None:
    """Evaluate recipes on tasks, lengths and ways to reason, beside full attention.

    Every sample is on the disk as soon as it is measured: repeat the command with the same `--output` and it goes on
    where it was killed, to the same result. `swaa report DIR` makes a page of it.

    **Examples**

    - `swaa eval -r naive,sinks-fa-decode --window 128 -o results/first` (some minutes on two cores)
    - `swaa eval -m Qwen/Qwen3-4B -r plan.json --tasks ruler,needle --lengths 4k,8k --reasoning none,thinking`
    - `swaa eval --tasks longmemeval --data longmemeval=longmemeval_s.json --lengths 128k --judge-model gpt-4o`
    - `accelerate launch --num_processes 8 -m swaa.cli eval --tasks ruler --lengths 32k -o results/eight-gpus`
    """
    from swaa.cli.loading import load
    from swaa.compare import choose_recipes
    from swaa.judge import Judge
    from swaa.models import quiet_transformers
    from swaa.results import new_folder
    from swaa.runs import RunFolder, RunSettings, run
    from swaa.runs.judging import check_judge, is_open
    from swaa.runs.parallel import joined
    from swaa.runs.summary import overflows

    if judge_model is None:
        refuse_unused(context, "there is no judge: name its model too, by --judge-model", "judge_url", "judge_votes")
    asked: Any = names(reasoning)
    settings = RunSettings(
        tasks=names(tasks),
        lengths=lengths,
        samples=samples,
        seed=seed,
        reasoning=asked,
        reasoning_tokens=reasoning_tokens,
        scoring=scoring,
        batch_size=batch_size,
        prefill_runs=prefill_runs,
        static_cache=static_cache,
        data=_data(data or []),
        judge={"url": judge_url, "model": judge_model, "votes": judge_votes} if judge_model else None,
    )
    kinds = {settings.task(task).kind for task in settings.tasks}
    if "retrieval" not in kinds:
        refuse_unused(context, "no task looks for needles: add one, as in --tasks needle", "scoring")
    if kinds == {"perplexity"}:
        refuse_unused(context, "perplexity has no answers: add a task that has, as in --tasks needle", "reasoning")
    if settings.reasoning == ("none",):
        refuse_unused(context, "no reasoning is asked for: add it, as in --reasoning prompt", "reasoning_tokens")
    if judge_model is not None:
        check_judge(judge_model, settings.tasks)
    chosen = choose_recipes(
        None if recipes is None else names(recipes), length=min(lengths), window=window, sinks=sinks
    )
    with joined(device) as workers, quiet_transformers():
        if workers.count > 1 and output_folder is None:
            raise ValueError("several processes need one folder to meet in: give it by --output")
        judge = None
        if judge_model is not None and workers.rank == 0:
            judge = Judge(judge_model, judge_url, votes=judge_votes)
        loaded, tokenizer = load(model, dtype=dtype, device=workers.device)
        if workers.rank == 0:
            _warn(loaded, chosen, settings)
        path = output_folder or new_folder("results", f"eval-{Path(model).name}")
        folder = RunFolder(path, workers.rank)
        if judge is not None:
            judge.keep(path / "judge.jsonl")
        begin = time.perf_counter()
        with time_left(shown=workers.rank == 0) as update, no_empty_folder(path):
            parts: dict[str, Any] = {"name": model, "workers": workers, "judge": judge, "progress": update}
            rows = run(loaded, tokenizer, chosen, settings, folder, **parts)
        if workers.rank != 0:
            return
        output().print(_table(model, rows, thinks=settings.reasoning != ("none",)))
        measured = folder.read().values()
        for text in overflows(rows, measured, settings):
            warn(f"{text}; try another --dtype")
        if waiting := sum(is_open(row) for row in measured):
            warn(f"{waiting} answers wait for a judge: repeat the command with -o {path} and --judge-model")
        notes().print(f"{time.perf_counter() - begin:.0f} s; samples and summary in {path}")


def _warn(model: Any, recipes: "list[Recipe]", settings: "RunSettings") -> None:
    from swaa.adapting import layer_words

    for recipe in recipes:
        recipe.check_model(model.config)
        if recipe.config.window is not None and recipe.config.window >= max(settings.lengths):
            warn(f"{recipe.name}: a window of {recipe.config.window} covers every prompt, nothing slides")
        if recipe.config.window and "sliding" not in layer_words(model.config.get_text_config(), recipe.config):
            warn(f"{recipe.name}: every layer that could slide keeps full attention, nothing slides")
        if recipe.chain_of_thought not in ("none", *settings.reasoning):
            warn(f"{recipe.name} is meant for --reasoning {recipe.chain_of_thought}, which is not asked for")
    warn_of_length(model.config, max(settings.lengths))


def _table(model: str, rows: list[dict[str, Any]], *, thinks: bool) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=f"{model} (in brackets: ratio to full attention)", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("recipe", "task", "length", *(["reasoning"] if thinks else [])):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "length" else "left")
    for heading in ("score", "95 %", "perplexity", "unparsed", "truncated", "prefill", "KV"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        ratio = "" if row["score_ratio"] is None else f" ({row['score_ratio']:.2f}x)"
        table.add_row(
            row["recipe"],
            row["task"],
            f"{row['length']:,}",
            *([row["reasoning"]] if thinks else []),
            "-" if row["score"] is None else f"{row['score']:.2f}{ratio}",
            "-" if row["low"] is None else f"{row['low']:.2f}-{row['high']:.2f}",
            "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}",
            str(row["unparsed"] or "-"),
            str(row["truncated"] or "-"),
            "-" if row["prefill_seconds"] is None else f"{row['prefill_seconds'] * 1000:,.0f} ms",
            quantity(row["kv_bytes"], "B"),
        )
    return table
