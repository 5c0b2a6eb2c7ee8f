"""The error of everything that loads a model or an adapter, missing packages, and other libraries' errors in short."""

from importlib.util import find_spec


class ModelError(ValueError):
    """A model cannot be loaded; the message says why and what to do."""


def require(work: str, extra: str, *packages: str) -> None:
    """Check before some work begins that the packages are installed that it ends with.

    Args:
        work: what needs them, for the error.
        extra: of ours, that brings them.
        packages: that are imported.

    Raises:
        ModuleNotFoundError: some are missing; the message names the extra.
    """
    if missing := [name for name in packages if find_spec(name) is None]:
        raise ModuleNotFoundError(f"{work} needs {' and '.join(missing)}: pip install 'swaa[{extra}]'", name=missing[0])


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
