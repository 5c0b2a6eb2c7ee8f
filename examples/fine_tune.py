"""Teach a model its window: a few steps of LoRA under the mask, then the adapter loaded again.

    python examples/fine_tune.py

A demonstration on made-up notes: real training wants thousands of varied samples (docs/training.md). `swaa train` does
the same from the command line.
"""

import argparse
import random
import tempfile
from pathlib import Path

import swaa
from swaa.models import DEFAULT_MODEL, load_model, quiet_transformers
from swaa.train import Lora, TrainSettings, fine_tune, make_examples

# Two layers full, and no FA decode: the others release their keys and values.
CONFIG = swaa.SWAAConfig(window=32, sinks=16, full_layers=[7, 18])
NAMES = "Ada Boris Carla Dmitri Elif Farid Greta Hiro Ines Jonas Kofi Lucia Milan Nadia Omar Petra"


def note(rng):
    """A prompt whose answer lies outside the window of its question."""
    names = rng.sample(NAMES.split(), 8)
    codes = [str(rng.randrange(1000, 10000)) for _ in names]
    lines = [f"The locker of {name} opens with {code}." for name, code in zip(names, codes, strict=True)]
    return {"prompt": " ".join(lines) + f" What opens the locker of {names[2]}?", "answer": codes[2]}


def main(argv=None):
    parser = argparse.ArgumentParser(description="A few steps of fine-tuning under the mask.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or .gguf file (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="of four samples each (default: %(default)s)")
    options = parser.parse_args(argv)

    model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
    swaa.adapt(model, CONFIG)
    rng = random.Random(0)
    rows = [note(rng) for _ in range(4 * options.steps)]
    training, _ = make_examples(rows, tokenizer, max_length=512)
    held_out, _ = make_examples([note(rng) for _ in range(8)], tokenizer, max_length=512)
    folder = Path(tempfile.mkdtemp(prefix="swaa-")) / "adapter"
    settings = TrainSettings(
        Lora(rank=8), learning_rate=1e-3, max_steps=options.steps, batch_size=4, accumulate=1, cpu=True
    )

    def show(step, metrics):
        if "eval_nll" in metrics:
            print(f"step {step}: answer NLL on held-out notes {metrics['eval_nll']:.2f}")

    with quiet_transformers():
        fine_tune(model, tokenizer, training, folder, settings, eval_examples=held_out, base=options.model, show=show)
        # The adapter knows its model and its adaptation; `swaa generate -m` and `swaa merge` take the folder too.
        trained = swaa.load(folder)
    print(f"{folder}: {swaa.adaptation(trained).config}")


if __name__ == "__main__":
    main()
