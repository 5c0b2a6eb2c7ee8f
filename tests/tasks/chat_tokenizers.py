"""Tokenizers trained on a book, plain and with each kind of chat template."""

import re
from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from swaa.prose import prose

# How chat templates differ. Name: template, whether the tokenizer adds BOS by itself, text before and after the user's.
CHAT = {
    # A default system prompt where there is no system turn (SmolLM2, Qwen 2.5); the tokenizer has no BOS of its own.
    "default system prompt": (
        "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful."
        "<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        False,
        ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ),
    # The same without the default, and a tokenizer that adds a BOS which the template does not know.
    "BOS of the tokenizer": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        True,
        ("<s><|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ),
    # No system turn (Gemma).
    "raises": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        True,
        ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ),
    # BOS by the template and by the tokenizer (Llama 3).
    "BOS of both": (
        "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}<|start_header_id|>{{ m['role'] }}"
        "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        True,
        (
            "<s><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ),
    # The system's words folded into the user turn (Gemma 3, Mistral 7B v0.3, Llama 2).
    "folds": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}"
        "<start_of_turn>{{ m['role'] }}\n{{ said if loop.first else '' }}{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        True,
        ("<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ),
    # No line end before the answer (Mistral 7B).
    "instruction": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'user' %}{{ raise_exception('Users only') }}"
        "{% endif %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
        True,
        ("<s>[INST] ", " [/INST]"),
    ),
}
SPECIAL = sorted({token for _, _, turn in CHAT.values() for text in turn for token in re.findall(r"<[^<>]+>", text)})


def train(pre_tokenizer, decoder, alphabet=()):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizer])
    tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=1500, initial_alphabet=list(alphabet), special_tokens=["<s>", "</s>"], show_progress=False
    )
    text = prose("calibration")[:100_000]
    tokenizer.train_from_iterator([*text.split("\n"), "Question: Answer:\n\n 0 1 2 3 4 5 6 7 8 9"], trainer)
    return tokenizer


@lru_cache
def trained_byte_level():
    return train(
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
        pre_tokenizers.ByteLevel.alphabet(),
    ).to_str()


def byte_level():
    return Tokenizer.from_str(trained_byte_level())


def add_bos(backend, end=""):
    backend.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    )


def chat_tokenizer(name):
    template, bos, _ = CHAT[name]
    backend = byte_level()
    if bos:
        add_bos(backend)
    special = [token for token in SPECIAL if token != "<s>"]
    backend.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", name_or_path=name)
    fast.chat_template = template
    return fast


def marking_tokenizer():
    """A tokenizer that puts a token before and one after every text, as some tokenizers do."""
    backend = byte_level()
    add_bos(backend, end=" </s>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
