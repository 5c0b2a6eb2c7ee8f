"""The command line `swaa`: one module a subcommand. Importing this imports neither torch nor transformers."""

import importlib
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from swaa import __version__
from swaa.cli.common import notes
from swaa.errors import first_line

# Each module has a function of its own name, or an app of its own.
_COMMANDS = ("inspect", "compare", "select", "eval", "generate", "distill", "train", "merge", "report", "recommend")
_APPS = ("bench", "recipes")
# Their options are those of another program.
_FOREIGN = {
    "lm_eval": {"ignore_unknown_options": True, "allow_interspersed_args": False},
    "serve": {"ignore_unknown_options": True},
}


class _Group(TyperGroup):
    """Turns the errors that a user can mend into one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Nobody reads on: click ends without a word.
            raise
        except (ValueError, ModuleNotFoundError, OSError) as error:
            from rich.text import Text

            if ctx.params["debug"]:
                traceback.print_exc()
            text = _file_error(error) if isinstance(error, OSError) else str(error)
            notes().print(Text.assemble(("error: ", "bold red"), (text, "red")))
            raise typer.Exit(2) from None


def _file_error(error: OSError) -> str:
    named = error.filename is not None and error.strerror
    return f"{error.filename}: {error.strerror}" if named else first_line(error)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"swaa {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", envvar="SWAA_DEBUG", help="Show the traceback of an error, as in `swaa --debug inspect`."
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, as `swaa 0.1.0`.")
    ] = False,
) -> None:
    """Sliding window attention adaptation: give a full-attention model a linear-time prefill, without pretraining."""


for _name in _COMMANDS:
    app.command(_name)(getattr(importlib.import_module(f"swaa.cli.{_name}"), _name))
for _name, _settings in _FOREIGN.items():
    _function = getattr(importlib.import_module(f"swaa.cli.{_name}"), _name)
    app.command(_name, context_settings=_settings)(_function)
for _name in _APPS:
    app.add_typer(importlib.import_module(f"swaa.cli.{_name}").app, name=_name)


def main() -> None:
    """Run the command line; the entry point of the `swaa` script."""
    app(prog_name="swaa")
