"""What every task shares: the sample, the task protocol, tokenising in pieces, and scoring of generated text."""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from swaa.prose import Split, check_split

Kind = Literal["retrieval", "perplexity"]
_MARK = "<<said>>"


@dataclass(frozen=True)
class Sample:
    """One sample. Token ids are plain ints without padding.

    Attributes:
        prompt_ids: the prompt rows (they slide), exactly as many tokens as were asked for.
        prefix_ids: forced start of the answer: not scored, counts as decode. Empty for perplexity.
        answer_ids: gold answer tokens, scored by their NLL and by greedy exact match. Empty for perplexity.
        answer: gold answer text, for free generation. Empty for perplexity.
        meta: facts about the sample: `index`, `seed`, `split`, and what the task adds (see each task).
    """

    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A way to make samples. An implementation is a frozen dataclass whose fields are its options."""

    @property
    def kind(self) -> Kind:
        """What is scored: the answer (`"retrieval"`) or the prompt from `meta["score_from"]` on (`"perplexity"`)."""

    @property
    def describe(self) -> str:
        """One line for `--help`."""

    def samples(self, tokenizer: Any, *, length: int, count: int, seed: int, split: Split = "test") -> list[Sample]:
        """Make samples. Sample `i` depends on the tokenizer, `length`, `seed`, `split` and `i`, never on `count`.

        Args:
            tokenizer: a transformers tokenizer.
            length: tokens of every prompt, special tokens included.
            count: how many samples.
            seed: any integer.
            split: `"test"` and `"calibration"` share no text, no keys and no random stream.

        Raises:
            ValueError: an argument is out of range; the message names it and what works.
        """


def check_request(length: int, count: int, split: str) -> None:
    """Raise `ValueError` for arguments of `Task.samples` that no task can serve."""
    check_split(split)
    if length < 1:
        raise ValueError(f"length={length} is no number of tokens: use 1 or more")
    if count < 1:
        raise ValueError(f"count={count} asks for no sample: use 1 or more")


def encode(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of `text` without special tokens."""
    # verbose=False: a text longer than the model's context is cut afterwards and deserves no warning.
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def leading_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text by itself (a BOS token, mostly none)."""
    plain = encode(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    starts = (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain)
    return full[: next(starts, 0)]


def user_turn(tokenizer: Any) -> tuple[str, str]:
    """Return the text before and after what a user says, up to where the answer begins.

    It is a chat template's user turn without a system turn, so that the sinks hold the same words for every model; for
    a tokenizer without a template, plain text with an `Answer:` at the end.
    """
    first = tokenizer.decode(leading_ids(tokenizer))
    if not getattr(tokenizer, "chat_template", None):
        return first, "\nAnswer:"

    def render(*roles: str, **options: Any) -> str:
        turns = [{"role": role, "content": _MARK} for role in roles]
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)

    whole = render("user", add_generation_prompt=True)
    # Some templates know no system turn, and then add none.
    with suppress(Exception):
        system, both = render("system"), render("system", "user", add_generation_prompt=True)
        bos, rest = tokenizer.bos_token, both[len(system) :]
        # Others fold the system's words into the user turn: what is left then holds both.
        if both.startswith(system) and rest.count(_MARK) == 1:
            # ChatML's turns all begin with what is called BOS there: then it is no mark of a text's start.
            written = bos and whole.startswith(bos) and not rest.startswith(bos)
            whole = (bos if written else first) + rest
    before, after = whole.split(_MARK)
    return before, after


def continuation_ids(tokenizer: Any, before: str, text: str) -> list[int]:
    """Return the ids of `text` as they are when it follows `before`, `before`'s own ids left out.

    Where the tokenizer would merge across the joint there is no such thing, and `text` is encoded on its own.
    """
    head, whole = encode(tokenizer, before), encode(tokenizer, before + text)
    return whole[len(head) :] if whole[: len(head)] == head else encode(tokenizer, text)


def normalise(text: str) -> str:
    """Return `text` with the thousands commas of its numbers removed: `"1,234,567"` becomes `"1234567"`."""
    grouped = re.compile(r"(?<![0-9,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")
    return grouped.sub(lambda match: match[0].replace(",", ""), text)


def correct_text(sample: Sample, text: str) -> bool:
    """Tell whether generated `text` names the gold number, as a whole number and not inside a longer one.

    Raises:
        ValueError: the sample has no answer (perplexity).
    """
    if not sample.answer:
        raise ValueError("the sample has no answer to look for: perplexity is scored by likelihood only")
    whole = rf"(?<![0-9])(?<![0-9]\.){re.escape(sample.answer)}(?!\.?[0-9])"
    return re.search(whole, normalise(text)) is not None
