"""Result folders of the form that `swaa eval` and `swaa compare` write, made up and the same every time."""

import json
import math
import random

from swaa.evaluate import accuracy_interval
from swaa.recipes import load_recipe
from swaa.report.reading import read_runs

DEPTH = 30
# How well a recipe finds things (without reasoning), and what its prefill takes of full attention's.
ABILITY = {
    "full": (0.98, 1.0),
    "naive": (0.08, 0.34),
    "sinks": (0.12, 0.36),
    "fa-decode": (0.22, 0.35),
    "sinks-fa-decode": (0.55, 0.37),
    "sinks-odd-fa-decode": (0.9, 0.68),
    "sinks-fa-decode-tail": (0.95, 0.41),
}
TASKS = ("niah-single-1", "niah-multikey-2", "vt", "needle")
LENGTHS = (1024, 2048, 4096, 8192)


def write_eval(
    folder,
    *,
    recipes=tuple(ABILITY),
    tasks=(*TASKS, "perplexity"),
    lengths=LENGTHS,
    reasonings=("none",),
    count=40,
    model="HuggingFaceTB/SmolLM2-135M-Instruct",
    **changes,
):
    """Write a folder of `swaa eval`; `changes` replace keys of its run.json."""
    folder.mkdir(parents=True)
    rows, samples = [], []
    for length in lengths:
        for task in tasks:
            for reasoning in reasonings if task != "perplexity" else ("none",):
                for recipe in recipes:
                    made = [_sample(recipe, task, length, reasoning, index) for index in range(count)]
                    samples += made
                    rows.append(_row(recipe, task, length, reasoning, made))
    full = {(row["task"], row["length"], row["reasoning"]): row["score"] for row in rows if row["recipe"] == "full"}
    for row in rows:
        whole = full.get((row["task"], row["length"], row["reasoning"]))
        row["score_ratio"] = row["score"] / whole if whole else None
    content = {
        "format": 1,
        "command": f"swaa eval -m {model} --recipes {','.join(recipes)} --tasks {','.join(tasks)} --samples {count}",
        "model": model,
        "model_revision": "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        "seed": 0,
        "settings": {
            "tasks": list(tasks),
            "lengths": list(lengths),
            "samples": count,
            "reasoning": list(reasonings),
            "scoring": "free",
            "batch_size": 8,
            "judge": None,
        },
        "recipes": {name: load_recipe(name).to_dict() for name in recipes},
        "layers": {name: _layers(name) for name in recipes},
        "model_config": {"num_hidden_layers": DEPTH, "model_type": "llama", "hidden_size": 576},
        "environment": {"swaa": "0.1.0", "python": "3.12.3", "torch": "2.11.0", "gpu": "NVIDIA H100 80GB HBM3"},
        "started": "2025-06-01T09:30:00+00:00",
        "cost": {name: {str(length): _cost(name, length) for length in lengths} for name in recipes},
    }
    _write(folder / "run.json", content | changes)
    _write(folder / "summary.json", rows)
    lines = (json.dumps(sample) + "\n" for sample in samples)
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def write_compare(folder, *, recipes=tuple(ABILITY), length=1024, count=16, **changes):
    """Write the results.json of `swaa compare`; `changes` replace its keys."""
    folder.mkdir(parents=True)
    table, predictions = [], []
    for recipe in recipes:
        made = [_sample(recipe, "needle", length, "none", index) for index in range(count)]
        right = sum(sample["score"] == 1 for sample in made)
        low, high = accuracy_interval(right, count)
        seconds = _cost(recipe, length)["prefill_seconds"]
        table.append({"recipe": recipe, "accuracy": right / count, "accuracy_low": low, "accuracy_high": high})
        table[-1] |= {"nll": 0.5, "perplexity": 17.25, "prefill_seconds": seconds, "kv_bytes": 2_000_000}
        table[-1] |= {"kv_bytes_computed": 2_000_000, "accuracy_ratio": right / count, "nll_ratio": 1.0}
        predictions += [
            {"recipe": recipe, "index": x["index"], "correct": x["score"] == 1, "nll": 0.5, "meta": x["meta"]}
            for x in made
        ]
    content = {
        "command": f"swaa compare --length {length}",
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "settings": {"task": "needle", "length": length, "samples": count, "seed": 0, "perplexity_samples": 3},
        "recipes": {name: load_recipe(name).to_dict() for name in recipes},
        "environment": {"swaa": "0.1.0", "torch": "2.11.0"},
        "seconds": 61.5,
        "table": table,
        "predictions": predictions,
    }
    _write(folder / "results.json", content | changes)
    return folder


