"""The tokenizers of the tests of tasks, files of data sets, and a short book."""

import pytest
from transformers import PreTrainedTokenizerFast

from chat_tokenizers import CHAT, byte_level, chat_tokenizer, marking_tokenizer
from dataset_files import writer
from swaa.prose import prose


@pytest.fixture(scope="module")
def tokenizer():
    """Without a chat template; adds no special token."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_level())


@pytest.fixture(scope="module")
def special_tokenizer():
    return marking_tokenizer()


@pytest.fixture(scope="module")
def chat_tokenizers():
    return {name: chat_tokenizer(name) for name in CHAT}


@pytest.fixture(scope="module")
def chat(chat_tokenizers):
    return chat_tokenizers["BOS of both"]


@pytest.fixture(params=["plain", "BOS of both", "instruction"])
def plain_or_chat(request, tokenizer, chat_tokenizers):
    return tokenizer if request.param == "plain" else chat_tokenizers[request.param]


@pytest.fixture
def write(tmp_path):
    return writer(tmp_path)


@pytest.fixture
def short_books(monkeypatch):
    """Perplexity tokenises the whole book, which takes half a second."""
    monkeypatch.setattr("swaa.tasks.perplexity.prose", lambda split: prose(split)[:50_000])
