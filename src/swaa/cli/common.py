"""What the subcommands share: option types, consoles, and the recipe that the flags stand for."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swaa.config import ConfigError, SWAAConfig
from swaa.recipes import Recipe, load_recipe

if TYPE_CHECKING:
    from rich.console import Console


def token_count(text: str | int) -> int:
    """Read a number of tokens such as `512`, `131072` or `4k` (4096).

    Raises:
        ValueError: `text` is no such number.
    """
    match = re.fullmatch(r"(\d+)(k?)", str(text).strip().lower())
    if not match:
        raise ValueError(f"{text!r} is no number of tokens: write 512, 131072 or 4k")
    return int(match[1]) * (1024 if match[2] else 1)


def positive_tokens(text: str | int) -> int:
    """Read a number of tokens, 1 or more.

    Raises:
        ValueError: `text` is no such number.
    """
    if (count := token_count(text)) < 1:
        raise ValueError(f"{text!r}: give 1 token or more")
    return count


def names(text: str | None) -> tuple[str, ...]:
    """Read a comma list of names; empty text, or none, is an empty list."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


_ADAPTATION = "Adaptation (each flag overrides the recipe)"


def _tokens(flag: str, text: str) -> Any:
    return typer.Option(flag, parser=token_count, metavar="TOKENS", help=text, rich_help_panel=_ADAPTATION)


def _flag(*flags: str, metavar: str | None = None, text: str) -> Any:
    return typer.Option(*flags, metavar=metavar, help=text, rich_help_panel=_ADAPTATION)


StaticCacheOption = Annotated[
    bool,
    typer.Option(
        "--static-cache",
        help="Reserve the cache at once. On a GPU each token's step is then compiled (half a minute, once for a batch "
        "size) and replayed as a CUDA graph, many times as fast: for long answers.",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A Hugging Face hub id, a local folder (of a model or an adapter) or a .gguf file, as in "
        "`-m Qwen/Qwen3-4B-Instruct-2507`.",
    ),
]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        metavar="NAME|FILE",
        help="A recipe by its name (`swaa recipes` lists them) or a .yaml or .json file, as in `-r sinks-fa-decode`. "
        "Without it: the adaptation stored with the model, otherwise full attention.",
    ),
]
WindowOption = Annotated[
    int | None, _tokens("--window", "Tokens that a sliding row sees, itself included, as in `--window 2k`.")
]
SinksOption = Annotated[
    int | None, _tokens("--sinks", "First tokens of the prompt that every row sees, as in `--sinks 10`.")
]
FullLayersOption = Annotated[
    str | None,
    _flag(
        "--full-layers",
        metavar="LAYERS",
        text="Layers that keep full attention: `odd`, `even`, `none`, `1/4` (every fourth), `1/4@3` (from layer 3) "
        "or a list, as in `--full-layers 7,15,17`.",
    ),
]
FullHeadsOption = Annotated[
    str | None,
    _flag(
        "--full-heads",
        metavar="LAYER:HEADS",
        text="KV heads that keep full attention in layers that slide: heads 0 and 2 of layer 3, head 1 of layer 7 are "
        "`--full-heads 3:0,2,7:1`; `none` takes a recipe's away.",
    ),
]
FaDecodeOption = Annotated[
    bool | None,
    _flag(
        "--fa-decode/--no-fa-decode",
        text="Full attention for generated tokens: only the prompt slides, as in `--window 2k --fa-decode`.",
    ),
]
FaDecodeLayersOption = Annotated[
    str | None,
    _flag(
        "--fa-decode-layers",
        metavar="LAYERS",
        text="FA decode on these layers only, as in `--fa-decode-layers 0,1`.",
    ),
]
DenseTailOption = Annotated[
    int | None,
    _tokens("--dense-tail", "Last rows of the prompt (the question) that see everything, as in `--dense-tail 32`."),
]
BackendOption = Annotated[
    str | None,
    _flag("--backend", metavar="NAME", text="Attention implementation, as in `--backend sdpa`; `auto` picks one."),
]
PLACE = "Where"
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="`bfloat16`, `float32`, ..; `auto`: bfloat16 where it is fast.", rich_help_panel=PLACE
    ),
]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="`cpu`, `cuda`, ..; `auto`: CUDA if there is one.", rich_help_panel=PLACE)
]
# Of commands that run several recipes.
AllSinksOption = Annotated[
    int | None, typer.Option(metavar="TOKENS", help="Sinks of every recipe that has some, as in `--sinks 64`.")
]


