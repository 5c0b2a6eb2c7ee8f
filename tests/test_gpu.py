"""On a CUDA device: backends against the oracle, generation against explicit masks, offloading, graph capture."""

import copy
import gc

import pytest
import torch
from transformers import DynamicCache

import swaa
from families import reference, tiny_model
from swaa.attention import BACKENDS, flex
from swaa.attention.kernels.decode import merge, split
from swaa.attention.kernels.forward import forward
from swaa.cache import SinkWindowLayer, StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.decoding import DecodeStep
from swaa.gemv import gemv
from swaa.geometry import build_geometry
from test_attention import PASSES, RULES, real_rows, tensors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], fa_decode=True, dense_tail=4)
HEADS = swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], full_heads={0: [1], 3: [0]})
STREAM = swaa.SWAAConfig(window=7, sinks=3)
IDS = torch.randint(3, 101, (1, 50), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def exact_float32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        yield
    torch.set_float32_matmul_precision(before)


def check(name, kind, rule, *, head_dim, dtype, heads=8, kv_heads=2, grad=False, **options):
    """Compare a backend on the device with the oracle on the CPU."""
    geometry = build_geometry(**PASSES[kind])
    real = real_rows(geometry)
    inputs = tensors(geometry, heads=heads, kv_heads=kv_heads, dim=head_dim)
    weight = torch.randn(geometry.batch, geometry.rows, heads, head_dim, generator=torch.Generator().manual_seed(1))
    found = []
    with torch.set_grad_enabled(grad):
        for backend, device, kept in (("eager", "cpu", torch.float32), (name, "cuda", dtype)):
            moved = [x.to(device, kept).detach().requires_grad_(grad) for x in inputs]
            moved_options = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            output, _ = BACKENDS[backend](*moved, geometry=geometry, rule=rule, scaling=head_dim**-0.5, **moved_options)
            assert output.isfinite().all()
            if grad:
                (output.float().cpu() * weight)[real].sum().backward()
            found.append([output.detach().float().cpu()[real], *(x.grad.float().cpu() for x in moved if grad)])
    # A gradient adds up products of rounded numbers.
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2 if grad else 1e-2
    # With one visible key, the gradients of query and key are zero: only rounding remains.
    rounding = 1e-5 if dtype == torch.float32 else 1e-4
    largest = max(expected.norm() for expected in found[0])
    for expected, actual in zip(*found, strict=True):
        error = (actual - expected).norm()
        assert error < tolerance * expected.norm() + rounding * largest, (name, kind, rule, dtype, error)


DIMS = [(dim, dtype) for dim in (64, 96, 128, 256) for dtype in (torch.bfloat16, torch.float32)]


# One test for each head dim and dtype, since each needs kernels of its own.
@pytest.mark.parametrize(("head_dim", "dtype"), DIMS, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "triton"])
def test_backends_agree_with_the_oracle(name, head_dim, dtype):
    for kind in PASSES:
        for rule in RULES:
            check(name, kind, rule, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize(("head_dim", "dtype"), [DIMS[0], DIMS[1], DIMS[2], DIMS[4]], ids=str)
def test_flex_agrees_with_the_oracle(head_dim, dtype):
    for kind in PASSES if head_dim == 64 and dtype == torch.bfloat16 else ("prompt and answer", "left padding"):
        for rule in RULES:
            check("flex", kind, rule, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize(("head_dim", "dtype"), DIMS, ids=str)
def test_gradients_agree_with_the_oracle(head_dim, dtype):
    for kind in ("prompt and answer", "chunk", "left padding", "dense rows", "packed answers"):
        for rule in RULES:
            check("triton", kind, rule, head_dim=head_dim, dtype=dtype, grad=True)


@pytest.mark.parametrize("kind", ["prompt and answer", "packed answers"])
def test_gradients_of_flex_agree_with_the_oracle(kind):
    for rule in RULES[3:6]:
        check("flex", kind, rule, head_dim=128, dtype=torch.bfloat16, grad=True)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"s_aux": torch.linspace(-1, 3, 8)}], ids=str)
def test_head_groups_softcap_and_learned_sinks(options):
    rule = LayerRule(window=20, sinks=4, fa_decode=True)
    for kv_heads in (1, 2, 4, 8):
        for name in ("triton", "flex"):
            check(name, "prompt and answer", rule, head_dim=64, dtype=torch.bfloat16, kv_heads=kv_heads, **options)
        for kind in ("prompt and answer", "decode", "decode of drafts"):
            for grad in (False, True):
                check("triton", kind, rule, head_dim=64, dtype=torch.float32, kv_heads=kv_heads, grad=grad, **options)


@pytest.mark.parametrize("name", ["triton", "flex"])
def test_memory_is_linear_in_the_length(name):
    rule, peaks = LayerRule(window=256, sinks=16), []
    for rows in (16384, 65536):
        query = torch.randn(1, 8, rows, 64, device="cuda", dtype=torch.bfloat16)
        key, value = torch.randn(2, 1, 2, rows, 64, device="cuda", dtype=torch.bfloat16)
        geometry = build_geometry(batch=1, past=0, rows=rows)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        BACKENDS[name](query, key, value, geometry=geometry, rule=rule, scaling=0.125)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 5 * peaks[0]


