"""Prefill time against prompt length on a CPU: full attention beside sliding windows.

    python benchmarks/prefill_cpu.py            # about four minutes on two cores

Writes benchmarks/prefill-cpu.csv, .json (environment) and .png.
"""

import time
from pathlib import Path

import torch

import swaa
from swaa.models import load_model
from swaa.results import command_line, environment, write_csv, write_json
from swaa.tasks import TASKS

LENGTHS = (1024, 2048, 4096, 8192)
SINKS_FA = {"sinks": 10, "fa_decode": True}
CONFIGS = {
    "full attention (sdpa)": None,
    "window 512": swaa.SWAAConfig(window=512, **SINKS_FA),
    "window 512, tail 32": swaa.SWAAConfig(window=512, dense_tail=32, **SINKS_FA),
    "window 512, every fourth layer full": swaa.SWAAConfig(window=512, full_layers="1/4@3", **SINKS_FA),
    "window 128": swaa.SWAAConfig(window=128, **SINKS_FA),
}
HERE = Path(__file__).parent


@torch.inference_mode()
def measure(model, ids, repeats=3):
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        model(ids, logits_to_keep=1)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def plot(rows):
    from matplotlib.figure import Figure

    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    for name in CONFIGS:
        points = [(row["length"], row["seconds"]) for row in rows if row["configuration"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xlabel="prompt tokens", ylabel="prefill (s)", title="SmolLM2-135M, bfloat16, 2 CPU cores", ylim=0)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "prefill-cpu.png", dpi=120)


def main():
    model, tokenizer = load_model(device="cpu", dtype="bfloat16")
    rows = []
    for length in LENGTHS:
        sample = TASKS["perplexity"].samples(tokenizer, length=length, count=1, seed=0)[0]
        ids = torch.tensor([sample.prompt_ids])
        for name, config in CONFIGS.items():
            swaa.adapt(model, config) if config else swaa.restore(model)
            measure(model, ids[:, :256], repeats=1)
            seconds = measure(model, ids)
            full = next((r["seconds"] for r in rows if r["length"] == length), seconds)
            rows.append({"length": length, "configuration": name, "seconds": seconds, "ratio": seconds / full})
            print(f"{length:6} {name:36} {seconds:6.2f} s  {seconds / full:.2f}x", flush=True)
    write_csv(HERE / "prefill-cpu.csv", rows)
    write_json(HERE / "prefill-cpu.json", {"command": command_line(), "environment": environment()})
    plot(rows)


if __name__ == "__main__":
    main()
