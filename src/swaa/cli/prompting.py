"""The prompt of `swaa generate`: where it is read from, and what the model gets."""

import sys
from pathlib import Path
from typing import Any

from swaa.cli.common import warn
from swaa.errors import first_line

# Method 4 of the paper (arXiv 2512.10411), for models that do not think by themselves.
REASON_FIRST = "\n\nReason step by step before you give the final answer."


def read_prompt(prompt: str | None, file: str | None) -> str:
    """Read the prompt: an argument, a file, standard input, or a text and a question about it.

    Args:
        prompt: the argument; None: standard input, unless there is a file. `"-"`: standard input.
        file: path of a text that comes before `prompt`; `"-"`: standard input.

    Raises:
        ValueError: there is no prompt, or the file cannot be read.
    """
    source = file if file is not None else "-" if prompt in (None, "-") else None
    parts = [] if source is None else [_text(source)]
    if prompt not in (None, "-"):
        parts.append(str(prompt))
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise ValueError("the prompt is empty: give it as an argument, with --file PATH, or on standard input")
    return text


def _text(source: str) -> str:
    if source == "-" and sys.stdin.isatty():
        raise ValueError("no prompt: give it as an argument, with --file PATH, or on standard input")
    try:
        text = sys.stdin.read() if source == "-" else Path(source).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source!r} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ValueError(f"cannot read {source!r}: {error.strerror or error}") from error
    # A byte order mark, as editors on Windows write it, is no part of the text.
    return text.removeprefix("\ufeff")


def encode_prompt(tokenizer: Any, text: str, chain_of_thought: str, system: str | None, raw: bool) -> dict[str, Any]:
    """Turn a prompt into tokens, in the model's chat template if it has one.

    Args:
        tokenizer: a transformers tokenizer.
        text: the prompt.
        chain_of_thought: the recipe's: "none", "prompt" or "thinking".
        system: system message.
        raw: leave the chat template out.

    Returns:
        what the tokenizer returns: `input_ids`, `attention_mask`, ..

    Raises:
        ValueError: a system message without a chat template, or the template refuses the messages.
    """
    template = None if raw else tokenizer.chat_template
    if chain_of_thought == "prompt":
        text += REASON_FIRST
    if template is None:
        if system is not None:
            raise ValueError("--system needs a chat template, and there is none here: put it into the prompt")
        if chain_of_thought == "thinking":
            warn("without a chat template there is no thinking to switch on")
        return dict(tokenizer(text, return_tensors="pt", verbose=False))
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    switches = {}
    if chain_of_thought == "thinking":
        switches["enable_thinking"] = True
        if "enable_thinking" not in str(template):
            warn("this model's chat template has no thinking switch: it thinks always, or never")
    try:
        return dict(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt", **switches
            )
        )
    except Exception as error:  # templates raise what they like
        fix = "leave it out with --raw" if system is None else "put the words of --system into the prompt"
        raise ValueError(f"the chat template refuses the messages ({first_line(error)}): {fix}") from error
