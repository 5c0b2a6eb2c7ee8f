"""What a pass costs: the prefill's time, and the bytes of caches."""

import pytest
import torch
from transformers import DynamicCache

import swaa
from families import tiny_model
from swaa.adapting import plan_layers
from swaa.cost import kv_bytes
from swaa.evaluate import cache_bytes, measure_prefill
from test_evaluate import CONFIGS, adapted, draw


@pytest.mark.parametrize(("name", "kept"), [("full", 4 * 60), ("all", 4 * 60), ("sinks", 4 * (2 + 4))])
def test_prefill(name, kept):
    model, lengths = adapted(CONFIGS[name]), []
    model.register_forward_hook(lambda module, args, output: lengths.append(output.logits.shape[1]))
    seconds, held = measure_prefill(model, [draw(60, i) for i in range(3)])
    assert 0 < seconds < 60
    # Keys and values, heads, head size, bytes of a float32; without FA decode only sinks and window are kept.
    assert held == kept * 2 * 2 * 8 * 4
    # One pass to warm up and one a prompt, each with the logits of the last token only.
    assert lengths == [1] * 4


def test_prefill_takes_the_median_and_leaves_the_first_pass_out(monkeypatch):
    # The clock is read before every pass, and after all but the first: 5, 1 and 3 seconds.
    times = iter([0.0, 100.0, 105.0, 200.0, 201.0, 300.0, 303.0])
    model = adapted(None)
    monkeypatch.setattr("swaa.evaluate.time.perf_counter", lambda: next(times))
    assert measure_prefill(model, [draw(5, i) for i in range(3)])[0] == 3.0
    assert next(times, None) is None


def test_prefill_bytes_of_native_windows():
    # The cache of a layer with a window of 16 keeps 15 tokens once the next one comes.
    a_token = 2 * 2 * 8 * 4
    held = measure_prefill(tiny_model("gemma3_text"), [list(range(3, 53))])[1]
    assert held == a_token * (2 * 50 + 2 * 15)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize(
    "config", [None, swaa.SWAAConfig(window=8), swaa.SWAAConfig(window=8, sinks=2, full_layers=[1])]
)
@pytest.mark.parametrize("length", [9, 50])
def test_bytes_of_native_windows_are_those_that_the_next_token_leaves(family, config, length):
    model = tiny_model(family)
    if config is not None:
        swaa.adapt(model, config)
    held = measure_prefill(model, [list(range(3, 3 + length))])[1]
    rules = plan_layers(model.config, config or swaa.SWAAConfig())
    assert held == kv_bytes(model.config, rules, length, dtype_bytes=4, release_kv=True)
    with torch.no_grad():
        cache = model(torch.arange(3, 3 + length)[None], use_cache=True).past_key_values
        before = cache_bytes(cache)
        tokens = [layer.keys.shape[2] for layer in cache.layers]
        cache = model(torch.tensor([[3]]), past_key_values=cache).past_key_values
    grown = sum(layer.keys.shape[2] - kept for layer, kept in zip(cache.layers, tokens, strict=True))
    assert before == held == cache_bytes(cache) - grown * 2 * 2 * 8 * 4


def test_cache_bytes_of_known_shapes():
    cache = DynamicCache()
    assert cache_bytes(cache) == 0
    cache.update(torch.zeros(2, 3, 5, 7), torch.zeros(2, 3, 5, 4), 0)
    assert cache_bytes(cache) == 2 * 3 * 5 * (7 + 4) * 4
    cache.update(torch.zeros(2, 3, 1, 7), torch.zeros(2, 3, 1, 4), 0)
    assert cache_bytes(cache) == 2 * 3 * 6 * (7 + 4) * 4
    cache.update(torch.zeros(1, 1, 9, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 9, 8, dtype=torch.bfloat16), 1)
    assert cache_bytes(cache) == 2 * 3 * 6 * (7 + 4) * 4 + 2 * 9 * 8 * 2


def test_cache_bytes_of_views_are_those_of_their_storage():
    cache = DynamicCache()
    long = torch.zeros(1, 2, 100, 8)
    cache.update(long.clone(), long.clone(), 0)
    layer = cache.layers[0]
    layer.keys, layer.values = layer.keys[:, :, :10], layer.values[:, :, -10:]
    assert cache_bytes(cache) == 2 * long.nbytes
    layer.keys = layer.keys.clone()
    assert cache_bytes(cache) == long.nbytes + long.nbytes // 10
    # Two views of one storage keep it alive once.
    layer.keys = layer.values[:, :, :3]
    assert cache_bytes(cache) == long.nbytes
