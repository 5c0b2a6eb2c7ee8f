"""The user's turn under each kind of chat template, and the tokens of a text that goes on."""

import copy
import re

import pytest

from chat_tokenizers import CHAT
from swaa.tasks import TASKS
from swaa.tasks.base import continuation_ids, encode, user_turn

NEEDLES = [name for name in TASKS if TASKS[name].kind == "retrieval"]


def test_user_turn_without_a_template(tokenizer, special_tokenizer):
    assert user_turn(tokenizer) == ("", "\nAnswer:")
    assert user_turn(special_tokenizer) == ("<s>", "\nAnswer:")


@pytest.mark.parametrize("name", CHAT)
def test_user_turn_of_a_template(chat_tokenizers, name):
    before, after = user_turn(chat_tokenizers[name])
    assert (before, after) == CHAT[name][2]
    assert "system" not in before


def test_a_default_system_prompt_would_be_there(chat_tokenizers):
    # The template does what user_turn undoes.
    chat = [{"role": "user", "content": "Hi"}]
    assert "You are helpful." in chat_tokenizers["default system prompt"].apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize("name", CHAT)
@pytest.mark.parametrize("task", NEEDLES)
def test_one_bos_where_the_tokenizer_has_one(chat_tokenizers, name, task):
    tokenizer = chat_tokenizers[name]
    for sample in TASKS[task].samples(tokenizer, length=400, count=2, seed=0):
        everything = sample.prompt_ids + sample.prefix_ids + sample.answer_ids
        assert len(sample.prompt_ids) == 400
        assert everything.count(tokenizer.bos_token_id) == CHAT[name][1]
        if CHAT[name][1]:
            assert everything[0] == tokenizer.bos_token_id
        # The template's markers are tokens, not text in pieces.
        turn = "".join(CHAT[name][2])
        assert {tokenizer.convert_tokens_to_ids(token) for token in re.findall(r"<[^<>]+>", turn)} <= set(everything)


def test_a_question_in_the_template_is_the_templates_own(chat_tokenizers):
    """The whole prompt is what apply_chat_template makes of its text."""
    for name in ("BOS of the tokenizer", "raises", "BOS of both", "instruction"):
        tokenizer, (before, after) = chat_tokenizers[name], CHAT[name][2]
        sample = TASKS["needle"].samples(tokenizer, length=400, count=1, seed=4)[0]
        said = tokenizer.decode(sample.prompt_ids)[len(before) : -len(after)]
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.decode(sample.prompt_ids).removeprefix("<s>") == text.removeprefix("<s>")


def with_template(tokenizer, bos, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token, tokenizer.chat_template = bos, template
    return tokenizer


def test_a_bos_that_begins_every_turn_is_not_doubled(tokenizer):
    """SmolLM2 calls <|im_start|> its BOS."""
    template, _, expected = CHAT["default system prompt"]
    assert user_turn(with_template(tokenizer, "<|im_start|>", template)) == expected


def test_a_bos_that_only_the_template_writes_is_kept(tokenizer):
    """OLMo 2's tokenizer adds none."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    assert user_turn(with_template(tokenizer, "<s>", template)) == ("<s><|user|>\n", "\n<|assistant|>\n")


def test_a_text_that_merges_with_the_one_before_is_encoded_alone(tokenizer):
    assert continuation_ids(tokenizer, "a", " the") == encode(tokenizer, " the")
    assert encode(tokenizer, "t" + "he") != encode(tokenizer, "t") + encode(tokenizer, "he")
    assert continuation_ids(tokenizer, "t", "he") == encode(tokenizer, "he")


@pytest.mark.parametrize("text", [" the", "he", "\n\nthe end", "<|im_end|>\n"])
@pytest.mark.parametrize("before", ["plain words t", "<|im_start|>user\nwords<|im_end|>\n<|im_start|>assistant\n t"])
def test_what_stands_before_the_last_special_token_does_not_count(tokenizer, before, text):
    marked = copy.deepcopy(tokenizer)
    marked.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    head, whole = encode(marked, before), encode(marked, before + text)
    expected = whole[len(head) :] if whole[: len(head)] == head else encode(marked, text)
    assert continuation_ids(marked, before, text) == expected
