"""Full heads: every backend by heads, a cache that forgets for some heads only, and what is refused."""

import copy
from itertools import product

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import CacheLayerMixin

import swaa
from families import reference, tiny_model
from swaa.adapting import plan_layers
from swaa.attention import BACKENDS
from swaa.attention.eager import masked_softmax_attention
from swaa.attention.heads import attend_by_heads, divide
from swaa.cache import ReleasedError, SinkWindowLayer, StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.cost import kv_bytes
from swaa.decoding import why_not
from swaa.evaluate import cache_bytes, held_bytes
from swaa.geometry import build_geometry
from swaa.mask import oracle_head_masks
from test_gemv import counting

pytestmark = pytest.mark.usefixtures("no_gradients")
CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], full_heads={0: [1], 3: [0, 2, 3]})
GQA = {"num_attention_heads": 8, "num_key_value_heads": 4}
IDS = torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(0))
OPTIONS = {"max_new_tokens": 12, "do_sample": False}
HEAD_BYTES = 2 * 8 * 4  # keys and values, head dim 8, float32


def adapted(config=CONFIG, **changes):
    return swaa.adapt(tiny_model(**GQA), config.replace(**changes))


def tensors(grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 8, 100, 16), (2, 4, 100, 16), (2, 4, 100, 16)
    return [torch.randn(shape, generator=generator).requires_grad_(grad) for shape in shapes]


PASSES = {
    "prompt and answer": {"prompt_length": 70},
    "padding": {"attention_mask": torch.tensor([[0] * 37 + [1] * 63, [1] * 100])},
    "packed": {"position_ids": torch.cat([torch.arange(40), torch.arange(60)])[None]},
}
HEADS = [(0,), (3,), (1, 2), (0, 2), (0, 1, 3)]


CASES = [(name, *case) for name in BACKENDS if name not in ("flex", "triton") for case in product(PASSES, HEADS)]
# Triton's interpreter takes seconds for each.
CASES += [("triton", *case) for case in list(product(PASSES, HEADS))[::2]]


@pytest.mark.parametrize(("backend", "rows", "heads"), CASES, ids=str)
def test_backends_and_gradients(backend, rows, heads):
    geometry = build_geometry(batch=2, past=0, rows=100, **PASSES[rows])
    rule = LayerRule(9, 2, fa_decode=True, dense_tail=3, full_heads=heads)
    mask = oracle_head_masks(geometry, rule, 4).repeat_interleave(2, dim=1).expand(2, -1, -1, -1)
    real = mask[:, 0].any(-1)
    inputs, others = tensors(grad=True), tensors(grad=True)
    groups = divide(*inputs[1:], geometry, rule)
    output, weights = attend_by_heads(BACKENDS[backend], inputs[0], groups, scaling=0.25)
    expected, wanted = masked_softmax_attention(*others, mask | ~mask.any(-1, keepdim=True), scaling=0.25)
    expected = expected.transpose(1, 2)
    torch.testing.assert_close(output[real], expected[real], atol=1e-5, rtol=1e-5)
    assert (weights is None) == (backend != "eager")
    if weights is not None:
        torch.testing.assert_close(weights.transpose(1, 2)[real], wanted.transpose(1, 2)[real])
    (output[real] ** 2).sum().backward()
    (expected[real] ** 2).sum().backward()
    for one, other in zip(inputs, others, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"s_aux": torch.linspace(-1, 3, 8)}], ids=str)
def test_soft_cap_and_learned_sinks(options):
    geometry = build_geometry(batch=2, past=0, rows=100)
    rule = LayerRule(9, 2, full_heads=(0, 2))
    inputs = tensors()
    mask = oracle_head_masks(geometry, rule, 4).repeat_interleave(2, dim=1)
    expected, _ = masked_softmax_attention(*inputs, mask, scaling=0.25, **options)
    groups = divide(*inputs[1:], geometry, rule)
    output, _ = attend_by_heads(BACKENDS["sdpa"], inputs[0], groups, scaling=0.25, **options)
    torch.testing.assert_close(output, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [4, 10, 60])
@pytest.mark.parametrize(("changes", "tokens"), [({}, 9), ({"fa_decode": [0]}, 60), ({"release_kv": False}, 60)])
def test_bytes_held_are_those_computed(length, changes, tokens):
    model = adapted(full_heads={0: [1]}, full_layers=[1, 2, 3], **changes)
    cache = model(IDS[:1, :length], use_cache=True).past_key_values
    held = HEAD_BYTES * (3 * min(tokens, length) + 13 * length)
    rules, release = plan_layers(model.config, model.get_decoder()._swaa.config), changes.get("release_kv", True)
    assert cache_bytes(cache) == held
    assert kv_bytes(model.config, rules, length, dtype_bytes=4, release_kv=release) == held
    assert held_bytes(model.config, rules, length, release_kv=release) == held // 2


