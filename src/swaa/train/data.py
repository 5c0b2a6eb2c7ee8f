"""Training data: conversations or prompts with answers, as token ids with a flag for each token that is trained."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from swaa.tasks.base import continuation_ids, encode_all, leading_ids
from swaa.tasks.datafile import NoRowsError, read_rows
from swaa.train.chat import ChatMarks, Piece

# Lies beside the answers that `swaa distill` keeps.
REJECTED = "rejected.parquet"
_ROLES = ("system", "user", "assistant")
# Rows that are encoded in one call.
_TOGETHER = 256


@dataclass(frozen=True)
class Example:
    """One sample: a prompt and its answer, a conversation, or plain text.

    Args:
        ids: token ids, special tokens included.
        answer: for each token, whether it is trained: the model says it, the token that ends an answer included.
        prose: the sample is plain text, which nobody answers: its trained tokens are not generated ones, so that their
            rows slide.

    Raises:
        ValueError: no token is trained, or the first one is, which nothing predicts.
    """

    ids: tuple[int, ...]
    answer: tuple[bool, ...]
    prose: bool = False

    def __post_init__(self) -> None:
        """Check that there is something to train on."""
        if len(self.ids) != len(self.answer):
            raise ValueError(f"{len(self.ids)} token ids, but flags for {len(self.answer)}")
        if not any(self.answer):
            raise ValueError("there is no answer to train on")
        if self.answer[0]:
            raise ValueError("the first token belongs to an answer: there is no prompt in front of it")


def read_data(path: str | Path) -> list[dict[str, Any]]:
    """Read training data: rows with `prompt` and `answer`, `messages` (turns with `role` and `content`) or `text`.

    Args:
        path: a parquet, JSON or JSONL file, or a hub id, see `swaa.tasks.datafile.read_rows`.

    Raises:
        ValueError: the data cannot be read, or a row is wrong; the message names the row, counted from 1.
    """
    try:
        # Any fields: what is needed is said below, with the number of the row.
        rows = read_rows(str(path), [()])
    except NoRowsError as error:
        if not (rest := Path(path).expanduser().with_name(REJECTED)).is_file():
            raise
        raise ValueError(
            f"{error}. No answer passed the filters of `swaa distill`: look at {rest}; if answers are cut off there, "
            "distill again with a higher --max-new-tokens and another --output"
        ) from error
    for number, row in enumerate(rows, start=1):
        try:
            _check(row)
        except ValueError as error:
            raise ValueError(f"{path}, row {number}: {error}") from error
    return rows


def make_examples(
    rows: Sequence[dict[str, Any]], tokenizer: Any, *, max_length: int | None = None
) -> tuple[list[Example], int]:
    """Tokenise training data in the model's chat template, or as plain text where it has none.

    Every piece of text is encoded as it is at inference: the prompt by itself, then the answer that follows it. Of
    plain text (`text`) every token but the first is trained, outside of any chat template.

    Args:
        rows: what `read_data` returns.
        tokenizer: a transformers tokenizer.
        max_length: samples of more tokens are left out, never cut: a cut answer teaches to stop early. Plain text is
            cut into examples of this length.

    Returns:
        the examples, and how many rows were left out.

    Raises:
        ValueError: a row cannot be rendered, `messages` without a chat template, or no row fits.
    """
    marks = ChatMarks(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    examples: list[Example] = []
    too_long: list[int] = []
    for start in range(0, len(rows), _TOGETHER):
        for example in _some_examples(rows[start : start + _TOGETHER], start + 1, tokenizer, marks, max_length):
            if max_length is None or len(example.ids) <= max_length:
                examples.append(example)
            else:
                too_long.append(len(example.ids))
    if not examples:
        raise ValueError(f"no sample fits in max_length={max_length}: the shortest has {min(too_long)} tokens")
    return examples, len(too_long)


def _some_examples(
    rows: Sequence[dict[str, Any]], number: int, tokenizer: Any, marks: ChatMarks | None, max_length: int | None
) -> Iterator[Example]:
    """Tokenise rows, the first of which has this number in the data."""
    pieces: list[list[Piece]] = []
    for row in rows:
        with _named_row(number + len(pieces)):
            pieces.append([Piece(row["text"], True)] if _kind(row) == "text" else _pieces(row, marks))
    # The prompts, which are long: in one call, for which tokenizers have threads.
    firsts = encode_all(tokenizer, [of_row[0].text for of_row in pieces])
    for index, (row, of_row, first) in enumerate(zip(rows, pieces, firsts, strict=True)):
        with _named_row(number + index):
            if _kind(row) == "text":
                yield from _prose(first, tokenizer, max_length)
            else:
                yield _example(of_row, first, tokenizer, marks)


@contextmanager
def _named_row(number: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def pack(examples: Iterable[Example], length: int) -> list[list[Example]]:
    """Put several examples into one row, each into the first row that has room; the order of rows is that of the data.

    Args:
        examples: what to pack.
        length: tokens of a row. A longer example gets a row of its own.
    """
    rows: list[list[Example]] = []
    room: list[int] = []
    for example in examples:
        size = len(example.ids)
        index = next((i for i, left in enumerate(room) if size <= left), None)
        if index is None:
            rows.append([example])
            room.append(length - size)
        else:
            rows[index].append(example)
            room[index] -= size
    return rows


def check_messages(messages: Any) -> None:
    """Raise `ValueError` unless `messages` is a list of turns, each with a known `role` and a text `content`."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("`messages` must be a list of turns such as {'role': 'user', 'content': '..'}")
    for turn in messages:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise ValueError(f"a turn needs a text `content`, and this one is {turn!r}")
        if turn.get("role") not in _ROLES:
            raise ValueError(f"role {turn.get('role')!r} is not known: use one of {', '.join(_ROLES)}")


