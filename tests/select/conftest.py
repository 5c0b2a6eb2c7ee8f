"""A model whose layers are chosen, and its folder."""

import pytest

from eval_runs import VOCABULARY, save
from families import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=len(VOCABULARY), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    return save(model, tmp_path_factory.mktemp("model"))
