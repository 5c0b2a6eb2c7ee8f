"""The adapters that lie in the repository, on the model that they belong to."""

from pathlib import Path

import pytest

import swaa
from swaa.adapters import read_adapter
from swaa.evaluate import score_answers
from swaa.models import DEFAULT_MODEL, load_model
from swaa.tasks import TASKS

SHIPPED = sorted(path.parent for path in (Path(__file__).parents[1] / "adapters").glob("*/adapter_config.json"))


def test_there_are_some_and_each_is_described():
    text = (SHIPPED[0].parent / "README.md").read_text()
    assert all(f"`{folder.name}`" in text for folder in SHIPPED)


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_an_adapter_finds_what_its_window_had_lost(folder):
    adapter = read_adapter(folder)
    assert adapter.base == DEFAULT_MODEL
    model, tokenizer = load_model(device="cpu", dtype="float32")
    # Three windows, of which the prompt's rows see one.
    samples = TASKS["needle-multikey"].samples(tokenizer, length=768, count=1, seed=1, split="test")

    def nll(model):
        (answer,) = score_answers(model, tokenizer, samples)
        return answer.nll

    untrained = nll(swaa.adapt(model, adapter.config))
    trained = swaa.load(folder, dtype=model.dtype)
    assert swaa.adaptation(trained).config == adapter.config
    assert nll(trained.eval()) < untrained / 2
