"""Options that have no effect beside the others: refused, because whoever gives one counts on it."""

import typer


def refuse_unused(context: typer.Context, reason: str, *parameters: str) -> None:
    """Refuse options that have no effect, where they were given.

    Args:
        context: of the command.
        reason: why they have none, and what would give them one; the message goes on with "or leave it out".
        parameters: names of the command's parameters.

    Raises:
        ValueError: one of them was given, with its default even.
    """
    words = {option.name: option.opts[0] for option in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in parameters}
    given = [words[name] for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        raise ValueError(f"{', '.join(given)}: {reason}, or leave {'it' if len(given) == 1 else 'them'} out")
