"""Scores of sets of layers: shared work changes no number, and nothing is measured twice."""

import json
import math
from contextlib import suppress
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import swaa
from families import tiny_model
from select_models import own_answers, planted, scorer
from swaa.compiling import compiled_forward
from swaa.config import SWAAConfig
from swaa.evaluate import score_answers
from swaa.select import Problem, sharing
from swaa.select.greedy import Greedy
from swaa.select.sharing import common_start, shared_layers, shared_order

RECIPE = SWAAConfig(window=6, sinks=2, fa_decode=True)
CONFIGS = [
    SWAAConfig(),
    RECIPE,
    RECIPE.replace(full_layers=[0]),
    RECIPE.replace(full_layers=[1, 3]),
    RECIPE.replace(full_layers=[3]),
    RECIPE.replace(fa_decode=[2]),
    RECIPE.replace(dense_tail=4),
    RECIPE.replace(full_heads={1: [0], 3: [1]}),
]


class Stop(Exception):
    pass


# Shared work


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt_oss", "phi3", "glm4"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_shared_work_changes_no_number(family, batch_size):
    # Layers 0 and 2 of these have windows of their own.
    native = family in ("gemma2", "gpt_oss")
    configs = [config for config in CONFIGS if not native or config.fa_decode != (2,)]
    model = tiny_model(family)
    samples = own_answers(tiny_model(), count=6)
    found = scorer(model, samples, batch_size=batch_size).score(configs)
    assert swaa.adaptation(model) is None
    for config, score in zip(configs, found, strict=True):
        swaa.adapt(model, config)
        tokenizer = scorer(model, samples).tokenizer
        answers = list(score_answers(model, tokenizer, samples, batch_size=batch_size))
        assert score.nll == math.fsum(answer.nll for answer in answers) / len(answers)
        assert score.accuracy == sum(answer.correct for answer in answers) / len(answers)
        assert score.count == len(samples)
    assert len({score.nll for score in found}) >= (4 if native else 7)


def test_compiled_layers_change_no_number(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(sharing, "compiled_forward", partial(compiled_forward, backend=counter))
    model, configs = tiny_model(), CONFIGS[:4]
    samples = own_answers(model, count=6)
    wanted = scorer(model, samples, batch_size=4).score(configs)
    first = scorer(model, samples, batch_size=4, compiled=True).score(configs)
    codes = counter.frame_count
    # One code for all layers, adaptations and batch sizes.
    second = scorer(model, samples, batch_size=3, compiled=True).score(configs)
    assert 0 < codes == counter.frame_count
    for found in (first, second):
        assert [x.nll for x in found] == pytest.approx([x.nll for x in wanted], abs=1e-5)
    torch._dynamo.reset()


def test_layers_below_the_toggled_one_are_not_computed():
    model, computed = tiny_model(num_hidden_layers=6), []
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(lambda *_, number=number: computed.append(number))
    samples = own_answers(model, count=2)
    computed.clear()
    toggled = [RECIPE.replace(full_layers=[layer]) for layer in range(6)]
    scorer(model, samples, batch_size=2).score(toggled)
    # The first pass computes all; of two sets that differ first in layer n, the second starts at n.
    assert len(computed) == 6 + sum(6 - layer for layer in range(5))


def test_layers_are_put_back():
    model = tiny_model()
    own = model.model.layers[1].forward
    vars(model.model.layers[1])["forward"] = replaced = lambda *args, **kwargs: own(*args, **kwargs)
    with suppress(Stop), shared_layers(model):
        assert model.model.layers[1].forward is not replaced
        raise Stop
    assert vars(model.model.layers[1])["forward"] is replaced
    assert "forward" not in vars(model.model.layers[0])


def test_an_order_that_shares_as_much_as_possible():
    assert common_start("", "abc") == 0
    assert common_start("abd", "abc") == 2
    assert common_start("abc", "abc") == 2
    plans = ["bba", "aab", "bab", "aaa", "bbb"]
    order = [plans[index] for index in shared_order(plans)]
    assert order == ["aaa", "aab", "bab", "bba", "bbb"]


# Scores on the disk


def stop_after(batches):
    left = [batches]

    def progress(text, done):
        left[0] -= bool(done)
        if left[0] < 0:
            raise Stop

    return progress


def lines(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_scores_are_kept_and_nothing_is_computed_twice(tmp_path):
    model = planted((2,))
    samples = own_answers(model)
    whole = scorer(model, samples, batch_size=4, file=tmp_path / "whole.jsonl")
    choice = Greedy().select(Problem(whole, RECIPE), 2)

    broken = {"batch_size": 4, "file": tmp_path / "broken.jsonl"}
    with pytest.raises(Stop):
        Greedy().select(Problem(scorer(model, samples, progress=stop_after(5), **broken), RECIPE), 2)
    kept = lines(tmp_path / "broken.jsonl")
    assert 0 < len(kept) < len(lines(tmp_path / "whole.jsonl"))
    with (tmp_path / "broken.jsonl").open("a") as file:
        file.write('{"config": "torn')
    again = Greedy().select(Problem(scorer(model, samples, **broken), RECIPE), 2)
    assert (again.chosen, again.scores, again.passes) == (choice.chosen, choice.scores, choice.passes)
    assert lines(tmp_path / "broken.jsonl")[: len(kept)] == kept

    def key(row):
        return row["config"], row["first"]

    one, other = (sorted(lines(tmp_path / name), key=key) for name in ("whole.jsonl", "broken.jsonl"))
    assert one == other
    assert len({key(row) for row in one}) == len(one)

    def forbidden(*args):
        raise AssertionError("computed again")

    model.model.layers[0].register_forward_pre_hook(forbidden)
    assert Greedy().select(Problem(scorer(model, samples, **broken), RECIPE), 2).chosen == choice.chosen


def test_the_same_mask_by_another_name_is_known():
    model = tiny_model()
    scores = scorer(model, own_answers(model, count=1))
    odd = RECIPE.replace(full_layers="odd")
    assert scores.key(odd) == scores.key(RECIPE.replace(full_layers=[1, 3], backend="eager", release_kv=False))
    assert scores.key(odd) != scores.key(RECIPE)


def test_no_samples_no_scores():
    with pytest.raises(ValueError, match="give one or more"):
        scorer(tiny_model(), [])