def one(folder):
    """The run in a folder."""
    (run,) = read_runs([folder])
    return run


def change(path, **changes):
    """Replace keys of a JSON file."""
    _write(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def _sample(recipe, task, length, reasoning, index):
    rng = random.Random(f"{recipe}/{task}/{length}/{reasoning}/{index}")
    needle = task == "needle" or task.startswith("niah")
    meta = {"index": index} | ({"depth": rng.uniform(0.05, 0.7)} if needle else {})
    sample = {"recipe": recipe, "task": task, "length": length, "reasoning": reasoning, "index": index}
    sample |= {"prompt_sha256": f"{rng.getrandbits(256):064x}", "output": "The number is 1234567.", "answer": "1234567"}
    if task == "perplexity":
        scored = {"score": None, "nll": 2.8 + (1 - ABILITY[recipe][0]) + 50 / length}
        return sample | scored | {"unparsed": False, "truncated": False, "seconds": 0.1, "meta": meta}
    chance = ABILITY[recipe][0] ** (1 + math.log2(length / 1024) / 3) * (0.8 if task == "vt" else 1)
    if reasoning != "none":
        chance = chance + (1 - chance) * 0.45
    if needle:
        # What lies near the end is still in a window.
        chance = max(chance, 0.95) if meta["depth"] > 1 - 320 / length else chance
    truncated = reasoning != "none" and rng.random() < 0.08
    right = rng.random() < chance and not truncated
    score = round(rng.uniform(0.4, 1), 2) if right and task == "vt" else float(right)
    scored = {"score": score, "nll": rng.uniform(0.1, 2)}
    return sample | scored | {"unparsed": False, "truncated": truncated, "seconds": 0.2, "meta": meta}


def _row(recipe, task, length, reasoning, samples):
    row = {"recipe": recipe, "task": task, "length": length, "reasoning": reasoning, "count": len(samples)}
    nll = math.fsum(sample["nll"] for sample in samples) / len(samples)
    cost = {key: _cost(recipe, length)[key] for key in ("prefill_seconds", "kv_bytes")}
    if task == "perplexity":
        row |= {"score": None, "low": None, "high": None, "nll": nll, "perplexity": math.exp(nll)}
    else:
        total = math.fsum(sample["score"] for sample in samples)
        low, high = accuracy_interval(round(total), len(samples))
        score = total / len(samples)
        row |= {"score": score, "low": min(low, score), "high": max(high, score), "nll": nll, "perplexity": None}
    return row | {"unparsed": 0, "truncated": sum(sample["truncated"] for sample in samples)} | cost


def _cost(recipe, length):
    share = ABILITY[recipe][1]
    seconds = (
        (0.2 + length / 6000) * (share + (1 - share) * 0.5 ** (length / 3000))
        if recipe != "full"
        else (0.2 + length / 6000)
    )
    return {
        "prefill_seconds": seconds,
        "prefill_flops_ratio": share + (1 - share) * 0.5 ** (length / 3000) if recipe != "full" else 1.0,
        "kv_bytes": round(23040 * length * (0.05 if recipe in ("naive", "sinks") else 1)),
    }


def _layers(recipe):
    rules = load_recipe(recipe).config.resolve(DEPTH)
    return ["full" if rule.window is None else "sliding" for rule in rules]


def _write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
