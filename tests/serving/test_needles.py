"""The real small model finds a needle or loses it, as in `swaa compare`, token for token like transformers."""

import pytest
import torch

import swaa
from engines import answers, check, engine, generate
from swaa.models import default_model_path, load_model
from swaa.tasks.needle import Needle

LENGTH, SAMPLES = 768, 2
RECIPES = {
    "naive": (swaa.SWAAConfig(window=128), range(1)),
    "sinks, FA decode, tail": (swaa.SWAAConfig(window=128, sinks=10, fa_decode=True, dense_tail=32), range(2, 3)),
}


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return load_model(dtype="float32", device="cpu")


@pytest.mark.parametrize("recipe", RECIPES)
def test_needles(recipe, reference):
    config, expected = RECIPES[recipe]
    model, tokenizer = reference
    task = Needle()
    samples = task.samples(tokenizer, length=LENGTH, count=SAMPLES, seed=0)
    tokens = [list(sample.prompt_ids + sample.prefix_ids) for sample in samples]
    options = {"max_model_len": 2048, "max_num_batched_tokens": 512, "hf_overrides": {"swaa": config.to_dict()}}
    with engine(default_model_path(), **options) as llm:
        outputs = generate(llm, tokens, new=10)
    check(swaa.adapt(model, config), tokens, outputs)
    found = [task.score(sample, tokenizer.decode(ids)) for sample, ids in zip(samples, answers(outputs), strict=True)]
    assert sum(found) in expected
