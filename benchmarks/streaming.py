"""Constant memory: generate far past the window under sliding windows and sinks, with FA decode off everywhere.

    python benchmarks/streaming.py default      # the default model, 7,000 tokens
    python benchmarks/streaming.py tiny         # a tiny random model, 50,000 tokens

Writes benchmarks/streaming-<which>.csv, .json (environment) and .png: KV bytes held and time a token.
"""

import sys
import time
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import swaa
from swaa.evaluate import cache_bytes
from swaa.models import load_model
from swaa.results import command_line, environment, write_csv, write_json

HERE = Path(__file__).parent
CONFIG = swaa.SWAAConfig(window=256, sinks=10)


def default_model():
    model, tokenizer = load_model(device="cpu")
    return model, tokenizer("Once upon a time", return_tensors="pt").input_ids, 7000, 250


def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=65536,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randint(3, 128, (1, 16)), 50_000, 1000


@torch.inference_mode()
def stream(model, ids, total, every):
    """A hand-written greedy loop, as a service that never ends would run it."""
    cache = DynamicCache(config=model.config)
    rows, begin = [], time.perf_counter()
    for step in range(1, total + 1):
        logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        ids = logits[:, -1:].argmax(-1)
        if step % every == 0:
            seconds, begin = time.perf_counter() - begin, time.perf_counter()
            row = {"tokens": step, "kv_bytes": cache_bytes(cache), "ms_per_token": 1000 * seconds / every}
            rows.append(row)
            print(row, flush=True)
    return rows


def plot(rows, which):
    from matplotlib.figure import Figure

    figure = Figure((8, 5), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    tokens = [row["tokens"] for row in rows]
    top.plot(tokens, [row["kv_bytes"] / 1e6 for row in rows])
    top.set(ylabel="KV held (MB)", ylim=(0, None), title=f"{which} model, window {CONFIG.window}, {CONFIG.sinks} sinks")
    bottom.plot(tokens, [row["ms_per_token"] for row in rows])
    bottom.set(xlabel="tokens generated", ylabel="ms a token", ylim=(0, None))
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / f"streaming-{which}.png", dpi=120)


def main():
    which = sys.argv[1]
    model, ids, total, every = {"default": default_model, "tiny": tiny_model}[which]()
    swaa.adapt(model, CONFIG)
    rows = stream(model, ids, total, every)
    write_csv(HERE / f"streaming-{which}.csv", rows)
    write_json(HERE / f"streaming-{which}.json", {"command": command_line(), "environment": environment()})
    plot(rows, which)


if __name__ == "__main__":
    main()
