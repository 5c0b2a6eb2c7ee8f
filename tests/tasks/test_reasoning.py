"""Chain of thought: how a prompt asks for it, and what of the text is the answer."""

import pytest
from transformers import PreTrainedTokenizerFast

from eval_runs import bytes_tokenizer
from swaa.tasks import TASKS, final_answer
from swaa.tasks.base import REASON_THEN_ANSWER, remove_thinking, user_turn

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Qwen 3: an empty thought says that there is none.
SWITCH = PLAIN.replace(
    "<|assistant|>\n",
    "<|assistant|>\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
)
# Models that always think: the template opens the thought.
ALWAYS = PLAIN.replace("<|assistant|>\n", "<|assistant|>\n<think>\n")


def chat(template) -> PreTrainedTokenizerFast:
    tokenizer = bytes_tokenizer(pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def test_turns_of_each_way():
    none, prompt, thinking = (user_turn(chat(SWITCH), way) for way in ("none", "prompt", "thinking"))
    assert none == ("<|user|>", "\n<|assistant|>\n<think>\n\n</think>\n\n")
    assert prompt == ("<|user|>", f"{REASON_THEN_ANSWER}\n<|assistant|>\n<think>\n\n</think>\n\n")
    assert thinking == ("<|user|>", "\n<|assistant|>\n")
    assert user_turn(chat(SWITCH)) == none
    assert user_turn(chat(PLAIN), "prompt") == ("<|user|>", f"{REASON_THEN_ANSWER}\n<|assistant|>\n")
    assert user_turn(chat(None), "prompt") == ("", f"{REASON_THEN_ANSWER}\n")
    assert user_turn(chat(ALWAYS), "thinking") == ("<|user|>", "\n<|assistant|>\n<think>\n")


def test_what_cannot_think_is_refused():
    with pytest.raises(ValueError, match=r"no switch `enable_thinking` .*: use reasoning='prompt'"):
        user_turn(chat(PLAIN), "thinking")
    with pytest.raises(ValueError, match="needs a chat template"):
        user_turn(chat(None), "thinking")
    with pytest.raises(ValueError, match="Did you mean 'prompt'"):
        user_turn(chat(PLAIN), "promt")


@pytest.mark.parametrize("name", ["needle", "needle-multikey"])
def test_needles_ask_for_it(name):
    tokenizer = chat(SWITCH)
    for way in ("none", "prompt", "thinking"):
        (sample,) = TASKS[name].samples(tokenizer, length=1000, count=1, seed=0, reasoning=way)
        assert len(sample.prompt_ids) == 1000
        assert tokenizer.decode(sample.prompt_ids).endswith(f"?{user_turn(tokenizer, way)[1]}")


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        (" 42\n", "none", "42"),
        ("", "none", ""),
        ("<think>\nmaybe 7\n</think>\n\n42", "none", "42"),
        ("maybe 7</think>42", "none", "42"),
        ("<think>maybe 7", "none", None),
        ("<think>\nmaybe 7\n</think>\n\n42\n", "thinking", "42"),
        ("maybe 7\n</think>\n\nIt is 42.", "thinking", "It is 42."),
        ("<think>a</think>b<think>c</think>d", "thinking", "d"),
        ("maybe 7, or 42", "thinking", None),
        ("maybe 7</think>\n", "thinking", None),
        ("First 7.\nAnswer: 42", "prompt", "42"),
        ("First 7.\n\n**Final answer:** 42", "prompt", "42"),
        ("The answer: 7 is wrong.\nAnswer: 42", "prompt", "42"),
        ("Answer: 7\nNo.\nanswer:\n42, 43\n", "prompt", "42, 43"),
        ("- **Answer**: 42**", "prompt", "42"),
        ("<think>Answer: 7</think>Then.\nAnswer: 42", "prompt", "42"),
        ("My answer would be: 42", "prompt", None),
        ("I say that the Answer: 42", "prompt", None),
        ("First 7.\nAnswer:", "prompt", None),
        ("<think>Answer: 7", "prompt", None),
    ],
)
def test_the_answer_is_what_follows_the_reasoning(text, reasoning, answer):
    assert final_answer(text, reasoning) == (answer, answer is None)


def test_thinking_is_removed():
    assert remove_thinking("<think>a</think> b ") == "b"
    assert remove_thinking(" b ") == "b"
    assert remove_thinking("b <think> c") is None
    with pytest.raises(ValueError, match="Did you mean 'none'"):
        final_answer("", "non")


def test_tasks_score_answers():
    (sample,) = TASKS["needle"].samples(chat(PLAIN), length=1000, count=1, seed=0)
    assert TASKS["needle"].score(sample, f"It is {sample.answer}.") == 1.0
    assert TASKS["needle"].score(sample, f"It is 1{sample.answer}.") == 0.0
    with pytest.raises(ValueError, match="by likelihood only"):
        TASKS["perplexity"].score(sample, "a")
