"""`swaa bench train`: the step that is measured trains, in one call or in two, and what the columns mean."""

import pytest
import torch

import swaa
from bench_runs import FLOORS, ONCE, make_tiny, run, tiny
from swaa.attention import BACKENDS
from swaa.bench import models, split, train
from swaa.bench.models import choose_recipes
from swaa.config import SWAAConfig
from swaa.train import Lora, add_lora
from swaa.train.loss import install


@pytest.fixture(autouse=True)
def tiny_everything(monkeypatch):
    make_tiny(monkeypatch)


def with_adapter(config=None):
    """A tiny model as `bench train` has it; the adapter changes nothing yet."""
    torch.manual_seed(1)
    model = add_lora(tiny(), Lora()).train()
    install(model)
    return model if config is None else swaa.adapt(model, config)


def step_and_gradients(model, answer=6):
    torch.manual_seed(0)
    loss = train.training_step(model, 30, 2, answer)()
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [(), (1, 3)])
def test_two_calls_train_as_one_does(layers):
    config = SWAAConfig(window=5, sinks=2, full_layers=layers, fa_decode=True, dense_tail=3)
    loss, gradients = step_and_gradients(with_adapter(config))
    with split.two_calls("in two", split.by_our_kernels) as name:
        found, others = step_and_gradients(with_adapter(config.replace(backend=name)))
    torch.testing.assert_close(found, loss)
    assert len(gradients) == 2 * 3 * 4
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-6, rtol=1e-5)
    assert "in two" not in BACKENDS
    plain, _ = step_and_gradients(with_adapter())
    assert abs(plain - loss) > 1e-4


def test_a_step_trains_the_answers_by_what_the_mask_lets_them_see():
    config = SWAAConfig(window=5, sinks=2, fa_decode=True)
    loss, _ = step_and_gradients(with_adapter(config))
    model = swaa.adapt(tiny(), config)
    torch.manual_seed(0)
    ids = models.random_tokens(model, 2, 30)
    logits = model(ids, prompt_length=24, use_cache=False).logits[:, 23:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 24:].flatten())
    torch.testing.assert_close(loss, expected)
    step = train.training_step(model := with_adapter(config), 30, 2, 6)
    losses = [float(step()) for _ in range(30)]
    assert losses[-1] < losses[0]
    assert all(not p.requires_grad for name, p in model.named_parameters() if "lora" not in name)


def test_training_rows():
    recipes = tuple(choose_recipes(["sinks-fa-decode", "sinks"], window=8, sinks=2))
    settings = train.Settings(recipes, (32, 24), batches=(1, 2), answer=5)
    model, plain = tiny(), tiny()
    rows = list(train.rows(model, settings, FLOORS, ONCE, lambda name: None))
    assert settings.count == len(rows) == 6 * 4
    for row in rows:
        if row["recipe"] in ("sdpa-cudnn-full", "two-calls-flash-attn-4"):
            assert row["note"] == "it needs a CUDA device, not cpu"
            continue
        assert row.get("note") is None
        assert row["tokens_per_s"] == pytest.approx(row["batch"] * row["length"] / row["seconds"])
        assert row["ratio"] == pytest.approx(row["seconds"] / row["floor_s"])
        key = ("sdpa-flash-full", row["length"], row["batch"])
        full = next(x for x in rows if (x["recipe"], x["length"], x["batch"]) == key)
        assert row["speedup"] == pytest.approx(full["seconds"] / row["seconds"])
    assert [row["recipe"] for row in rows][::4] == [*train.BASELINES, "sinks-fa-decode", "sinks"]
    # Linear layers: 3 passes of 2 operations a weight; attention: 4.5 times 4 x heads x head dim x pairs; head: twice.
    weights = 4 * (32 * 64 + 2 * 32 * 32 + 64 * 32 + 3 * 32 * 48 + 2 * 32 + 2 * 16) + 32
    pairs = 4 * (sum(min(row + 1, 10) for row in range(27)) + sum(range(28, 33)))
    expected = 3 * 2 * weights * 32 + 4.5 * 4 * 4 * 16 * pairs + 4 * 64 * 32 * 5
    row = next(x for x in rows if (x["recipe"], x["length"], x["batch"]) == ("sinks-fa-decode", 32, 2))
    assert row["floor_s"] == pytest.approx(2 * expected / FLOORS.flops)
    assert swaa.adaptation(model) is None
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert "forward" not in vars(model)


def test_training_settings_are_checked():
    with pytest.raises(ValueError, match="use 2 tokens or more, and less than the 16 of all"):
        train.Settings((), (32, 16), answer=16)
    with pytest.raises(ValueError, match="unknown baseline 'flash'; known: sdpa-flash-full"):
        train.Settings((), (16,), answer=4, baselines=("flash",))


def test_bench_train(tmp_path):
    options = ("--window", 8, "--answer", 4, "--seconds", 0, "--repeats", 1, "--no-gradient-checkpointing")
    content, files, _ = run(tmp_path, "train", "-n", "16,32", *options, "--baselines", "sdpa-flash-full,two-calls")
    assert {"table.csv", "results.json", "throughput-1.png"} == files
    assert content["settings"]["recipes"]["sinks-fa-decode"]["config"]["window"] == 8
    assert content["settings"]["checkpointing"] is False
    assert len(content["rows"]) == 4 * 2