def test_bytes_of_a_static_cache():
    cache = StaticCache(config=tiny_model(**GQA).config, max_cache_len=100)
    model = adapted()
    model(IDS[:1], past_key_values=cache, use_cache=True)
    assert [type(layer) for layer in cache.layers[0].layers[:1]] == [StaticSinkWindowLayer]
    # Sinks and ring in three heads of layer 0, four of layer 1, one of layer 3.
    assert cache_bytes(cache) == HEAD_BYTES * (8 * (3 + 7) + 8 * 100)
    assert cache.get_max_length() == 100


def test_a_chunked_prefill_never_holds_more_than_a_chunk_beyond(monkeypatch):
    held = []
    original = SinkWindowLayer.update

    def watched(self, keys, values, *args, **kwargs):
        out = original(self, keys, values, *args, **kwargs)
        held.append(out[0].shape)
        return out

    monkeypatch.setattr(SinkWindowLayer, "update", watched)
    adapted().generate(torch.randint(3, 101, (1, 300)), prefill_chunk_size=16, **OPTIONS)
    assert {shape[1] for shape in held} == {1, 3, 4}
    assert max(shape[2] for shape in held) <= 3 + 7 + 16


def test_crop_needs_recorded_tokens():
    model, cache = adapted(), DynamicCache(config=tiny_model(**GQA).config)
    model(IDS[:, :40], past_key_values=cache, use_cache=True)
    before = copy.deepcopy(cache)
    with pytest.raises(ReleasedError, match="activate_past_recording"):
        cache.crop(-2)
    assert cache_bytes(cache) == cache_bytes(before)
    cache.activate_past_recording()
    assert cache.layers[0].record_past
    model(IDS[:, 40:50], past_key_values=cache, use_cache=True)
    cache.crop(-6)
    assert [part.keys.shape[2] for part in cache.layers[0].layers] == [3 + 6, 44]
    logits = model(IDS[:, 44:], past_key_values=cache, use_cache=True).logits
    keeper = adapted(release_kv=False)
    torch.testing.assert_close(logits, keeper(IDS, prompt_length=40).logits[:, 44:], atol=1e-5, rtol=1e-5)


def test_a_plain_turn_after_one_with_drafts_releases_again():
    model, cache = adapted(), DynamicCache(config=tiny_model(**GQA).config)
    ids = torch.randint(3, 101, (1, 10)).repeat(1, 6)
    first = model.generate(ids, past_key_values=cache, prompt_lookup_num_tokens=4, **OPTIONS)
    assert cache.layers[0].sliding.keys.shape[2] == 3 + 6
    whole = torch.cat([first, IDS[:1, :9]], dim=1)
    second = model.generate(whole, past_key_values=cache, **OPTIONS)
    assert cache.layers[0].sliding.keys.shape[2] == 3 + 6
    assert torch.equal(second, model.generate(whole, **OPTIONS))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_emptied_cache_serves_another_adaptation(kind):
    config = tiny_model(**GQA).config
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=100)
    adapted()(IDS, past_key_values=cache, use_cache=True)
    with pytest.raises(ReleasedError, match="another adaptation"):
        adapted(full_heads={0: [2]})(IDS[:, :1], past_key_values=cache, use_cache=True)
    for changes in ({"full_heads": {0: [2]}}, {"full_heads": {}}, {}):
        cache.reset()
        assert cache.get_seq_length() == 0
        model = adapted(**changes)
        output = model.generate(IDS, past_key_values=cache, **OPTIONS)
        assert torch.equal(output, model.generate(IDS, **OPTIONS))


