"""Calibration data of `swaa select`: the built-in forms, and a file of one's own."""

import json
import re

import pytest

from swaa.select import Calibration
from swaa.tasks import TASKS

LENGTH = 900


def test_forms_take_turns_and_share_nothing_with_the_tasks(tokenizer):
    samples = Calibration(length=LENGTH, samples=10).make(tokenizer)
    texts = [tokenizer.decode(sample.prompt_ids) for sample in samples]
    assert all(len(sample.prompt_ids) == LENGTH for sample in samples)
    firsts = [text.split("\n\n")[0] for text in texts]
    assert firsts[:5] == firsts[5:]
    assert len(set(firsts)) == 5
    for sample, text in zip(samples, texts, strict=True):
        answer = tokenizer.decode(sample.answer_ids).strip()
        assert answer in text
        prefix = tokenizer.decode(sample.prefix_ids).strip()
        assert f"{prefix} {answer}" in text
    assert [s.prompt_ids for s in Calibration(length=LENGTH, samples=7).make(tokenizer)] == [
        s.prompt_ids for s in samples[:7]
    ]
    assert samples[0].prompt_ids != Calibration(length=LENGTH, samples=1, seed=1).make(tokenizer)[0].prompt_ids
    sentences = {s for text in texts for s in re.split(r"(?<=[.!?]) ", text) if len(s) > 40}
    for name in ("needle", "needle-multikey"):
        for test in TASKS[name].samples(tokenizer, length=LENGTH, count=5, seed=0):
            shown = tokenizer.decode(test.prompt_ids)
            assert not any(sentence in shown for sentence in sentences)
            assert test.meta["key"] not in " ".join(texts)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_users_file(tmp_path, tokenizer):
    rows = [{"prompt": f"{'x' * 20 * n} What is {n}?", "answer": f" number {n} "} for n in range(4)]
    rows[1]["prefix"] = "It is"
    data = Calibration(length=70, samples=9, data=write_rows(tmp_path / "mine.jsonl", rows))
    samples = sorted(data.make(tokenizer), key=lambda sample: sample.meta["row"])
    assert [sample.meta["row"] for sample in samples] == [0, 1, 2]  # the last one is too long
    assert tokenizer.decode(samples[0].prompt_ids) == " What is 0?\nAnswer:"
    assert [tokenizer.decode(s.prefix_ids + s.answer_ids) for s in samples[:2]] == [" number 0", " It is number 1"]
    assert [tokenizer.decode(s.prefix_ids) for s in samples] == ["", " It is", ""]
    facts = data.describe(samples)
    assert (facts["source"], facts["samples"]) == (str(tmp_path / "mine.jsonl"), 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "x" * 200, "answer": "y"}], "no prompt of .* fits into length=70: the shortest has 208 tokens"),
        ([{"prompt": "x", "answer": " "}], "row [01] of .* has an empty answer"),
        ([{"question": "x", "answer": "y"}], "needed are answer, prompt"),
    ],
)
def test_a_wrong_file(tmp_path, tokenizer, rows, message):
    data = Calibration(length=70, data=write_rows(tmp_path / "mine.jsonl", rows * 2))
    with pytest.raises(ValueError, match=message):
        data.make(tokenizer)


def test_too_short_for_the_forms(tokenizer):
    with pytest.raises(ValueError, match=r"use \d+ or more"):
        Calibration(length=200, samples=5).make(tokenizer)
    with pytest.raises(ValueError, match="samples=0: use 1 or more"):
        Calibration(samples=0)
