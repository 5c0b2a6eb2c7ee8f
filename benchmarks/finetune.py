"""Fine-tuning of the default model for two cases, on generated and self-distilled data, and what comes of it.

    python benchmarks/finetune.py data                                     # what it trains on; then, on a GPU,
    python benchmarks/finetune.py distill                                  # its own answers (or those kept here)
    python benchmarks/finetune.py train a-kl --case a --loss kl            # and others, as processes side by side
    python benchmarks/finetune.py evaluate original a-kl                   # before and after
    python benchmarks/finetune.py collect original a-kl b-kl               # write benchmarks/finetune.csv, .json, .png
    python benchmarks/finetune.py ship a-kl smollm2-fa-decode              # put it into adapters/, in bfloat16

Case a: no full layer, FA decode. Case b: layers 7, 18, 20 and 23 full, a dense tail of 64, no FA decode, so that 26 of
30 layers release their KV. A step that was killed goes on when its command is repeated; `--folder` holds everything.
`evaluate` measures needle and needle-multikey (their keys, wordings and texts are not in the data) and perplexity on a
book that is not in the data either: under the case's own attention and under full attention. Against time limits, put
`timeout 540` in front.
"""

import argparse
import functools
import json
import math
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from finetune_data import MAKERS, make
from safetensors.torch import load_file, save_file

import swaa
from swaa.evaluate import accuracy_interval, perplexity, score_answers
from swaa.models import load_model, quiet_transformers
from swaa.results import append_lines, command_line, read_lines, replace_lines, write_csv, write_json
from swaa.tasks import TASKS

HERE = Path(__file__).parent
# What `distill` gave on one H200 (finetune/distill.json has the command): its step may be left out.
ANSWERS = HERE / "finetune" / "answers.parquet"
SHIPPED = HERE.parent / "adapters"
ORIGINAL = "original"
WINDOW = 256
CASES = {"a": {"fa_decode": True}, "b": {"full_layers": [7, 18, 20, 23], "dense_tail": 64}}
COUNTS = {"retrieval": 6000, "broad": 1500, "prose": 600}
TARGETS = {"attention": "q_proj,k_proj,v_proj,o_proj"}
TARGETS["all"] = TARGETS["attention"] + ",gate_proj,up_proj,down_proj"
ACCURACY_TASKS = ("needle", "needle-multikey")
# Shares of full attention's accuracy, by length, and how much worse the perplexity may be.
AIMS, PERPLEXITY_AIM = {2048: 0.98, 4096: 0.95}, 1.03
# Tokens that an evaluation pass holds.
PASS_TOKENS = 1 << 15


def case_config(case, sinks):
    return swaa.SWAAConfig(window=WINDOW, sinks=sinks, **CASES[case])


def data(options):
    """Write the generated parts, and the prompts that the model is to answer."""
    tokenizer = load_model(device="cpu")[1]
    for part, count in COUNTS.items():
        file = options.folder / f"{part}.jsonl"
        if not file.exists():
            count = max(int(count * options.scale), 4)
            replace_lines(file, make(part, tokenizer, count, options.shortest, options.longest, seed=0))
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", flush=True)


def distill(options):
    """Let the original model answer the broad prompts."""
    words = ["-d", options.folder / "broad.jsonl", "-o", options.folder / "distilled"]
    words += ["--max-new-tokens", options.new_tokens, "--batch-size", options.batch_size]
    run("distill", *words, "--samples", 1, "--static-cache")


