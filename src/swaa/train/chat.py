"""Which parts of a conversation's text the model itself says: chat templates with `{% generation %}` marks.

Where the model's own template has none, one of ours in `templates/` stands in. Ours are used for the marks only, and
only as long as they give the text that the model's own template gives, which is checked on every conversation.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "templates"
_MARKED = re.compile(r"{%-?\s*generation\s*-?%}")
_TEXT = "<<said>>"
# What a template must render as the model's own does to be chosen: turns, spaces to trim, thoughts.
_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One "},
        {"role": "assistant", "content": "Two\n"},
        {"role": "user", "content": " Three"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour"},
    ],
)
Message = Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """A part of a conversation's text.

    Args:
        text: the part.
        said: the model wrote it: an answer and the token that ends it.
    """

    text: str
    said: bool


class ChatMarks:
    """Cuts conversations into pieces, each said by the model or not.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Raises:
        ValueError: the template has no `{% generation %}`, and none of ours renders the same text; or there are several
            templates and none is the default.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        try:
            # Of several named ones the default, with which conversations without tools are rendered.
            self._template: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise ValueError(
                f"the tokenizer has several chat templates ({', '.join(sorted(tokenizer.chat_template))}) and none of "
                "them is called 'default': save it with a default one, as chat_template.jinja in the model's folder"
            ) from error
        self.name = "own"
        if _MARKED.search(self._template):
            return
        opening = self._original(_PROBES[0][:1], add_generation_prompt=True)
        self._opened = opening.rstrip().endswith("<think>")
        for path in sorted(_FOLDER.glob("*.jinja")):
            self.name, self._template = path.stem, path.read_text(encoding="utf-8")
            if all(self._agrees(probe) for probe in _PROBES):
                return
        raise ValueError(
            "the model's chat template does not mark what the model says ({% generation %} .. {% endgeneration %}), "
            f"and none of ours ({', '.join(names())}) renders the same text: put the marks into its chat template"
        )

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Cut a conversation's text, as the model's own template gives it, into pieces.

        Args:
            messages: turns with `role` and `content`.

        Raises:
            ValueError: the model's own template refuses the conversation, or ours gives another text.
        """
        text, spans = self._render(messages)
        try:
            original = self._original(messages)
        except Exception as error:  # templates raise what they like
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        if text != original:
            raise ValueError(
                f"the template {self.name!r} that marks what the model says gives another text than the model's own "
                f"chat template: {_first_difference(original, text)}"
            )
        return list(_cut(text, spans))

    def _agrees(self, messages: Sequence[Message]) -> bool:
        try:
            return self._render(messages)[0] == self._original(messages)
        except Exception:  # another family's template may refuse or fail in any way: then it is not this one
            return False

    def _original(self, messages: Sequence[Message], **options: Any) -> str:
        return str(self._tokenizer.apply_chat_template([dict(x) for x in messages], tokenize=False, **options))

    def _render(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Render with the marked template: the text, and the spans of characters that the model says."""
        from transformers.utils.chat_template_utils import render_jinja_template

        def render(turns: Sequence[Message], **options: Any) -> tuple[str, list[tuple[int, int]]]:
            made: Any = render_jinja_template(
                conversations=[[dict(turn) for turn in turns]],
                chat_template=self._template,
                return_assistant_tokens_mask=True,
                **{**self._tokenizer.special_tokens_map, **options},
            )
            return made[0][0], made[1][0]

        if self.name == "own":
            return render(messages)
        # What comes before the first turn (a system prompt, a date, a BOS token) comes from the model's own template.
        system = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
        user = {"role": "user", "content": _TEXT}
        opening = render([user], preamble="", opened=False)[0].split(_TEXT)[0]
        before = self._original([*system, user]).split(_TEXT)[0]
        if not before.endswith(opening):
            raise ValueError(f"the model's own chat template does not begin a user's turn with {opening!r}")
        return render(messages[len(system) :], preamble=before.removesuffix(opening), opened=self._opened)


def names() -> list[str]:
    """Return the names of our templates."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    end = 0
    for start, stop in spans:
        for piece in (Piece(text[end:start], False), Piece(text[start:stop], True)):
            if piece.text:
                yield piece
        end = stop
    if text[end:]:
        yield Piece(text[end:], False)


def _first_difference(original: str, text: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(original, text, strict=False)) if a != b), min(len(original), len(text))
    )
    return f"{original[at : at + 40]!r} there, {text[at : at + 40]!r} here"
