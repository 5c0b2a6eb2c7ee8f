"""LongBench-V2: the published prompts, the middle that is cut out, and how an option is read."""

import re

import pytest

from chat_tokenizers import CHAT
from dataset_files import choice_row, make
from swaa.tasks import Sample
from swaa.tasks.longbench import LongBenchV2, option
from swaa.tasks.ruler_questions import RulerQuestions

CHOICES = "\nChoices:\n(A) One\n(B) Two\n(C) Three\n(D) Four"


def test_longbench_prompts_are_the_published_ones(tokenizer, chat, write):
    task = LongBenchV2(write([choice_row(0, words=3)]))
    text = "\n\n<text>\nword0 word1 word2\n</text>\n\n"
    asked = f"What is the correct answer to this question: What does part 0 say?{CHOICES}"
    whole = (
        f"Please read the following text and answer the question below.{text}{asked}\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    before, after = CHAT["BOS of both"][2]
    (sample,) = make(task, chat)
    assert chat.decode(sample.prompt_ids) == before + whole + after
    assert tokenizer.decode(make(task, tokenizer)[0].prompt_ids) == f"{whole}\nAnswer:"
    assert (sample.answer, sample.references) == ("A", ("A",))
    assert sample.meta["cut_tokens"] == 0
    facts = {"_id": "id0", "domain": "Single-Document QA", "sub_domain": "Literary", "difficulty": "easy"}
    assert sample.meta.items() >= (facts | {"length_class": "short"}).items()
    (sample,) = make(task, chat, reasoning="prompt")
    assert chat.decode(sample.prompt_ids).startswith(
        f"{before}Please read the following text and answer the questions below.{text}{asked}\n\nReason step by step"
    )


def test_longbench_cuts_the_middle_out_as_published(chat, write):
    rows = [choice_row(number, words=2000) for number in range(3)]
    path = write(rows)
    whole = {sample.meta["row"]: sample for sample in make(LongBenchV2(path), chat, length=50_000)}
    for length in (1500, 1501):
        samples = make(LongBenchV2(path), chat, length=length)
        assert len(samples) == 3
        for sample in samples:
            ids, long = sample.prompt_ids, whole[sample.meta["row"]].prompt_ids
            room = length - 128
            assert ids == long[: room // 2] + long[-(room - room // 2) :]
            assert sample.meta["cut_tokens"] == len(long) - room
            assert CHOICES in chat.decode(ids)
    with pytest.raises(ValueError, match="no sample of 'longbench-v2' fits in length=1500: the shortest needs"):
        make(LongBenchV2(path, too_long="leave-out"), chat, length=1500)


def test_longbench_never_cuts_the_question(chat, write):
    rows = [choice_row(0, words=2000), choice_row(1, words=2000, choice_A="very long " * 200)]
    path = write(rows)
    samples = make(LongBenchV2(path), chat, length=1000)
    assert [sample.meta["row"] for sample in samples] == [0]
    with pytest.raises(ValueError, match=r"fits in length=200: the shortest needs \d+") as error:
        make(LongBenchV2(path), chat, length=200)
    shortest = int(re.search(r"needs (\d+)", str(error.value))[1])
    (sample,) = make(LongBenchV2(path), chat, length=shortest)
    assert "What is the correct answer to this question: What does part 0 say?" in chat.decode(sample.prompt_ids)


def test_longbench_takes_rows_with_a_prompt_but_cuts_none(tokenizer, write):
    rows = [{"prompt": "Text. Which?", "answer": "B"}, {"prompt": "word " * 5000, "answer": "C"}]
    (sample,) = make(LongBenchV2(write(rows)), tokenizer)
    assert tokenizer.decode(sample.prompt_ids) == "Text. Which?\nAnswer:"
    assert sample.references == ("B",)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("The correct answer is B", "B"),
        ("**The correct answer is (B)**", "B"),
        ("Well. The correct answer is (C), not that the correct answer is (D).", "C"),
        ("The correct answer is A? No: The correct answer is (D)", "D"),
        ("the correct answer is (B)", None),
        ("The answer is (B)", None),
        ("(B)", None),
        ("B", None),
        ("The correct answer is (E)", None),
        ("", None),
    ],
)
def test_options_are_read_as_published(text, letter):
    assert option(text) == letter
    sample = Sample((), (), (), "B", {"reasoning": "none"}, ("B",))
    assert LongBenchV2().score(sample, text) == float(letter == "B")


@pytest.mark.parametrize(
    ("text", "score"),
    [("(B)", 1), ("B", 1), ("B) Two", 1), ("The correct answer is (B)", 1), ("(C)", 0), ("Bread", 0), ("is B", 0)],
)
def test_after_reasoning_the_option_may_stand_alone(text, score):
    assert LongBenchV2().score(Sample((), (), (), "B", {"reasoning": "prompt"}, ("B",)), text) == score


def test_choices_that_do_not_exist():
    with pytest.raises(ValueError, match=r"too_long='leave' is unknown\. Did you mean 'leave-out'"):
        LongBenchV2(too_long="leave")
    with pytest.raises(ValueError, match=r"source='squat' is unknown\. Did you mean 'squad'"):
        RulerQuestions(source="squat")
