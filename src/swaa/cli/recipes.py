"""`swaa recipes`: the shipped recipes."""

from typing import Annotated

import typer

from swaa.cli.common import output
from swaa.cli.wording import short_form
from swaa.recipes import load_recipe, load_recipes, recipe_names, recipes_to_yaml

app = typer.Typer()


@app.callback(invoke_without_command=True)
def recipes(ctx: typer.Context) -> None:
    """List the shipped recipes, or show one.

    Examples:

    - `swaa recipes`

    - `swaa recipes show sinks-fa-decode > mine.yaml`, change it, and use it: `swaa inspect -r mine.yaml`
    """
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    table = Table("recipe", "adaptation", "description", box=None, pad_edge=False, header_style="bold")
    for name in recipe_names():
        recipe = load_recipe(name)
        thought = {"none": "", "prompt": ", reasoning asked for", "thinking": ", thinking on"}[recipe.chain_of_thought]
        table.add_row(name, short_form(recipe.config) + thought, recipe.description)
    output().print(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or a .yaml or .json file.")],
) -> None:
    """Print a recipe as YAML, every field spelled out: the start of a recipe of your own.

    Examples:

    - `swaa recipes show sinks-fa-decode > mine.yaml`

    - `swaa recipes show setting.json` turns a file of the reference project into ours: a list where it holds several
    """
    typer.echo(recipes_to_yaml(load_recipes(name)), nl=False)
