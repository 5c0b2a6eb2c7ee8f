"""What every task shares: the sample, the task protocol, tokenising in pieces, and reading generated text."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from swaa.prose import Split, check_split
from swaa.registry import check_choice

Kind = Literal["retrieval", "perplexity", "generation"]
# Chain of thought, method 4 of the paper (arXiv 2512.10411).
Reasoning = Literal["none", "prompt", "thinking"]
REASON_THEN_ANSWER = (
    "\n\nReason step by step first. Then end with one line that begins with `Answer:` and holds only the answer."
)
_MARK = "<<said>>"
_ANSWER_LINE = re.compile(r"^[\s*_#>`-]*(?:the\s+)?(?:final\s+)?answer\b[\s*_`]*:[*_`]*", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One sample. Token ids are plain ints without padding.

    Attributes:
        prompt_ids: the prompt rows (they slide). A generation sample's prompt holds everything up to where the model
            takes over, the start of an answer too.
        prefix_ids: forced start of the answer: not scored, counts as decode. Retrieval only.
        answer_ids: gold answer tokens, scored by their NLL and by greedy exact match. Retrieval only.
        answer: gold answer text, for free generation and for a judge. Empty for perplexity.
        meta: facts about the sample, JSON values only: `index`, `seed`, `split`, and what the task adds.
            A task that leaves the score to a judge adds `question`, `question_type` and `abstention` (bool: the right
            answer is that the text does not tell).
        references: gold strings of a generation sample; what the task's score makes of several is said there.
    """

    prompt_ids: tuple[int, ...]
    prefix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()


class Task(Protocol):
    """A way to make samples. An implementation is a frozen dataclass whose fields are its options."""

    @property
    def kind(self) -> Kind:
        """What is scored.

        `"retrieval"`: the gold answer's tokens, or free text; `"perplexity"`: the prompt from `meta["score_from"]` on;
        `"generation"`: free text only.
        """

    @property
    def describe(self) -> str:
        """One line for `--help`."""

    @property
    def max_new_tokens(self) -> int:
        """Room for a free answer, in tokens; reasoning gets its own on top. 0: nothing is generated."""

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
        """Make samples. Sample `i` depends on every argument and on `i`, but never on `count`.

        Args:
            tokenizer: a transformers tokenizer.
            length: tokens of a prompt, special tokens included. What this counts exactly is the task's: needles and
                perplexity fill it, RULER's tasks leave room for the answer in it, data sets have it as a bound.
            count: how many samples; a data set may hold fewer.
            seed: any integer.
            split: `"test"` and `"calibration"` share no text, no keys and no random stream.
            reasoning: how the prompt asks for a chain of thought, see `user_turn`.

        Raises:
            ValueError: an argument is out of range; the message names it and what works.
        """

    def score(self, sample: Sample, text: str) -> float | None:
        """Score a free answer, reasoning already removed (`final_answer`).

        Returns:
            0 (wrong) to 1 (right); None: only a judge can tell. A task that leaves answers to one says `judged = True`.

        Raises:
            ValueError: nothing is generated in this task.
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


def encode_all(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return what `encode` returns for each text, in one call."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]


def leading_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text by itself (a BOS token, mostly none)."""
    plain = encode(tokenizer, "a")
    full = list(tokenizer("a")["input_ids"])
    starts = (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain)
    return full[: next(starts, 0)]


def check_reasoning(reasoning: str) -> None:
    """Raise `ValueError` unless `reasoning` names a way to ask for a chain of thought."""
    check_choice("reasoning", reasoning, get_args(Reasoning))


def user_turn(tokenizer: Any, reasoning: Reasoning = "none") -> tuple[str, str]:
    """Return the text before and after what a user says, up to where the answer begins.

    It is a chat template's user turn without a system turn, so that the sinks hold the same words for every model; for
    a tokenizer without a template, plain text with an `Answer:` at the end.

    Args:
        tokenizer: a transformers tokenizer.
        reasoning: `"none"`: thinking is off where the template has a switch; `"prompt"`: the same, and the user's words
            end with `REASON_THEN_ANSWER`; `"thinking"`: the switch is on.

    Raises:
        ValueError: `"thinking"` without a chat template that opens a thought or has the switch `enable_thinking`.
    """
    check_reasoning(reasoning)
    asked = REASON_THEN_ANSWER if reasoning == "prompt" else ""
    first = tokenizer.decode(leading_ids(tokenizer))
    template = getattr(tokenizer, "chat_template", None)
    switches = {"enable_thinking": reasoning == "thinking"} if "enable_thinking" in str(template) else {}
    if not template:
        if reasoning == "thinking":
            raise ValueError("reasoning='thinking' needs a chat template and there is none: use reasoning='prompt'")
        return first, f"{asked}\n" if asked else "\nAnswer:"

    def render(*roles: str, **options: Any) -> str:
        turns = [{"role": role, "content": _MARK} for role in roles]
        return tokenizer.apply_chat_template(turns, tokenize=False, **switches, **options)

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
    if reasoning == "thinking" and not switches and "<think>" not in after:
        raise ValueError(
            "reasoning='thinking': the chat template has no switch `enable_thinking` and opens no thought by itself: "
            "use reasoning='prompt', or a model that thinks"
        )
    return before, asked + after


def continuation_ids(tokenizer: Any, before: str, text: str) -> list[int]:
    """Return the ids of `text` as they are when it follows `before`, `before`'s own ids left out.

    Where the tokenizer would merge across the joint there is no such thing, and `text` is encoded on its own.
    """
    if not getattr(tokenizer, "split_special_tokens", False):
        # Special tokens part a text before anything is merged, so that nothing before the last one counts: in a chat
        # template that leaves a few words of a long prompt. (Those that parts of words may look like are left alone.)
        known = tokenizer.added_tokens_decoder.values()
        marks = [mark.content for mark in known if mark.special and not mark.normalized and not mark.single_word]
        before = before[max([0, *(before.rfind(mark) for mark in marks)]) :]
    head, whole = encode(tokenizer, before), encode(tokenizer, before + text)
    return whole[len(head) :] if whole[: len(head)] == head else encode(tokenizer, text)


def remove_thinking(text: str) -> str | None:
    """Return what follows the last `</think>`, the whole text if it holds no thought, None if a thought is still open.

    The opening mark may be missing: a chat template often writes it into the prompt.
    """
    _, closed, rest = text.rpartition("</think>")
    return None if "<think>" in rest else rest.strip() if closed else text.strip()


def final_answer(text: str, reasoning: Reasoning) -> tuple[str | None, bool]:
    """Return the answer after the reasoning, and whether there is none because the reasoning never ended.

    Args:
        text: what the model wrote.
        reasoning: how it was asked: after `"prompt"` the answer is what follows the last `Answer:` at the beginning of
            a line, after `"thinking"` what follows `</think>`, after `"none"` everything (less a thought that a model
            writes unasked).

    Returns:
        the answer and False, or None and True: no `</think>`, no `Answer:`, or nothing after it.
    """
    check_reasoning(reasoning)
    answer = remove_thinking(text)
    if answer is None or (reasoning == "thinking" and "</think>" not in text):
        return None, True
    if reasoning == "none":
        return answer, False
    if reasoning == "prompt":
        marks = list(_ANSWER_LINE.finditer(answer))
        answer = answer[marks[-1].end() :].strip(" \n*_`") if marks else ""
    return answer or None, not answer


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
