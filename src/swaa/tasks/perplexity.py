"""Perplexity on prose: the second half of a window is scored, the first half is context."""

from dataclasses import dataclass
from typing import Any, ClassVar

from swaa.prose import Split, place, prose
from swaa.tasks.base import Kind, Reasoning, Sample, check_request, encode, leading_ids


@dataclass(frozen=True)
class Perplexity:
    """Windows of the shipped novels, cut at any token.

    `meta["score_from"]` is `length // 2`: tokens from that index on are scored, each given all tokens before it.
    `meta["start"]` is the window's first token in the tokenised book. The first `book // window` samples of a seed
    do not overlap (about 97 windows of 2048 tokens); later ones start at random tokens and do.
    """

    kind: ClassVar[Kind] = "perplexity"
    describe: ClassVar[str] = "perplexity of the second half of windows of English prose"
    max_new_tokens: ClassVar[int] = 0

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
        """Make samples: see `Task.samples`. There is no turn, so `reasoning` changes nothing.

        Raises:
            ValueError: as in `Task.samples`; or `length` leaves nothing to score, or is longer than the prose.
        """
        check_request(length, count, split)
        lead, book = leading_ids(tokenizer), encode(tokenizer, prose(split))
        shortest, longest = 2 * len(lead) + 2, len(lead) + len(book)
        if not shortest <= length <= longest:
            raise ValueError(f"length={length} is out of range for this tokenizer: use {shortest} to {longest}")
        size = length - len(lead)
        starts = [place(len(book), size, index, f"perplexity/{split}/{seed}") for index in range(count)]
        return [
            Sample(
                prompt_ids=(*lead, *book[start : start + size]),
                prefix_ids=(),
                answer_ids=(),
                answer="",
                meta={"index": index, "seed": seed, "split": split, "start": start, "score_from": length // 2},
            )
            for index, start in enumerate(starts)
        ]

    def score(self, sample: Sample, text: str) -> float:
        """Raise `ValueError`: a window of prose asks nothing."""
        raise ValueError("perplexity is scored by likelihood only: there is no text to score")
