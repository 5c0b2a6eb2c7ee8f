"""Draw the pictures of the documentation from the semantics: `python docs/images/make.py`."""

import argparse
from pathlib import Path

from transformers import LlamaConfig

from swaa.compare import choose_recipes
from swaa.config import SWAAConfig
from swaa.models import DEFAULT_MODEL
from swaa.report.plots import layer_map, mask_grid, save

# The default model's depth and heads: nothing else of a model is in a picture.
MODEL = LlamaConfig(num_hidden_layers=30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3)
BASE = SWAAConfig(window=256, sinks=10)
LAYERS = {
    "every layer slides": BASE,
    "odd layers full": BASE.replace(full_layers="odd"),
    "one in four, from layer 3": BASE.replace(full_layers="1/4@3"),
    "four chosen layers, FA decode": BASE.replace(full_layers=[7, 15, 17, 18], fa_decode=True),
    "FA decode in the upper half": BASE.replace(fa_decode=range(15, 30)),
    "full heads in five layers": BASE.replace(full_heads={layer: [0] for layer in (3, 9, 15, 21, 27)}),
}


def main(folder: Path) -> None:
    """Write `masks.png` and `layers.png`."""
    recipes = choose_recipes(None, length=1024, model=DEFAULT_MODEL)
    save(mask_grid({recipe.name: recipe.config for recipe in recipes}, MODEL.num_hidden_layers), folder / "masks.png")
    save(layer_map(LAYERS, MODEL), folder / "layers.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, help="default: beside this file")
    main(parser.parse_args().folder)
