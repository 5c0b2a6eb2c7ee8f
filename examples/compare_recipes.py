"""Compare recipes on the same prompts: full attention, shipped recipes, and one of your own.

    python examples/compare_recipes.py
    python examples/compare_recipes.py --model Qwen/Qwen3-0.6B --length 2048

`swaa compare` does the same from the command line, with plots.
"""

import argparse

from swaa import SWAAConfig
from swaa.compare import Settings, choose_recipes, compare
from swaa.models import DEFAULT_MODEL, load_model
from swaa.recipes import Recipe


def main(argv=None):
    parser = argparse.ArgumentParser(description="Compare recipes on the same prompts.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or .gguf file (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt (default: %(default)s)")
    options = parser.parse_args(argv)

    model, tokenizer = load_model(options.model)
    window = options.length // 8
    recipes = choose_recipes(["naive", "sinks-fa-decode-tail"], length=options.length, window=window)
    mine = SWAAConfig(window=window, sinks=32, full_layers="1/4@3", fa_decode=True)
    settings = Settings(length=options.length, samples=4, perplexity_samples=1, prefill_samples=1)
    outcome = compare(model, tokenizer, [*recipes, Recipe("mine", mine)], settings)

    print(f"{'recipe':22} needles found  answer NLL  perplexity  arithmetic    KV held")
    for row in outcome.rows:
        print(
            f"{row['recipe']:22} {row['accuracy']:13.0%} {row['nll']:11.2f} {row['perplexity']:11.1f} "
            f"{row['prefill_flops_ratio']:10.2f}x {row['kv_bytes'] / 1e6:7.1f} MB"
        )


if __name__ == "__main__":
    main()
