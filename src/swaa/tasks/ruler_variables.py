"""RULER's variable tracking: assignments hidden in repeated sentences, and a question for all variables of a value."""

import random
import string
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from swaa.prose import NOISE, Split
from swaa.tasks.base import encode
from swaa.tasks.ruler import Draft, Ruler

_LEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
_QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
_PREFIX = (
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the "
    "value {value}, they are:"
)
_EXAMPLE_TOKENS = 500
_FEWEST_LINES = 5


@dataclass(frozen=True)
class RulerVariables(Ruler):
    """Chains of statements such as `VAR B = VAR A`, after a solved example of the same shape.

    The example takes up to 500 tokens and has variables of 3 letters; those of the task have 5. `meta` adds `value`,
    the number asked for.

    Attributes:
        chains: how many chains there are; one is asked for.
        hops: statements of a chain after the first, which assigns a number.
    """

    chains: int = 1
    hops: int = 4
    max_new_tokens: ClassVar[int] = 30

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        for field in ("chains", "hops"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} leaves nothing to track: use 1 or more")

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        return f"RULER: name all variables that get a value over {self.hops} hops"

    def draft(self, tokenizer: Any, stream: str, index: int, split: Split, length: int) -> Draft:
        """Draw example, variables and numbers: see `Ruler.draft`."""
        rng = random.Random(f"{stream}/{index}")
        numbers = rng.sample(range(10_000, 100_000), 2 * self.chains)
        shown = self._variables(rng, letters=3)
        tracked = self._variables(rng, letters=5)
        fewest = max(_FEWEST_LINES, self.hops + 1)

        def problem(variables: list[list[str]], values: list[int], size: int) -> str:
            text = self._text(variables, values, size, f"{stream}/{index}/{size}")
            return _LEAD + text + _QUESTION.format(value=values[0])

        def prefix(value: int) -> str:
            return _PREFIX.format(count=self.hops + 1, value=value)

        def solved(size: int) -> str:
            values = numbers[self.chains :]
            return f"{problem(shown, values, size)} {prefix(values[0])} {' '.join(shown[0])}\n\n"

        lines = fewest
        while len(encode(tokenizer, solved(lines + 1))) <= _EXAMPLE_TOKENS:
            lines += 1
        example = solved(lines)
        return Draft(
            said=lambda size: (example + problem(tracked, numbers[: self.chains], size), {}),
            prefix=prefix(numbers[0]),
            references=tuple(tracked[0]),
            smallest=fewest,
            meta={"value": numbers[0]},
        )

    def _variables(self, rng: random.Random, *, letters: int) -> list[list[str]]:
        """Draw different names, those of a chain together."""
        names: dict[str, None] = {}
        while len(names) < self.chains * (self.hops + 1):
            names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
        listed = list(names)
        return [listed[start : start + self.hops + 1] for start in range(0, len(listed), self.hops + 1)]

    def _text(self, variables: list[list[str]], values: list[int], size: int, stream: str) -> str:
        """Return so many lines of noise with the statements among them, each chain's in order."""
        rng = random.Random(stream)
        lines = [NOISE] * size
        for chain, value in zip(variables, values, strict=True):
            statements = [f"VAR {chain[0]} = {value}"]
            # The space at the end is RULER's.
            statements += [f"VAR {new} = VAR {old} " for old, new in pairwise(chain)]
            places = sorted(rng.sample(range(len(lines)), len(statements)))
            for moved, (place, statement) in enumerate(zip(places, statements, strict=True)):
                lines.insert(place + moved, statement)
        return "\n".join(lines)