def output() -> "Console":
    """Return the console of results. Piped, a line is never wrapped at 80 columns."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 200
    return console


def notes() -> "Console":
    """Return the console of progress, notes and errors: stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    from rich.text import Text

    notes().print(Text.assemble(("warning: ", "bold yellow"), text))


@contextmanager
def plots_if_possible() -> Iterator[None]:
    """Go on without the plots where matplotlib is missing: the numbers are written all the same."""
    try:
        yield
    except ModuleNotFoundError as error:
        warn(f"no plots: {error}")


def warn_of_length(model_config: Any, tokens: int) -> None:
    """Warn of prompts longer than what the model was trained on."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if limit and tokens > limit:
        warn(f"{tokens} tokens are more than the {limit} positions that the model was trained on")


@contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """Take a fresh folder away again when an error leaves it empty; one with files stays."""
    try:
        yield
    except ValueError:
        with suppress(OSError):
            path.rmdir()
        raise


def layer_list(name: str, text: str) -> list[int] | str:
    """Read a comma list of layer numbers; anything else comes back as it is (a pattern).

    Raises:
        ConfigError: the list holds something that is no number.
    """
    parts = [part.strip() for part in text.split(",")]
    if not any(part.isdecimal() for part in parts):
        return text
    if wrong := [part for part in parts if not part.isdecimal()]:
        raise ConfigError(f"{name}: {wrong[0]!r} in {text!r} is no layer number; write a list like 7,15,17")
    return [int(part) for part in parts]


def head_lists(text: str) -> dict[int, list[int]]:
    """Read KV heads by layer, such as `3:0,2,7:1`: a layer's number stands before its first head.

    Raises:
        ConfigError: it cannot be read.
    """
    if text.strip() == "none":
        return {}
    found: dict[int, list[int]] = {}
    heads: list[int] | None = None
    for part in text.split(","):
        layer, colon, head = (x.strip() for x in part.rpartition(":"))
        if layer.isdecimal():
            heads = found.setdefault(int(layer), [])
        if heads is None or not head.isdecimal() or (colon and not layer.isdecimal()):
            raise ConfigError(
                f"full_heads: cannot read {part.strip()!r} in {text!r}; write heads 0 and 2 of layer 3 and head 1 of "
                "layer 7 as 3:0,2,7:1"
            )
        heads.append(int(head))
    return found


def resolve_recipe(
    recipe: str | Path | None,
    *,
    model_config: Any = None,
    window: int | None = None,
    sinks: int | None = None,
    full_layers: str | None = None,
    full_heads: str | None = None,
    fa_decode: bool | None = None,
    fa_decode_layers: str | None = None,
    dense_tail: int | None = None,
    backend: str | None = None,
) -> Recipe:
    """Return the recipe that a command line stands for: defaults < recipe (or stored adaptation) < flags.

    Args:
        recipe: name or file; None: the adaptation stored with the model, otherwise the recipe `full`.
        model_config: the model's configuration of transformers, if the recipe has to fit it.
        window: a flag, as all that follow; None: not given.
        sinks: a number.
        full_layers: a pattern or a comma list.
        full_heads: as `head_lists` reads them.
        fa_decode: all layers or none.
        fa_decode_layers: a comma list.
        dense_tail: a number.
        backend: a name.

    Raises:
        ConfigError: no such recipe, a wrong value or combination, or layers chosen for another model.
    """
    stored: Mapping[str, Any] | None = getattr(model_config, "swaa", None)
    if recipe is not None:
        base = load_recipe(recipe)
    elif stored is not None:
        base = Recipe("stored", SWAAConfig.from_dict(stored), "the adaptation stored with the model")
    else:
        base = load_recipe("full")
    if fa_decode_layers is not None:
        if fa_decode is not None:
            raise ConfigError("fa_decode: give --fa-decode (all layers) or --fa-decode-layers (some), not both")
        layers = layer_list("fa_decode", fa_decode_layers)
        if isinstance(layers, str):
            raise ConfigError(f"fa_decode: {fa_decode_layers!r} is no list of layer numbers; write one like 0,1")
        flags: dict[str, Any] = {"fa_decode": layers}
    else:
        flags = {"fa_decode": fa_decode}
    flags |= {"window": window, "sinks": sinks, "dense_tail": dense_tail, "backend": backend}
    flags["full_layers"] = None if full_layers is None else layer_list("full_layers", full_layers)
    flags["full_heads"] = None if full_heads is None else head_lists(full_heads)
    flags = {name: value for name, value in flags.items() if value is not None}
    if flags:
        name = "flags" if base.config == SWAAConfig() else f"{base.name} + flags"
        base = dataclasses.replace(base.replace(**flags), name=name, description="")
    if model_config is not None:
        base.check_model(model_config)
    return base
