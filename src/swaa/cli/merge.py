"""`swaa merge`: an adapter folded into the weights."""

from pathlib import Path
from typing import Annotated

import typer

from swaa.cli.common import notes


def merge(
    adapter: Annotated[
        Path, typer.Argument(metavar="ADAPTER", help="Folder that `swaa train` wrote, as in `adapters/first`.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="A fresh folder for the model, as in `-o models/first`."),
    ],
) -> None:
    """Fold a LoRA adapter into the weights of its model: a plain model, with its adaptation in `config.json`.

    Every subcommand takes the folder as `--model`, and so does `AutoModelForCausalLM.from_pretrained` (without the
    adaptation; `swaa.load` puts it on).

    Examples:

    - `swaa merge adapters/first -o models/first`, and then `swaa generate -m models/first "Why is the sky blue?"`

    - `swaa merge adapters/first/checkpoints/checkpoint-50 -o models/half-way`
    """
    from swaa.models import quiet_transformers
    from swaa.train import merge as fold

    with quiet_transformers():
        fold(adapter, output)
    notes().print(f"merged into {output}")
