"""The error of everything that loads a model or an adapter, and what other libraries' errors are shortened to."""


class ModelError(ValueError):
    """A model cannot be loaded; the message says why and what to do."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
