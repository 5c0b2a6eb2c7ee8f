"""LongMemEval: the published prompts, histories that are too long, and what a judge is told."""

import re

import pytest

from chat_tokenizers import CHAT
from dataset_files import SESSIONS, make, memory_row
from swaa.tasks.longmemeval import LongMemEval

LEAD = (
    "I will give you several history chats between you and a user. Please answer the question based on the relevant "
    "chat history."
)
ASKED = "\n\nCurrent Date: 2023/05/30 (Tue) 23:40\nQuestion: Where did I move to, question 0?"


def history():
    """The published prompt's history: sessions in the order of time, as JSON, without the mark on the evidence."""
    return (
        "\n### Session 1:\nSession Date: 2023/04/10 (Mon) 17:50\nSession Content:\n\n"
        '[{"role": "user", "content": "What is a fjord?"}, {"role": "assistant", "content": "A narrow inlet."}]\n'
        "\n### Session 2:\nSession Date: 2023/05/20 (Sat) 02:21\nSession Content:\n\n"
        '[{"role": "user", "content": "I moved to Oslo in May."}, '
        '{"role": "assistant", "content": "How \\"nice\\"!\\nEnjoy."}]\n'
    )


def test_longmemeval_prompts_are_the_published_ones(tokenizer, chat, write):
    task = LongMemEval(write([memory_row(0)]))
    whole = f"{LEAD}\n\n\nHistory Chats:\n\n{history()}{ASKED}\nAnswer:"
    assert tokenizer.decode(make(task, tokenizer)[0].prompt_ids) == whole
    before, after = CHAT["BOS of both"][2]
    (sample,) = make(task, chat)
    assert chat.decode(sample.prompt_ids) == before + whole + after
    assert (sample.answer, sample.references, sample.prefix_ids, sample.answer_ids) == ("Oslo", ("Oslo",), (), ())
    assert sample.meta == {
        "index": 0,
        "seed": 0,
        "split": "test",
        "row": 0,
        "left_out": 0,
        "reasoning": "none",
        "question": "Where did I move to, question 0?",
        "question_id": "q0",
        "question_type": "single-session-user",
        "abstention": False,
    }


def test_longmemeval_asks_for_steps_as_published_where_the_model_reasons(chat, write):
    (sample,) = make(LongMemEval(write([memory_row(0)])), chat, reasoning="prompt")
    text = chat.decode(sample.prompt_ids)
    steps = (
        " Answer the question step by step: first extract all the relevant information, and then reason over the "
        "information to get the answer."
    )
    assert f"{LEAD}{steps}\n\n\nHistory Chats:\n\n{history()}{ASKED}\n\nReason step by step" in text
    assert sample.meta["reasoning"] == "prompt"


def test_longmemeval_leaves_the_score_to_a_judge_and_tells_it_what_it_needs(tokenizer, write):
    rows = [memory_row(0, question_id="q_abs", question_type="multi-session", answer=17)]
    (sample,) = make(LongMemEval(write(rows)), tokenizer)
    assert (sample.meta["question_type"], sample.meta["abstention"]) == ("multi-session", True)
    assert sample.references == ("17",)
    assert LongMemEval().score(sample, "17") is None


def test_longmemeval_leaves_long_histories_out_and_counts_them(tokenizer, write):
    long = [{"role": "user", "content": "word " * 3000}]
    rows = [memory_row(n, haystack_sessions=[long, SESSIONS[1]] if n % 2 else SESSIONS) for n in range(8)]
    samples = make(LongMemEval(write(rows)), tokenizer)
    assert sorted(sample.meta["row"] for sample in samples) == [0, 2, 4, 6]
    assert all(len(sample.prompt_ids) + 500 <= 2000 for sample in samples)
    left_out = [sample.meta["left_out"] for sample in samples]
    assert left_out == sorted(left_out)
    assert 0 < left_out[-1] <= 4
    with pytest.raises(
        ValueError, match=r"no sample of 'longmemeval' fits in length=600: the shortest needs (\d+)"
    ) as e:
        make(LongMemEval(write(rows)), tokenizer, length=600)
    shortest = int(re.search(r"needs (\d+)", str(e.value))[1])
    assert len(make(LongMemEval(write(rows)), tokenizer, length=shortest)) >= 1
    with pytest.raises(ValueError, match="fits in length"):
        make(LongMemEval(write(rows)), tokenizer, length=shortest - 1)


def test_longmemeval_takes_rows_with_a_prompt(tokenizer, write):
    rows = [
        {"prompt": "A long talk.\nQuestion: Where?\nAnswer:", "question": "Where?", "answer": "Oslo"},
        {"prompt": "A long talk.", "question": "Where?", "answer": "Oslo"},
    ]
    samples = sorted(make(LongMemEval(write(rows, "data.parquet")), tokenizer), key=lambda sample: sample.meta["row"])
    texts = [tokenizer.decode(sample.prompt_ids) for sample in samples]
    assert texts[0] == "A long talk.\nQuestion: Where?\nAnswer:"
    assert texts[1] == "A long talk.\n\nQuestion: Where?\nAnswer:"
    assert {sample.meta["question_type"] for sample in samples} == {""}
    assert {sample.meta["abstention"] for sample in samples} == {False}
