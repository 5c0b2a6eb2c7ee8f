"""Choose the layers that stay full, see what they are worth, and use them.

    python examples/select_layers.py

Small, so that it ends soon on a CPU: a real selection has longer prompts and more of them (docs/selection.md).
`swaa select` does the same from the command line, with plots.
"""

import argparse
import tempfile
from pathlib import Path

import swaa
from swaa.models import DEFAULT_MODEL, load_model
from swaa.recipes import load_recipe
from swaa.select import Calibration
from swaa.select.run import SelectSettings, select


def main(argv=None):
    parser = argparse.ArgumentParser(description="Choose the layers that stay full.")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="hub id, folder or .gguf file (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=2, help="layers that stay full (default: %(default)s)")
    parser.add_argument("--length", type=int, default=320, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the plan; one that was begun is continued")
    options = parser.parse_args(argv)

    model, tokenizer = load_model(options.model)
    # Under this recipe every layer slides; an answer sees everything.
    recipe = load_recipe("sinks-fa-decode").replace(window=48)
    settings = SelectSettings(("nll",), (options.budget,), Calibration(options.length, samples=3), test_samples=3)
    folder = options.output or Path(tempfile.mkdtemp(prefix="swaa-"))
    outcome = select(model, tokenizer, recipe, settings, folder, name=options.model)
    for row in outcome.rows:
        where = f"layers {row['layers']}" if row["layers"] else ""
        print(f"{row['method']:15} answer NLL {row['calibration_nll']:.2f}, on other prompts {row['nll']:.2f} {where}")

    # The plan is a recipe: `swaa eval -r PLAN.json`, `load_recipe`, and the configuration in it.
    (name,) = outcome.plans
    swaa.adapt(model, load_recipe(folder / f"{name}.json").config)
    print(f"\n{folder / name}.json: {swaa.adaptation(model).config}")


if __name__ == "__main__":
    main()
