"""What RULER's tasks share (arXiv 2404.06654): templates, fitting a haystack into a length, scoring."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from swaa.prose import Split
from swaa.tasks.base import Kind, Reasoning, Sample, check_reasoning, check_request, encode, user_turn


@dataclass(frozen=True)
class Draft:
    """What of a sample does not depend on its length.

    Attributes:
        said: what the user says with a haystack of so many units, and facts about it for `Sample.meta`.
        prefix: RULER's answer prefix, without spaces around it.
        references: the gold strings.
        smallest: units of the smallest haystack.
        meta: facts that do not depend on the length.
    """

    said: Callable[[int], tuple[str, dict[str, Any]]]
    prefix: str
    references: tuple[str, ...]
    smallest: int
    meta: dict[str, Any] = field(default_factory=dict)


class Ruler(ABC):
    """A task of RULER.

    `length` is RULER's `max_seq_length`: the prompt with everything in it (chat template, answer prefix) and
    `max_new_tokens` are `length` at most. The haystack is the largest that fits, in the task's own units. The prompt is
    a user turn of the chat template, or plain text where there is none, and ends with RULER's answer prefix; where
    the model reasons first (`reasoning`) no prefix is forced.
    """

    kind: ClassVar[Kind] = "generation"
    max_new_tokens: ClassVar[int]

    def samples(
        self,
        tokenizer: Any,
        *,
        length: int,
        count: int,
        seed: int,
        split: Split = "test",
        reasoning: Reasoning = "none",
    ) -> list[Sample]:
        """Make samples: see `Task.samples`.

        Raises:
            ValueError: as in `Task.samples`; or `length` has no room for the smallest haystack.
        """
        check_request(length, count, split)
        check_reasoning(reasoning)
        stream = f"{type(self).__name__}/{split}/{seed}"

        # One at a time: a draft may hold much more text than its sample.
        def fit(index: int, length: int) -> Fit:
            draft = self.draft(tokenizer, stream, index, split, length)
            return Fit(tokenizer, draft, length - self.max_new_tokens, reasoning)

        def shortest(length: int) -> int:
            return max(len(fit(index, length).ids) for index in range(count)) + self.max_new_tokens

        if (works := shortest(length)) > length:
            # Another length may mean another text: what is named has been tried.
            while (needed := shortest(works)) > works:
                works = needed
            raise ValueError(f"length={length} has no room for this task: use {works} or more")
        facts = {"seed": seed, "split": split, "reasoning": reasoning}
        return [fit(index, length).sample({"index": index, **facts}) for index in range(count)]

    @abstractmethod
    def draft(self, tokenizer: Any, stream: str, index: int, split: Split, length: int) -> Draft:
        """Draw a sample, less its haystack's size.

        Args:
            tokenizer: a transformers tokenizer.
            stream: names the random stream of all samples.
            index: the sample's number, from 0.
            split: where text and words come from.
            length: the budget in tokens, for tasks that change their parameters with it.
        """

    def score(self, sample: Sample, text: str) -> float:
        """Return the share of the references that stand in `text`, case ignored (RULER's `string_match_all`)."""
        return sum(found(sample.references, text)) / len(sample.references)


def found(references: tuple[str, ...], text: str) -> list[bool]:
    """Tell of each reference whether it stands in `text`, case ignored, also inside a longer word, as RULER does."""
    return [reference.lower() in text.lower() for reference in references]


class Fit:
    """A draft with the smallest haystack; `sample` grows it to the largest that fits.

    Args:
        tokenizer: a transformers tokenizer.
        draft: the draft.
        room: tokens that the prompt may have.
        reasoning: how the prompt asks for a chain of thought.

    Attributes:
        ids: the prompt's tokens.
    """

    def __init__(self, tokenizer: Any, draft: Draft, room: int, reasoning: Reasoning):
        self.tokenizer, self.draft, self.room = tokenizer, draft, room
        self.before, after = user_turn(tokenizer, reasoning)
        # RULER's prompt for a model without a chat template brings its own "Answer:".
        after = after if reasoning != "none" else after.removeprefix("\nAnswer:")
        space = "" if after.endswith("\n") else " "
        self.after = after + (f"{space}{draft.prefix}" if reasoning == "none" else "")
        self.size = draft.smallest
        self.ids, self.meta = self._prompt(self.size)

    def sample(self, meta: dict[str, Any]) -> Sample:
        """Make the sample; `meta` joins the draft's own facts."""
        self._grow()
        references = self.draft.references
        return Sample(
            prompt_ids=tuple(self.ids),
            prefix_ids=(),
            answer_ids=(),
            answer=", ".join(references),
            meta=meta | self.draft.meta | self.meta | {"haystack_size": self.size},
            references=references,
        )

    def _grow(self) -> None:
        """Find the largest haystack that fits; nearly proportional tokens make interpolation quicker than halving."""
        too_large: int | None = None
        tokens_a_unit, tries = 0.0, 0
        while too_large is None or too_large - self.size > 1:
            tries += 1
            if tokens_a_unit > 0 and tries % 4:
                guess = self.size + max(1, int((self.room - len(self.ids)) / tokens_a_unit))
            else:
                guess = 2 * self.size if too_large is None else (self.size + too_large) // 2
            guess = guess if too_large is None else min(guess, too_large - 1)
            ids, meta = self._prompt(guess)
            tokens_a_unit = (len(ids) - len(self.ids)) / (guess - self.size)
            if len(ids) > self.room:
                too_large = guess
            else:
                self.size, self.ids, self.meta = guess, ids, meta

    def _prompt(self, size: int) -> tuple[list[int], dict[str, Any]]:
        said, meta = self.draft.said(size)
        return encode(self.tokenizer, self.before + said + self.after), meta
