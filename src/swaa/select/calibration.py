"""What layers are chosen by: retrieval in five forms, of text, words and random streams that no evaluation uses.

Each form has a wording of its own, none of them that of a task in `swaa.tasks`, so that layers are not chosen for one
template. A file of your own with prompts and answers takes their place, or stands beside them.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swaa.prose import haystack, sentence_ends
from swaa.tasks import Needle, Sample
from swaa.tasks.base import continuation_ids, encode, user_turn
from swaa.tasks.datafile import read_rows
from swaa.tasks.needle import Wording

_WORDINGS = {
    "code": Needle(
        wording=Wording(
            "Below is a chapter of a novel. Somebody has scribbled door codes between its lines. Study it, then reply.",
            "Note to myself: the door code of the {key} is",
            "Which code opens the door of the {key}?",
        ),
    ),
    "password": Needle(
        wording=Wording(
            "Here is a document. Pay attention to the passwords in it.",
            "The password of the user {key} is",
            "Tell me the password of the user {key}.",
            answers="name",
        ),
    ),
    "parcel": Needle(
        keys=4,
        wording=Wording(
            "You work at a post office. The text that follows mentions several parcels and their numbers.",
            "The parcel for {key} has the tracking number",
            "I am looking for the parcel for {key}. What is its tracking number?",
        ),
    ),
    "record": Needle(
        keys=8,
        digits=4,
        wording=Wording(
            "This file mixes prose with records. Look up the record that is asked for at its end.",
            "[record] {key} =",
            "[query] {key}",
        ),
    ),
}
# Words of a sentence that are shown, and words after them that are asked for (that many tokens are scored).
_SHOWN, _QUOTED = 6, 8
_ASK_QUOTE = "\n\nQuote the part of the passage that begins with these words: {}"
# Answers of a user's file are scored up to here: the first tokens tell whether the prompt was read.
_MOST_ANSWER = 64


@dataclass(frozen=True)
class Calibration:
    """Calibration data.

    Args:
        length: tokens of a prompt; a user's prompts may be shorter.
        samples: how many.
        seed: of the samples.
        data: a user's JSONL, JSON or parquet file with `prompt` and `answer` in each row (`prefix` may be there: the
            start of the answer, not scored); None: the built-in forms.
    """

    length: int = 1024
    samples: int = 16
    seed: int = 0
    data: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("length", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 1 or more")

    def make(self, tokenizer: Any) -> list[Sample]:
        """Make the samples; the built-in forms take turns, so that the first few samples hold all of them.

        Raises:
            ValueError: `length` is too short for a form, or nothing in the file fits into it.
        """
        if self.data is not None:
            return _from_file(self.data, tokenizer, self.length, self.samples, self.seed)
        forms = [*_WORDINGS, "quote"]
        made: list[list[Sample]] = []
        for place, form in enumerate(forms):
            count = len(range(place, self.samples, len(forms)))
            # A seed of its own for each form: the same seed would hide its needles in the same pages.
            seed = self.seed * len(forms) + place
            if form == "quote":
                made.append([_quote(tokenizer, self.length, seed, index) for index in range(count)])
            elif count:
                task = _WORDINGS[form]
                made.append(task.samples(tokenizer, length=self.length, count=count, seed=seed, split="calibration"))
        return [made[number % len(forms)][number // len(forms)] for number in range(self.samples)]

    def describe(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Return what a layer plan says about the data."""
        source = "built-in forms: " + ", ".join([*_WORDINGS, "quote"]) if self.data is None else str(self.data)
        facts = {"source": source, "length": self.length, "samples": len(samples), "seed": self.seed}
        return facts | {"sha256": fingerprint(samples)}


def fingerprint(samples: Sequence[Sample]) -> str:
    """Return the SHA-256 over the token ids of all samples."""
    digest = hashlib.sha256()
    for sample in samples:
        parts = (sample.prompt_ids, sample.prefix_ids, sample.answer_ids)
        digest.update(("|".join(",".join(map(str, ids)) for ids in parts) + "\n").encode())
    return digest.hexdigest()


def _quote(tokenizer: Any, length: int, seed: int, index: int) -> Sample:
    """Ask for the words that follow the first words of a sentence of the text: retrieval without a planted fact."""
    before, after = user_turn(tokenizer)
    lead = encode(tokenizer, f"{before}Read this passage with care. You will have to quote from it.\n\n")
    rng = random.Random(f"quote/calibration/{seed}/{index}")
    _, longer = haystack("prose", "calibration", tokens=length, index=index, stream=f"quote/{seed}")
    # The question's length depends on the words that it shows: leave room for long ones before choosing.
    longest = continuation_ids(tokenizer, "a", _ASK_QUOTE.format("m" * 10 * _SHOWN) + after)
    kept = encode(tokenizer, longer)[: max(length - len(lead) - len(longest), 0)]
    text = str(tokenizer.decode(kept))
    quotes = [text[start:].split()[: _SHOWN + _QUOTED + 1] for start in sentence_ends(text[: int(0.7 * len(text))])]
    # Whole words, and not across the end of a paragraph.
    quotes = [words[:-1] for words in quotes if len(words) > _SHOWN + _QUOTED and " ".join(words[:-1]) in text]
    if not quotes:
        raise ValueError(f"length={length} holds no sentence to quote: use {2 * length} or more")
    words = rng.choice(quotes)
    opening, rest = " ".join(words[:_SHOWN]), " ".join(words[_SHOWN:])
    question = _ASK_QUOTE.format(opening) + after
    question_ids = continuation_ids(tokenizer, "a", question)
    prefix = opening if after.endswith("\n") else f" {opening}"
    body = encode(tokenizer, longer)[: length - len(lead) - len(question_ids)]
    return Sample(
        prompt_ids=(*lead, *body, *question_ids),
        prefix_ids=tuple(continuation_ids(tokenizer, question, prefix)),
        answer_ids=tuple(continuation_ids(tokenizer, question + prefix, f" {rest}")[:_QUOTED]),
        answer=rest,
        meta={"index": index, "seed": seed, "split": "calibration", "form": "quote"},
    )


def _from_file(path: str, tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
    rows = read_rows(path, [("prompt", "answer")])
    before, after = user_turn(tokenizer)
    found: list[Sample] = []
    shortest = None
    for number in random.Random(f"calibration/{seed}").sample(range(len(rows)), len(rows)):
        prompt, answer = str(rows[number]["prompt"]), str(rows[number]["answer"]).strip()
        prefix = str(rows[number].get("prefix") or "").strip()
        if not answer:
            raise ValueError(f"row {number} of {path!r} has an empty answer: give the text that the model should write")
        space = "" if after.endswith("\n") else " "
        forced = f"{space}{prefix}" if prefix else ""
        ids = encode(tokenizer, f"{before}{prompt}{after}")
        if len(ids) > length:
            shortest = min(len(ids), shortest or len(ids))
            continue
        said = f" {answer}" if prefix else f"{space}{answer}"
        found.append(
            Sample(
                prompt_ids=tuple(ids),
                prefix_ids=tuple(continuation_ids(tokenizer, after, forced)) if forced else (),
                answer_ids=tuple(continuation_ids(tokenizer, after + forced, said)[:_MOST_ANSWER]),
                answer=answer,
                meta={"index": len(found), "seed": seed, "row": number, "file": Path(path).name},
            )
        )
        if len(found) == count:
            break
    if not found:
        raise ValueError(f"no prompt of {path!r} fits into length={length}: the shortest has {shortest} tokens")
    return found
