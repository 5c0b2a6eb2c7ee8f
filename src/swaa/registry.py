"""Names that a user gives: checked, looked up in tables, and errors that suggest what was meant."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


def suggestion(name: object, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` or `""`: the tail of an error about an unknown name."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Check an option that takes one of a few words.

    Raises:
        ValueError: `value` is none of them.
    """
    known = list(known)
    if value not in known:
        hint = suggestion(value, known)
        raise ValueError(f"{name}={value!r} is unknown.{hint} Use one of {', '.join(map(repr, known))}")


class Registry(Generic[T]):
    """The implementations of one kind (backends, tasks, ...), by name.

    Args:
        kind: what an entry is called in error messages, such as `"backend"`.
        entries: the rows: name to object.
    """

    def __init__(self, kind: str, entries: dict[str, T]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        """Look an entry up.

        Raises:
            ValueError: `name` is unknown; the message lists the known names and the closest one.
        """
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise ValueError(f"unknown {self.kind} {name!r}.{suggestion(name, self._entries)} Known: {known}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    @contextmanager
    def holding(self, name: str, entry: T) -> Iterator[None]:
        """Hold one more entry for a while.

        Raises:
            ValueError: there is one of this name.
        """
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is taken")
        self._entries[name] = entry
        try:
            yield
        finally:
            del self._entries[name]
