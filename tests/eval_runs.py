"""What the tests of evaluation share: models and a tokenizer of bytes, short books, a made-up task, known answers."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import swaa
import swaa.compare
from families import tiny_model
from swaa.evaluate import Answer
from swaa.prose import prose
from swaa.results import read_lines
from swaa.tasks import TASKS, Sample

VOCABULARY = ["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]


def bytes_tokenizer(**special):
    """One token a byte."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    backend = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tiny():
    return tiny_model(vocab_size=len(VOCABULARY))


@dataclass(frozen=True)
class Echo:
    """A prompt that ends in letters of `ends`, one after another; the score is the share of `wanted` in the answer."""

    ends: str = "?x"
    wanted: tuple[str, ...] = ("1", "2", "9", "?")
    judged: bool = False
    path: str | None = "made"
    kind: ClassVar[str] = "generation"
    describe: ClassVar[str] = "an echo"
    max_new_tokens: ClassVar[int] = 6

    def samples(self, tokenizer, *, length, count, seed, split="test", reasoning="none"):
        letters = [self.ends[index % len(self.ends)] for index in range(min(count, 4))]
        texts = ["a" * (length - 1 - index) + letter for index, letter in enumerate(letters)]
        return [
            Sample(
                tuple(tokenizer(text)["input_ids"]),
                (),
                (),
                "12",
                {"index": index, "question": f"What is {index}?", "question_type": "multi-session"},
                self.wanted,
            )
            for index, text in enumerate(texts)
        ]

    def score(self, sample, text):
        return None if self.judged else sum(x in text for x in self.wanted) / len(self.wanted)


def parrot(words):
    """A model that says `words` again and again after their last letter, and repeats every other letter.

    Its layers do nothing, and its head knows which letter follows which.
    """
    model = tiny_model(vocab_size=len(VOCABULARY))
    follower = dict(zip(words[-1] + words[:-1], words, strict=True))
    assert len(follower) == len(words)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        directions = torch.nn.functional.normalize(model.model.embed_tokens.weight)
        for index, token in enumerate(VOCABULARY):
            model.lm_head.weight[VOCABULARY.index(follower.get(token, token))] = directions[index]
    return model


def overflowing(scale):
    """The tiny model with logits so many times as large; infinity: with logits that are no numbers."""
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def save(model, path):
    """Writes a model and the tokenizer of one token a byte."""
    model.save_pretrained(path)
    bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>").save_pretrained(path)
    return path


def registering(monkeypatch):
    """Registers a task of known words, and gives the function that does so with other options."""

    def register(**options):
        monkeypatch.setitem(TASKS._entries, "echo", Echo(**options))

    register()
    return register


@contextmanager
def short_books(*places):
    """Cuts the book that is read at these places: a second of tokenising less in each run."""
    with pytest.MonkeyPatch.context() as patch:
        for place in places:
            patch.setattr(place, lambda split: prose(split)[:5000])
        yield


def rig(monkeypatch, right):
    """Make the scorer find `right[window]` answers right, in a comparison that measures nothing else anew."""

    def score(model, tokenizer, samples, *, batch_size=1):
        state = swaa.adaptation(model)
        for index in range(len(samples)):
            yield Answer(index, index < right[state and state.config.window], 0.5, "“ü”")

    monkeypatch.setitem(swaa.compare.SCORERS, "forced", score)


def lines(path):
    """The lines of a run without their times."""
    return [{key: x for key, x in row.items() if key != "seconds"} for row in read_lines(path / "samples.jsonl")]


def written(path):
    """The files of a run without times."""
    summary = json.loads((path / "summary.json").read_text())
    return lines(path), [{key: x for key, x in row.items() if key != "prefill_seconds"} for row in summary]
