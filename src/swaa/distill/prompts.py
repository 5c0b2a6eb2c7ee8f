"""What the model is to answer: rows with a prompt or a conversation, and maybe the right answer."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swaa.endpoint import Messages
from swaa.tasks.datafile import read_rows
from swaa.train.data import check_messages


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Args:
        row: number of its row in the data, from 0.
        messages: the conversation up to where the model answers; the last turn is the user's.
        chat: whether the row holds `messages`, and not `prompt`.
        reference: the right answer; None: nobody knows.
        question: what a judge is told that was asked.
    """

    row: int
    messages: tuple[tuple[str, str], ...]
    chat: bool
    reference: str | None
    question: str

    def turns(self) -> Messages:
        """Return the conversation as chat templates and endpoints want it."""
        return [{"role": role, "content": content} for role, content in self.messages]


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read rows with `prompt` or `messages`, and maybe `answer` (the right one) and `question` (for a judge).

    An answer at the end of `messages` is the right one, unless there is an `answer`. Without a `question` it is the
    last user's turn.

    Args:
        path: a parquet, JSON or JSONL file, or a hub id, see `swaa.tasks.datafile.read_rows`.

    Raises:
        ValueError: the data cannot be read, or a row is wrong; the message names the row, counted from 1.
    """
    prompts = []
    for number, row in enumerate(read_rows(str(path), [("prompt",), ("messages",)])):
        try:
            prompts.append(_prompt(number, row))
        except ValueError as error:
            raise ValueError(f"{path}, row {number + 1}: {error}") from error
    return prompts


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Return the SHA-256 over what is asked; right answers may be mended later."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(json.dumps([prompt.row, prompt.messages]).encode())
    return digest.hexdigest()


def _prompt(number: int, row: dict) -> Prompt:
    reference, chat = row.get("answer"), row.get("messages") is not None
    if chat:
        check_messages(row["messages"])
        turns = [(turn["role"], turn["content"]) for turn in row["messages"]]
        if turns[-1][0] == "assistant":
            reference = turns.pop()[1] if reference is None else reference
        if not turns or turns[-1][0] != "user":
            raise ValueError("the conversation does not end with a user's turn: there is nothing to answer")
    else:
        if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise ValueError(f"`prompt` is no text: {row.get('prompt')!r}")
        turns = [("user", row["prompt"])]
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f"`answer` is no text: {reference!r}")
    question = row.get("question") or turns[-1][1]
    return Prompt(number, tuple(turns), chat, reference, str(question))