def _kind(row: dict[str, Any]) -> str:
    """Tell what a row is. A parquet file has all fields in every row, some of them empty."""
    if row.get("messages") is not None:
        return "messages"
    return "text" if row.get("text") and row.get("prompt") is None and row.get("answer") is None else "prompt"


def _check(row: dict[str, Any]) -> None:
    kind = _kind(row)
    if kind == "messages":
        messages = row["messages"]
        check_messages(messages)
        if not any(turn["role"] == "assistant" for turn in messages):
            raise ValueError("no turn has the role 'assistant': there is nothing to train on")
        return
    if kind == "text":
        if not isinstance(row["text"], str):
            raise ValueError(f"`text` must be text, and it is {row['text']!r}")
        return
    for field in ("prompt", "answer"):
        if not isinstance(row.get(field), str) or not row[field]:
            found = f"it is {row[field]!r}" if field in row else f"the row has {', '.join(sorted(row)) or 'no field'}"
            raise ValueError(
                "needed are `prompt` and `answer`, both text, or `messages`, or `text` alone; "
                f"`{field}` is missing: {found}"
            )


def _prose(ids: list[int], tokenizer: Any, max_length: int | None) -> list[Example]:
    ids = [*leading_ids(tokenizer), *ids]
    size = max_length or len(ids)
    # What is left may be a single token, which nothing predicts.
    pieces = [piece for start in range(0, len(ids), size) if len(piece := ids[start : start + size]) > 1]
    if not pieces:
        raise ValueError("`text` is too short: there is nothing to train on")
    return [Example(tuple(piece), (False, *[True] * (len(piece) - 1)), prose=True) for piece in pieces]


def _pieces(row: dict[str, Any], marks: ChatMarks | None) -> list[Piece]:
    if marks is None:
        if row.get("messages") is not None:
            raise ValueError("`messages` need a chat template and the tokenizer has none: use `prompt` and `answer`")
        return [Piece(row["prompt"], False), Piece(row["answer"], True)]
    return marks.pieces(
        row.get("messages")
        or [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]
    )


def _example(pieces: list[Piece], first: list[int], tokenizer: Any, marks: ChatMarks | None) -> Example:
    ids = [*([] if marks else leading_ids(tokenizer)), *first]
    answer = [False] * (len(ids) - len(first)) + [pieces[0].said] * len(first)
    for before, piece in pairwise(pieces):
        new = continuation_ids(tokenizer, before.text, piece.text)
        ids += new
        answer += [piece.said] * len(new)
    if marks is None and tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
        answer.append(True)
    return Example(tuple(ids), tuple(answer))
