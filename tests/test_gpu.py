"""On a CUDA device: backends against the oracle, generation against explicit masks, offloading, graph capture."""

import copy

import pytest
import torch
from transformers import DynamicCache

import swaa
from families import reference, tiny_model
from swaa.attention import BACKENDS
from swaa.cache import SinkWindowLayer, StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.geometry import build_geometry
from test_attention import PASSES, RULES, real_rows, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], fa_decode=True, dense_tail=4)
STREAM = swaa.SWAAConfig(window=7, sinks=3)
IDS = torch.randint(3, 101, (1, 50), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def exact_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("kind", PASSES, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_backends_agree_with_the_oracle(kind, head_dim):
    geometry = build_geometry(**PASSES[kind])
    real = real_rows(geometry)
    for rule in RULES:
        inputs = tensors(geometry, heads=8, kv_heads=2, dim=head_dim)
        expected, _ = BACKENDS["eager"](*inputs, geometry=geometry, rule=rule, scaling=head_dim**-0.5)
        for name in (name for name in BACKENDS if name != "eager"):
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
                moved = [tensor.to("cuda", dtype) for tensor in inputs]
                actual, _ = BACKENDS[name](*moved, geometry=geometry, rule=rule, scaling=head_dim**-0.5)
                assert actual.isfinite().all()
                error = (actual.float().cpu()[real] - expected[real]).norm() / expected[real].norm()
                assert error < tolerance, (name, rule, dtype)


@pytest.mark.parametrize("mode", ["dynamic", "static", "beams", "lookup", "chunks", "static chunks"])
@pytest.mark.parametrize("config", [CONFIG, STREAM], ids=["fa_decode", "released"])
def test_generation_is_token_exact(mode, config):
    kwargs = {
        "dynamic": {},
        "static": {"cache_implementation": "static"},
        "beams": {"num_beams": 3},
        "lookup": {"prompt_lookup_num_tokens": 4},
        "chunks": {"prefill_chunk_size": 7},
        "static chunks": {"cache_implementation": "static", "prefill_chunk_size": 7},
    }[mode]
    ids = IDS[:, :10].repeat(1, 5).cuda()
    adapted = swaa.adapt(tiny_model().cuda(), config)
    expected = reference(tiny_model(attn_implementation="eager"), config, prompt_end=50).cuda()
    same = {key: value for key, value in kwargs.items() if key == "num_beams"}
    wanted = expected.generate(ids, max_new_tokens=12, do_sample=False, **same)
    assert torch.equal(adapted.generate(ids, max_new_tokens=12, do_sample=False, **kwargs), wanted)


@pytest.mark.parametrize("config", [CONFIG, STREAM], ids=["fa_decode", "released"])
def test_offloaded_caches_work(config):
    adapted = swaa.adapt(tiny_model().cuda(), config)
    cache = DynamicCache(config=adapted.config, offloading=True)
    # In older releases the prefetch of a layer may overwrite memory that is still read (transformers' race, not ours).
    for layer in adapted.model.layers:
        layer.register_forward_pre_hook(lambda module, args: torch.cuda.synchronize())
    offloaded = adapted.generate(IDS.cuda(), past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert torch.equal(offloaded, adapted.generate(IDS.cuda(), max_new_tokens=12, do_sample=False))
    assert any(isinstance(layer, SinkWindowLayer) for layer in cache.layers) == (config is STREAM)
    assert any(layer.keys.device.type == "cpu" for layer in cache.layers)


def test_a_decode_step_on_the_ring_can_be_captured():
    """Cache update and attention of one token in a CUDA graph, replayed far past the ring's size."""
    rule, heads, dim = LayerRule(window=16, sinks=4), 8, 64
    prompt = torch.randn(2, 1, 2, 30, dim, device="cuda")

    def fresh():
        layer = StaticSinkWindowLayer(1000, rule)
        layer.announce(build_geometry(batch=1, past=0, rows=30), prompt_complete=True)
        layer.update(prompt[0], prompt[1])
        return layer

    def step(layer, query, key, value):
        geometry = build_geometry(batch=1, past=layer.seen, rows=1, prompt_end=30)
        layer.announce(geometry, prompt_complete=True)
        keys, values = layer.update(key, value)
        output, _ = BACKENDS["sdpa"](query, keys, values, geometry=layer.view(geometry), rule=rule, scaling=0.125)
        return output

    tokens = torch.randn(60, 3, 1, heads, 1, dim, device="cuda")
    eager, captured = fresh(), fresh()
    buffers = [tokens[0, 0].clone(), tokens[0, 1, :, :2].clone(), tokens[0, 2, :, :2].clone()]
    warm = copy.deepcopy(captured)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(warm, *buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step(captured, *buffers)
    for token in tokens:
        inputs = token[0], token[1][:, :2], token[2][:, :2]
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        graph.replay()
        torch.testing.assert_close(output, step(eager, *inputs), atol=1e-5, rtol=1e-5)
