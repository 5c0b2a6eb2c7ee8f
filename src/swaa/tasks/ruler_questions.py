"""RULER's two question answering tasks: the documents of SQuAD or HotpotQA with the answer among many others."""

import random
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar, Literal, get_args

from swaa.prose import Split
from swaa.registry import check_choice
from swaa.tasks.base import Kind, Reasoning, Sample, check_reasoning
from swaa.tasks.datafile import check_data_request, choose, read_json
from swaa.tasks.ruler import Draft, Fit, found

Source = Literal["squad", "hotpotqa"]

_ASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_LEAD = f"{_ASK}\n\nThe following are given documents.\n\n"
_QUESTION = f"\n\n{_ASK}\n\nQuestion: "
_PREFIX = "Answer:"
_NAMES = {"squad": "ruler-qa-1", "hotpotqa": "ruler-qa-2"}


@dataclass(frozen=True)
class RulerQuestions:
    """A question and as many numbered documents as fit, those that answer it among them, in random order.

    The others are drawn from the whole file, for SQuAD first from the same article. A question whose own documents do
    not fit is left out. `meta` adds what `swaa.tasks.datafile.choose` does, and `question`.

    Attributes:
        source: what the file is: `"squad"` (SQuAD 2.0's JSON; questions without an answer are passed over) or
            `"hotpotqa"` (the JSON of HotpotQA's distractor setting, 10 documents a question).
        path: the file.
    """

    source: Source = "squad"
    path: str | None = None
    kind: ClassVar[Kind] = "generation"
    max_new_tokens: ClassVar[int] = 32

    def __post_init__(self) -> None:
        """Refuse options that make no sample, with a `ValueError` that says what works."""
        check_choice("source", self.source, get_args(Source))

    @property
    def describe(self) -> str:
        """One line for `--help`."""
        title = {"squad": "SQuAD", "hotpotqa": "HotpotQA"}[self.source]
        return f"RULER: answer a question of {title} (--data) from many documents"

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
            ValueError: as in `Task.samples`; or there is no file, it is not what `source` says, or no question fits.
        """
        name = _NAMES[self.source]
        path = check_data_request(name, self.path, length, count, split)
        check_reasoning(reasoning)
        rows, documents = self._read(path)

        def make(row: dict[str, Any], meta: dict[str, Any]) -> tuple[Sample | None, int]:
            draft = _draft(f"{name}/{seed}/{meta['row']}", row, documents)
            fit = Fit(tokenizer, draft, length - self.max_new_tokens, reasoning)
            needed = len(fit.ids) + self.max_new_tokens
            return (fit.sample(meta | {"reasoning": reasoning}) if needed <= length else None), needed

        return choose(rows, make, length=length, count=count, seed=seed, task=name)

    def score(self, sample: Sample, text: str) -> float:
        """Return 1 if one of the references stands in `text`, case ignored, else 0 (RULER's `string_match_part`)."""
        return float(any(found(sample.references, text)))

    def _read(self, path: str) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the questions, and all documents: each once, in alphabetical order."""
        content = read_json(path)
        try:
            rows, documents = (_squad if self.source == "squad" else _hotpotqa)(content)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path!r} has not the schema of {self.source!r}: {error!r}") from error
        if not rows:
            raise ValueError(f"{path!r} holds no question with an answer")
        return rows, sorted(set(documents))


def _draft(stream: str, row: dict[str, Any], documents: list[str]) -> Draft:
    rng = random.Random(stream)
    own = row["own"]
    near = [document for document in row["near"] if document not in own]
    taken = {*own, *near}
    rest = [document for document in documents if document not in taken]
    order = [*own, *rng.sample(near, len(near)), *rng.sample(rest, len(rest))]

    def said(size: int) -> tuple[str, dict[str, Any]]:
        # Too few documents begin again, as in RULER.
        shown = list(islice(cycle(order), size))
        random.Random(f"{stream}/{size}").shuffle(shown)
        text = "\n\n".join(f"Document {number}:\n{document}" for number, document in enumerate(shown, 1))
        return _LEAD + text + _QUESTION + row["question"], {}

    return Draft(
        said=said,
        prefix=_PREFIX,
        references=tuple(row["answers"]),
        smallest=len(own),
        meta={"question": row["question"]},
    )


def _squad(content: Any) -> tuple[list[dict[str, Any]], list[str]]:
    rows, documents = [], []
    for article in content["data"]:
        near = [paragraph["context"] for paragraph in article["paragraphs"]]
        documents += near
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                if not asked.get("is_impossible", False):
                    answers = [answer["text"] for answer in asked["answers"]]
                    own = [paragraph["context"]]
                    rows.append({"question": asked["question"], "answers": answers, "own": own, "near": near})
    return rows, documents


def _hotpotqa(content: Any) -> tuple[list[dict[str, Any]], list[str]]:
    rows, documents = [], []
    for asked in content:
        own = list(dict.fromkeys(f"{title}\n{''.join(sentences)}" for title, sentences in asked["context"]))
        documents += own
        rows.append({"question": asked["question"], "answers": [asked["answer"]], "own": own, "near": []})
    return rows, documents
