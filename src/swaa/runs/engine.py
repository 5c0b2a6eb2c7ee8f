"""Measuring: every recipe on every cell, batch by batch, each on the disk before the next one begins."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from swaa.adapting import adapt, plan_layers, restore
from swaa.cost import active_weights, kv_bytes, relative_cost
from swaa.evaluate import generate_texts, measure_prefill, perplexity, score_answers
from swaa.judge import Judge
from swaa.prose import prose
from swaa.recipes import Recipe
from swaa.runs.describe import describe_run
from swaa.runs.folder import Key, RunFolder, prompt_hash
from swaa.runs.judging import judge_rows
from swaa.runs.parallel import Workers
from swaa.runs.settings import Cell, RunSettings
from swaa.runs.summary import summarise, write_summary
from swaa.tasks import Sample, Task, final_answer
from swaa.tasks.base import encode

Progress = Callable[[str, int, int], None]


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipes: Sequence[Recipe],
    settings: RunSettings,
    folder: RunFolder,
    *,
    name: str = "model",
    workers: Workers | None = None,
    judge: Judge | None = None,
    progress: Progress = lambda text, done, total: None,
) -> list[dict[str, Any]]:
    """Measure what the folder does not hold yet, then have it judged and summarised.

    A batch is measured again as a whole if a kill left only some of its samples, so that the result does not depend on
    where a run was interrupted; nor does it depend on the number of processes. The model is restored in the end.

    Args:
        model: an unadapted model; in data parallel, one in each process.
        tokenizer: its tokenizer.
        recipes: full attention first (`swaa.compare.choose_recipes`).
        settings: what is measured.
        folder: of this run, new or begun.
        name: of the model, for the records.
        workers: the processes that share the samples; None: this one only.
        judge: gives the scores that a task leaves open; None: they stay open.
        progress: called with what is measured, and with the work done and to be done in all, in tokens.

    Returns:
        the rows of the summary (in process 0; none in the others).

    Raises:
        ConfigError: a recipe does not fit the model.
        EndpointError: the judge cannot be reached; everything measured is kept.
        ValueError: the folder holds another run, or a task cannot make such samples.
    """
    workers = workers or Workers()
    measuring = _Measuring(model, tokenizer, recipes, settings, folder, workers, progress)
    measuring.check()
    content = describe_run(model, recipes, settings, name=name, processes=workers.count)
    # The others look at the folder when process 0 has made and mended it, and nobody writes before all have read.
    if workers.rank == 0:
        folder.open(content)
        folder.collect()
    workers.wait()
    if workers.rank != 0:
        folder.open(content)
    measuring.done = folder.read()
    workers.wait()
    try:
        measuring.measure()
    finally:
        restore(model)
    workers.wait()
    if workers.rank != 0:
        return []
    folder.collect()
    rows = in_order(folder.read(), recipes, settings)
    if judge is not None:
        judge_rows(rows, judge, progress)
    # The lines come first: a judge that is noted has given all scores.
    folder.replace(rows)
    if judge is not None and settings.judge:
        folder.judged(settings.judge)
    summary = summarise(rows, folder.run)
    write_summary(folder.path, summary)
    return summary


def in_order(done: dict[Key, dict[str, Any]], recipes: Sequence[Recipe], settings: RunSettings) -> list[dict[str, Any]]:
    """Return the lines of `samples.jsonl` in the order in which one process measures them."""
    cells = {cell: place for place, cell in enumerate(settings.cells())}
    names = {recipe.name: place for place, recipe in enumerate(recipes)}
    return [done[key] for key in sorted(done, key=lambda key: (cells[key.cell], names[key.recipe], key.number))]


class _Measuring:
    """One process at work."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        recipes: Sequence[Recipe],
        settings: RunSettings,
        folder: RunFolder,
        workers: Workers,
        progress: Progress,
    ):
        self.model, self.tokenizer, self.recipes, self.settings = model, tokenizer, recipes, settings
        self.folder, self.workers, self.progress = folder, workers, progress
        self.tasks: dict[str, Task] = {name: settings.task(name) for name in settings.tasks}
        self.done: dict[Key, dict[str, Any]] = {}
        self.worn: Recipe | None = None
        self.turn = self.worked = self.work = 0

    def check(self) -> None:
        """Fail before the first measurement rather than hours after it."""
        for recipe in self.recipes:
            recipe.check_model(self.model.config)
            plan_layers(self.model.config.get_text_config(), recipe.config)
        for cell in self.settings.cells():
            self.samples(cell, 1)

    def samples(self, cell: Cell, count: int) -> list[Sample]:
        seed = self.settings.seed
        made = self.tasks[cell.task].samples(
            self.tokenizer, length=cell.length, count=count, seed=seed, reasoning=cell.reasoning
        )
        if not made:
            raise ValueError(
                f"{cell.task}: the data set holds no sample of up to {cell.length} tokens: use longer ones"
            )
        return made

    def measure(self) -> None:
        cells, count = self.settings.cells(), self.settings.samples
        self.work = sum(
            (cell.length + self.settings.room(cell)) * len(self.missing(recipe, cell, count))
            for cell in cells
            for recipe in self.recipes
        )
        if self.workers.rank == 0:
            for length in self.settings.lengths:
                self.measure_costs(length)
        for length in self.settings.lengths:
            for cell in (cell for cell in cells if cell.length == length):
                if any(self.missing(recipe, cell, count) for recipe in self.recipes):
                    self.measure_cell(cell)

    def missing(self, recipe: Recipe, cell: Cell, count: int) -> list[int]:
        return [index for index in range(count) if Key(recipe.name, cell, index) not in self.done]

    def measure_cell(self, cell: Cell) -> None:
        settings, samples = self.settings, self.samples(cell, self.settings.samples)
        weight = cell.length + settings.room(cell)
        # A data set may hold fewer samples than were asked for.
        self.work -= weight * len(self.recipes) * (settings.samples - len(samples))
        hashes = [prompt_hash(sample.prompt_ids) for sample in samples]
        for recipe in self.recipes:
            self.check_prompts(recipe, cell, hashes)
            todo = set(self.missing(recipe, cell, len(samples)))
            for start in range(0, len(samples), settings.batch_size):
                batch = range(start, min(start + settings.batch_size, len(samples)))
                if todo.isdisjoint(batch):
                    continue
                self.turn += 1
                if self.turn % self.workers.count == self.workers.rank:
                    self.wear(recipe)
                    rows = self.answer(cell, [samples[index] for index in batch])
                    key = {"recipe": recipe.name, **cell._asdict()}
                    self.folder.append(
                        [
                            {**key, "index": index, "prompt_sha256": hashes[index], **row}
                            for index, row in zip(batch, rows, strict=True)
                            if index in todo
                        ]
                    )
                self.worked += weight * len(todo.intersection(batch))
                self.progress(f"{recipe.name}: {cell.task}, {cell.length}", self.worked, self.work)

    def check_prompts(self, recipe: Recipe, cell: Cell, hashes: Sequence[str]) -> None:
        for index, digest in enumerate(hashes):
            row = self.done.get(Key(recipe.name, cell, index))
            if row and row["prompt_sha256"] != digest:
                raise ValueError(
                    f"{self.folder.path} holds other prompts of {cell.task} at {cell.length} than are made now (the "
                    "tokenizer or the task has changed): choose another --output"
                )

    def wear(self, recipe: Recipe) -> None:
        # The recorded step is that of an adapted model.
        if recipe.config.window is None and not self.settings.static_cache:
            restore(self.model)
        elif recipe is not self.worn:
            adapt(self.model, recipe.config)
        self.worn = recipe

    def answer(self, cell: Cell, batch: Sequence[Sample]) -> Iterator[dict[str, Any]]:
        """Measure one batch; yields what a line of `samples.jsonl` says about the answers."""
        begin = time.perf_counter()
        if self.tasks[cell.task].kind == "perplexity":
            results = [_row(nll=nll) for nll in perplexity(self.model, batch)]
        elif self.settings.is_free(cell):
            room = self.settings.room(cell)
            texts = generate_texts(
                self.model, self.tokenizer, batch, max_new_tokens=room, static_cache=self.settings.static_cache
            )
            results = [self.scored(cell, sample, *text) for sample, text in zip(batch, texts, strict=True)]
        else:
            answers = score_answers(self.model, self.tokenizer, batch, batch_size=len(batch))
            results = [_row(x.text, x.text, float(x.correct), nll=x.nll) for x in answers]
        seconds = (time.perf_counter() - begin) / len(batch)
        for sample, row in zip(batch, results, strict=True):
            gold = sample.references or ((sample.answer,) if sample.answer else ())
            yield row | {"seconds": round(seconds, 4), "references": list(gold), "meta": sample.meta}

    def scored(self, cell: Cell, sample: Sample, text: str, ended: bool) -> dict[str, Any]:
        answer, open_end = final_answer(text, cell.reasoning)
        if answer is None:
            # The limit cut the reasoning off, or the model ended without saying which part is its answer.
            return _row(text, None, 0.0, unparsed=ended, truncated=open_end and not ended)
        return _row(text, answer, self.tasks[cell.task].score(sample, answer))

    def measure_costs(self, length: int) -> None:
        """Fill in the costs of every recipe at a length, those that the folder does not hold yet."""
        config, costs = self.model.config, self.folder.run["cost"]
        # No token of prose holds ten characters.
        ids = encode(self.tokenizer, prose("test")[: 10 * length])
        prompt = (ids * (length // len(ids) + 1))[:length]
        weights = active_weights(self.model)
        for recipe in self.recipes:
            known = costs.setdefault(recipe.name, {})
            if str(length) in known:
                continue
            rules = plan_layers(config.get_text_config(), recipe.config)
            size, release = self.model.dtype.itemsize, recipe.config.release_kv
            ratio = relative_cost(config, rules, length, weights, release_kv=release).flops
            seconds, held = None, kv_bytes(config, rules, length, dtype_bytes=size, release_kv=release)
            if self.settings.prefill_runs:
                self.wear(recipe)
                self.progress(f"{recipe.name}: prefill of {length}", self.worked, self.work)
                seconds, held = measure_prefill(self.model, [prompt] * self.settings.prefill_runs)
            known[str(length)] = {"prefill_seconds": seconds, "prefill_flops_ratio": ratio, "kv_bytes": held}
            self.folder.save()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def _row(
    output: str = "",
    answer: str | None = "",
    score: float | None = None,
    *,
    nll: float | None = None,
    unparsed: bool = False,
    truncated: bool = False,
) -> dict[str, Any]:
    return {
        "output": output,
        "answer": answer,
        "score": score,
        "unparsed": unparsed,
        "truncated": truncated,
        # A model that overflows gives no number, which is no reason to lose the run.
        "nll": nll if nll is not None and math.isfinite(nll) else None,
    }