def train(options):
    """Mix the named parts and train on them."""
    rows = []
    for part in options.parts.split(","):
        if part == "broad":
            from swaa.train import read_data

            own = options.folder / "distilled" / "answers.parquet"
            answers = read_data(own if own.exists() else ANSWERS)
            rows += [{"prompt": row["prompt"], "answer": row["answer"]} for row in answers]
        else:
            rows += read_lines(options.folder / f"{part}.jsonl")
    random.Random(0).shuffle(rows)
    folder = options.folder / options.name
    folder.mkdir(exist_ok=True)
    replace_lines(folder / "data.jsonl", rows)
    config = case_config(options.case, options.sinks)
    config.save(folder / "recipe.yaml")
    words = ["-r", folder / "recipe.yaml", "-d", folder / "data.jsonl", "-o", folder / "adapter"]
    words += ["--targets", TARGETS[options.targets], "--rank", options.rank]
    words += ["--lr", options.lr, "--max-steps", options.steps, "--pack", options.pack, "--accumulate", options.rows]
    words += ["--save-steps", options.save_steps, "--log-steps", 20]
    if options.needles:
        words += ["--eval-steps", options.eval_steps]
        words += ["--needles", options.needles, "--needle-length", options.longest // 2]
    words += ["--loss", options.loss, "--kl-weight", options.kl_weight]
    record = folder / "adapter" / "train.json"
    if record.exists() and "log" in json.loads(record.read_text()):
        print(f"{options.name} is trained")
        return
    run("train", *words)


def run(*words):
    command = [sys.executable, "-m", "swaa.cli", *map(str, words)]
    print(" ".join(command), flush=True)
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def evaluate(options):
    """Measure models, a line a figure; what is there already is not measured again."""
    for name in options.names:
        file = options.folder / f"{name}.jsonl"
        done = {key(row) for row in read_lines(file)}
        with quiet_transformers():
            base, tokenizer = load_model()
            model, attentions = base, {"full": swaa.SWAAConfig()}
            if name == ORIGINAL:
                attentions |= {f"{case}, {n} sinks": case_config(case, n) for case in CASES for n in options.sinks}
            else:
                folder = options.folder / name / "adapter"
                model = swaa.load(folder, dtype=base.dtype).to(base.device).eval()
                attentions["own"] = swaa.adaptation(model).config
            for attention, config in attentions.items():
                swaa.adapt(model, config)
                for row in figures(model, tokenizer, name, attention, done, options):
                    append_lines(file, [row | {"config": config.to_dict()}])


def figures(model, tokenizer, name, attention, done, options):
    for length in options.lengths:
        for task in (*ACCURACY_TASKS, "perplexity"):
            begin, row = time.perf_counter(), {"name": name, "attention": attention, "task": task, "length": length}
            if key(row) in done:
                continue
            # The book has so many windows that share nothing.
            count = min(options.samples, 190_000 // length) if task == "perplexity" else options.samples
            samples = made(tokenizer, task, length, count, options.seed)
            if task == "perplexity":
                nlls = list(perplexity(model, samples))
                row |= {"accuracy": None, "low": None, "high": None, "nll": math.fsum(nlls) / count}
            else:
                batch = max(PASS_TOKENS // length, 1)
                answers = list(score_answers(model, tokenizer, samples, batch_size=batch))
                correct = sum(answer.correct for answer in answers)
                low, high = accuracy_interval(correct, count)
                nll = math.fsum(answer.nll for answer in answers) / count
                row |= {"accuracy": correct / count, "low": low, "high": high, "nll": nll}
            row |= {"samples": count}
            print(
                f"{name}, {attention}, {task}, {length}: {shown(row)}, {time.perf_counter() - begin:.0f} s", flush=True
            )
            yield row


@functools.cache
def made(tokenizer, task, length, count, seed):
    return TASKS[task].samples(tokenizer, length=length, count=count, seed=seed, split="test")


def key(row):
    return row["name"], row["attention"], row["task"], row["length"]


def shown(row):
    accuracy = f"perplexity {math.exp(row['nll']):.2f}" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    return f"{accuracy} (NLL {row['nll']:.3f})"


def collect(options):
    """Set what was measured beside the original under full attention, and write it into benchmarks/."""
    lines, trained = [], {}
    for name in options.names:
        lines += read_lines(options.folder / f"{name}.jsonl")
        if name != ORIGINAL:
            record = json.loads((options.folder / name / "adapter" / "train.json").read_text())
            kept = ("command", "settings", "config", "examples", "rows", "steps", "environment")
            trained[name] = {field: record[field] for field in kept}
    reference = {(x["task"], x["length"]): x for x in lines if x["name"] == ORIGINAL and x["attention"] == "full"}
    table = []
    for line in lines:
        original, length = reference[line["task"], line["length"]], line["length"]
        row = {
            name: line[name] for name in ("name", "attention", "task", "length", "samples", "accuracy", "low", "high")
        }
        row |= {"nll": line["nll"], "perplexity": "", "ratio": "", "aim": ""}
        if line["task"] == "perplexity":
            row |= {"accuracy": "", "low": "", "high": "", "perplexity": math.exp(line["nll"])}
            row["ratio"] = math.exp(line["nll"] - original["nll"])
            row["aim"] = "met" if row["ratio"] <= PERPLEXITY_AIM else "missed"
        elif original["accuracy"]:
            row["ratio"] = line["accuracy"] / original["accuracy"]
            row["aim"] = "" if length not in AIMS else "met" if row["ratio"] >= AIMS[length] else "missed"
        table.append(row)
    write_csv(HERE / "finetune.csv", table)
    write_json(HERE / "finetune.json", {"command": command_line(), "trained": trained})
    plot(table)


def ship(options):
    """Keep a trained adapter in adapters/, in the precision that its training computed in."""
    there, folder = options.folder / options.name / "adapter", SHIPPED / options.to
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_config.json", "swaa_config.json", "train.json"):
        shutil.copy(there / name, folder)
    weights = load_file(there / "adapter_model.safetensors")
    halved = {name: tensor.bfloat16().contiguous() for name, tensor in weights.items()}
    save_file(halved, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    print(f"{folder}: {(folder / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")


def plot(table):
    from matplotlib.figure import Figure

    series = list(dict.fromkeys((row["name"], row["attention"]) for row in table))
    kinds = dict.fromkeys(attention if name == ORIGINAL else name for name, attention in series)
    colors = {kind: f"C{number}" for number, kind in enumerate(kind for kind in kinds if kind != "full")}
    figure = Figure((15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, task in zip(axes, (*ACCURACY_TASKS, "perplexity"), strict=True):
        for name, attention in series:
            rows = [x for x in table if (x["name"], x["attention"], x["task"]) == (name, attention, task)]
            rows.sort(key=lambda row: row["length"])
            values = [row["perplexity" if task == "perplexity" else "accuracy"] for row in rows]
            style = "--" if attention == "full" else ":" if name == ORIGINAL else "-"
            # A trained model has one colour, under its own attention and under full attention.
            color = colors.get(attention if name == ORIGINAL else name, "black")
            lengths = [row["length"] for row in rows]
            axis.plot(lengths, values, style, marker="o", label=f"{name}: {attention}", color=color)
        axis.set(title=task, xlabel="tokens", xticks=sorted({row["length"] for row in table}))
        axis.spines[["top", "right"]].set_visible(False)
        if task != "perplexity":
            axis.set(ylabel="accuracy", ylim=(0, 1.03))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(
        f"SmolLM2-135M-Instruct, window {WINDOW}: before (dotted) and after fine-tuning; dashed: full attention"
    )
    figure.savefig(HERE / "finetune.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)

    def step(action):
        made = steps.add_parser(action.__name__, help=action.__doc__)
        made.add_argument("--folder", type=Path, default=Path("results/finetune"))
        made.set_defaults(action=action)
        return made.add_argument

    lengths = {"--shortest": 512, "--longest": 4096}
    add = step(data)
    for name, default in lengths.items():
        add(name, type=int, default=default, help="tokens of a prompt, about")
    add("--scale", type=float, default=1.0, help="share of the rows to make, for a trial")
    add = step(distill)
    add("--new-tokens", type=int, default=512)
    add("--batch-size", type=int, default=256)
    add = step(train)
    add("name", help="of the result")
    add("--case", choices=CASES, required=True)
    add("--loss", default="sft", help="sft, kl or sft+kl")
    add("--kl-weight", type=float, default=1.0)
    add("--parts", default=",".join(MAKERS), help="of the data")
    add("--sinks", type=int, default=64)
    add("--rank", type=int, default=16)
    add("--targets", choices=TARGETS, default="attention")
    add("--lr", type=float, default=2e-4)
    add("--steps", type=int, default=600)
    add("--pack", type=int, default=16384, help="tokens of a row")
    add("--rows", type=int, default=2, help="rows a step")
    add("--longest", type=int, default=4096, help="tokens of a prompt in the data, about")
    add("--needles", type=int, default=40, help="looked for at each evaluation")
    add("--eval-steps", type=int, default=100)
    add("--save-steps", type=int, default=100)
    add = step(evaluate)
    add("names", nargs="+", help=f"{ORIGINAL!r}, or what was trained")
    add("--sinks", type=int, nargs="+", default=[10, 64], help=f"under which {ORIGINAL!r} is measured")
    add("--lengths", type=int, nargs="+", default=[2048, 4096, 8000])
    add("--samples", type=int, default=200)
    add("--seed", type=int, default=0)
    add = step(collect)
    add("names", nargs="+", help="what to write down")
    add = step(ship)
    add("name", help="of the result")
    add("to", help="what it is called in adapters/")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.action(options)


if __name__ == "__main__":
    main()