def test_another_length_builds_no_kernel():
    rule, counts = LayerRule(window=20, sinks=4, fa_decode=True), []
    for rows, past in ((64, 0), (63, 0), (97, 0), (1, 64), (1, 63), (3, 90), (80, 7)):
        geometry = build_geometry(batch=1, past=past, rows=rows, prompt_length=min(60, past + rows))
        query = torch.randn(1, 4, rows, 64, device="cuda", dtype=torch.bfloat16)
        key, value = torch.randn(2, 1, 2, past + rows, 64, device="cuda", dtype=torch.bfloat16)
        BACKENDS["triton"](query, key, value, geometry=geometry, rule=rule, scaling=0.125)
        kernels = (forward, split, merge)
        counts.append([sum(len(found[0]) for found in kernel.device_caches.values()) for kernel in kernels])
    assert counts[-1] == [counts[0][0], *counts[3][1:]]


def test_too_many_kinds_of_input_are_an_error(monkeypatch, request):
    """Past dynamo's limit FlexAttention would silently compute densely."""
    torch.compiler.reset()
    request.addfinalizer(torch.compiler.reset)
    monkeypatch.setattr(flex, "_VARIANTS", 1)
    rule, dims = LayerRule(window=20, sinks=4), iter((16, 32, 64))

    def attend():
        for dim in dims:
            check("flex", "prompt", rule, head_dim=dim, dtype=torch.bfloat16)

    with pytest.raises(ValueError, match="quadratic memory"):
        attend()


def test_auto_names_its_choice():
    model = swaa.adapt(tiny_model().cuda().bfloat16(), STREAM)
    state = swaa.adaptation(model)
    assert state.backend in ("triton", "flex")
    assert "single tokens" in state.reason


@pytest.mark.parametrize("mode", ["dynamic", "static", "beams", "lookup", "chunks", "static chunks"])
@pytest.mark.parametrize("config", [CONFIG, STREAM, HEADS], ids=["fa_decode", "released", "heads"])
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
def test_recorded_steps_are_token_exact(config, monkeypatch):
    """Compiled and replayed, also under padding and for a prompt shorter than the sinks."""
    replays = []
    record = DecodeStep._record
    monkeypatch.setattr(DecodeStep, "_record", lambda self: replays.append(record(self)))
    adapted = swaa.adapt(tiny_model().cuda(), config)
    for batch, columns, padding in ((1, 50, 0), (3, 30, 11), (1, 2, 0)):
        ids = torch.randint(3, 101, (batch, columns), generator=torch.Generator().manual_seed(1)).cuda()
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        expected = reference(tiny_model(attn_implementation="eager"), config, prompt_end=columns).cuda()
        options = {"attention_mask": mask, "max_new_tokens": 25, "do_sample": False}
        wanted = expected.generate(ids, **options)
        assert torch.equal(adapted.generate(ids, cache_implementation="static", **options), wanted)
    assert len(replays) == 3
    assert not swaa.adaptation(adapted).compiled


def test_a_recorded_step_leaves_no_memory_behind(request):
    """Keys and values of a long prompt are gigabytes: they must not wait until Python looks for circles."""
    adapted = swaa.adapt(tiny_model(max_position_embeddings=4096).cuda(), CONFIG)
    ids, config = IDS.cuda().repeat(1, 80), adapted.config

    def generate():
        adapted.generate(ids, max_new_tokens=5, do_sample=False, cache_implementation="static")
        return torch.cuda.memory_allocated()

    a_layer = 2 * 4 * ids.shape[1] * config.num_key_value_heads * config.head_dim
    generate()
    gc.collect()
    request.addfinalizer(gc.enable)
    gc.disable()
    before = generate()
    assert max(generate() for _ in range(3)) < before + a_layer * config.num_hidden_layers / 2


@torch.no_grad()
@pytest.mark.parametrize("columns", [100, 2560, 9728])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_products_with_a_single_row(columns, dtype):
    x = torch.randn(1, 1, columns, device="cuda", dtype=dtype)
    weights = [torch.randn(rows, columns, device="cuda", dtype=dtype) for rows in (4096, 1000, 3)]
    expected = torch.cat([torch.nn.functional.linear(x.double(), weight.double()) for weight in weights], dim=-1)
    actual = gemv(x, weights).double()
    assert (actual - expected).norm() / expected.norm() < (1e-5 if dtype == torch.float32 else 1e-2)


def test_compiled_layers_compute_the_same():
    model = swaa.adapt(tiny_model().cuda(), CONFIG)
    ids = IDS.cuda()
    wanted = model(ids).logits
    torch.testing.assert_close(swaa.compile_layers(model)(ids).logits, wanted, atol=1e-4, rtol=1e-4)
    swaa.restore(model)


@pytest.mark.parametrize("config", [CONFIG, STREAM, HEADS], ids=["fa_decode", "released", "heads"])
def test_offloaded_caches_work(config):
    adapted = swaa.adapt(tiny_model().cuda(), config)
    cache = DynamicCache(config=adapted.config, offloading=True)
    # In older releases the prefetch of a layer may overwrite memory that is still read (transformers' race, not ours).
    for layer in adapted.model.layers:
        layer.register_forward_pre_hook(lambda module, args: torch.cuda.synchronize())
    offloaded = adapted.generate(IDS.cuda(), past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert torch.equal(offloaded, adapted.generate(IDS.cuda(), max_new_tokens=12, do_sample=False))
    assert any(isinstance(layer, SinkWindowLayer) for layer in cache.layers) == (config is not CONFIG)
    parts = [part for layer in cache.layers for part in getattr(layer, "layers", [layer])]
    assert any(part.keys.device.type == "cpu" for part in parts)


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