def test_rows_of_the_batch_are_selected_and_repeated():
    model = adapted()
    cache = model(IDS, use_cache=True).past_key_values
    swapped, twice = copy.deepcopy(cache), copy.deepcopy(cache)
    swapped.batch_select_indices(torch.tensor([1, 0]))
    twice.batch_repeat_interleave(2)
    token = IDS[:, :1]
    logits = model(token, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(model(token.flip(0), past_key_values=swapped, use_cache=True).logits.flip(0), logits)
    repeated = model(token.repeat_interleave(2, 0), past_key_values=twice, use_cache=True).logits
    torch.testing.assert_close(repeated, logits.repeat_interleave(2, 0))


@pytest.mark.parametrize("move", ["offload", "prefetch"])
def test_offloading_moves_both_parts(move, monkeypatch):
    moved = []
    monkeypatch.setattr(CacheLayerMixin, move, lambda self: moved.append(self))
    layer = adapted()(IDS, use_cache=True).past_key_values.layers[0]
    getattr(layer, move)()
    assert moved == [layer.sliding, layer.full]


def test_attention_weights():
    model = adapted(backend="eager")
    weights = model(IDS[:1], output_attentions=True, use_cache=False).attentions
    seen = [set((head[-1] > 0).nonzero()[:, 0].tolist()) for head in weights[0][0]]
    window, everything = {0, 1, 2, *range(53, 60)}, set(range(60))
    assert seen == [window] * 2 + [everything] * 2 + [window] * 4
    cache = model(IDS[:1], use_cache=True).past_key_values
    later = model(IDS[:1, :1], past_key_values=cache, output_attentions=True).attentions
    assert later[0].shape == later[2].shape == (1, 8, 1, 61)
    # Over the keys that a head holds: 3 sinks, the last 6 tokens and its own.
    assert [(head[0] > 0).sum() for head in later[0][0]] == [10] * 2 + [61] * 2 + [10] * 4
    torch.testing.assert_close(later[0].sum(-1), torch.ones(1, 8, 1))


def test_compiled_layers_generate_the_same():
    torch._dynamo.reset()
    model = swaa.adapt(tiny_model(**GQA, num_hidden_layers=1), CONFIG.replace(full_layers="none", full_heads={0: [1]}))
    options, replaced = OPTIONS | {"max_new_tokens": 4}, []
    wanted = model.generate(IDS[:1], **options)
    swaa.compile_layers(model, backend=counting(replaced))
    assert torch.equal(model.generate(IDS[:1], **options), wanted)
    # Seven linear layers of a single token, of which three, and two, have the same input.
    assert [sum(numbers) for numbers in zip(*replaced, strict=True)] == [7, 4]
    torch._dynamo.reset()


def test_static_generation_says_why_no_step_is_recorded():
    model = adapted()
    config = type(model.generation_config)(cache_implementation="static")
    assert "full_heads" in why_not(model, swaa.adaptation(model), config, {})
    expected = reference(tiny_model(attn_implementation="eager", **GQA), CONFIG, prompt_end=60)
    static = model.generate(IDS, cache_implementation="static", **OPTIONS)
    assert torch.equal(static, expected.generate(IDS, **OPTIONS))


def test_keys_that_are_not_those_of_the_cache_are_refused(monkeypatch):
    model = adapted()
    update = DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *args, **kwargs: [x * 1 for x in update(*args, **kwargs)])
    with pytest.raises(ReleasedError, match=r"full_heads cannot release.*release_kv=False"):
        model(IDS, use_cache=True)


def test_saved_and_loaded(tmp_path):
    model = adapted()
    wanted = model(IDS).logits
    swaa.save(model, tmp_path)
    loaded = swaa.load(tmp_path)
    assert swaa.adaptation(loaded).config == CONFIG
    assert torch.equal(loaded(IDS).logits, wanted)


@pytest.mark.parametrize(
    ("family", "heads", "words"),
    [
        ("llama", {0: [1], 1: [4]}, r"full_heads, layer 1, \[4\]: the layer has KV heads 0 to 3, not \[4\]"),
        ("llama", {1: [0, 1, 2, 3]}, r"layer 1, .* all 4 KV heads of the layer: name it in full_layers"),
        ("llama", {9: [0]}, r"full_heads: the model has layers 0 to 3, not \[9\]"),
        ("gemma3_text", {0: [0]}, r"full_heads: layers \[0\] of this model are sliding_attention"),
    ],
)
def test_heads_that_the_model_lacks(family, heads, words):
    with pytest.raises(swaa.ConfigError, match=words):
        swaa.adapt(tiny_model(family, **GQA), swaa.SWAAConfig(window=7, full_heads=heads))


def test_head_sizes_that_are_unknown_or_shared():
    config = tiny_model(**GQA).config
    config.num_kv_shared_layers = 2
    with pytest.raises(swaa.ConfigError, match=r"use the keys of earlier ones.*release_kv=False"):
        plan_layers(config, swaa.SWAAConfig(window=7, full_heads={0: [0]}))
    plan_layers(config, swaa.SWAAConfig(window=7, full_heads={0: [0]}, release_kv=False))
    config.kv_lora_rank = 16
    with pytest.raises(swaa.ConfigError, match="name whole layers in full_layers"):
        plan_layers(config, swaa.SWAAConfig(window=7, full_heads={0: [0]}))


@pytest.mark.parametrize("release", [True, False])
def test_autocast(release):
    model = adapted(release_kv=release)
    expected = model(IDS, use_cache=True).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(IDS, use_cache=True).logits
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
