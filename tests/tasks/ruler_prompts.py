"""Prompts of RULER's tasks, and what they are made of."""

import re

from chat_tokenizers import CHAT
from swaa.tasks import TASKS

SYNTHETIC = [task for task in TASKS if task.startswith("ruler-") and not task.startswith("ruler-qa")]
NEEDLE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")
PATTERNS = {
    "words": re.compile("[a-z]+-[a-z]+"),
    "numbers": re.compile("[1-9][0-9]{6}"),
    "uuids": re.compile("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"),
}


def parts(tokenizer, sample):
    """Return what the user says and the answer prefix; the turn around them is checked and taken off."""
    text = tokenizer.decode(sample.prompt_ids)
    if not tokenizer.chat_template:
        before, middle = "", " "
        cut = max(text.rfind(mark) for mark in (" The special magic", " Answer: "))
    else:
        before, after = CHAT[tokenizer.name_or_path][2]
        # No space where a line begins.
        middle = after if after.endswith("\n") else f"{after} "
        cut = text.rindex(middle)
    assert text.startswith(before)
    return text[len(before) : cut], text[cut + len(middle) :]


def context(said):
    """Return the haystack of a needle task and the question after it."""
    lead, text = said.split("\n", 1)
    text, question = text.rsplit("\n", 1)
    assert lead.endswith("afterwards.")
    return lead, text, question


def make(task, tokenizer, length=1500, count=3, seed=0, **options):
    return TASKS[task].samples(tokenizer, length=length, count=count, seed=seed, **options)
