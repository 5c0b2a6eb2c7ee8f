"""Cache layers that forget: exact against the model that keeps everything, small, and never silently wrong."""

import copy
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from optimum.quanto.library.extensions import get_extension
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, QuantizedCache, StaticCache

import swaa
from families import FAMILIES, tiny_model
from swaa.adapting import plan_layers
from swaa.cache import HeadsLayer, ReleasedError, SinkWindowLayer, StaticSinkWindowLayer
from swaa.cache.naming import given_cache
from swaa.cost import kept_tokens, kv_bytes
from swaa.evaluate import cache_bytes

pytestmark = pytest.mark.usefixtures("no_gradients")
NAIVE = swaa.SWAAConfig(window=7)
SINKS = swaa.SWAAConfig(window=7, sinks=3)
TAIL = swaa.SWAAConfig(window=7, sinks=3, dense_tail=5)
MIXED = swaa.SWAAConfig(window=7, sinks=3, full_layers=[0], fa_decode=[2])
SMALL = swaa.SWAAConfig(window=1, sinks=2)
FA_TAIL = swaa.SWAAConfig(window=7, fa_decode=True, dense_tail=5)
HEADS = swaa.SWAAConfig(window=7, sinks=3, full_heads={1: [0], 3: [1]})
HEADS_TAIL = HEADS.replace(full_layers=[0], dense_tail=5)
CONFIGS = {"naive": NAIVE, "sinks": SINKS, "tail": TAIL, "mixed": MIXED, "window of one": SMALL}
CONFIGS |= {"heads": HEADS, "heads and tail": HEADS_TAIL}
FORGETTING = SinkWindowLayer | StaticSinkWindowLayer | HeadsLayer
IDS = torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(0))
LAYER_BYTES = 2 * 2 * 8 * 4  # keys and values, 2 KV heads, head dim 8, float32


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "_"))
def config(request):
    return CONFIGS[request.param]


def left_padding():
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :41] = 0
    return mask


def run(model, ids, cache, groups, mask=None, **kwargs):
    """Feed `ids` to a model in groups of rows and return the logits of real rows."""
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    logits, low = [], 0
    for rows in groups:
        high = low + rows
        extra = {} if mask is None else {"attention_mask": mask[:, :high], "position_ids": positions[:, low:high]}
        stated = kwargs if low < 45 else {}
        logits.append(model(ids[:, low:high], past_key_values=cache, use_cache=True, **extra, **stated).logits)
        low = high
    joined = torch.cat(logits, dim=1)
    return joined if mask is None else joined[mask[:, :low].bool()]


GROUPS = [[60], [40, 20], [1] * 60, [13, 1, 26, 1, 1, 18], [40, *[1] * 20], [5, 35, 2, 2, 16]]


CASES = list(product(CONFIGS, GROUPS, [False, True], ["dynamic", "static"], ["llama", "llama eager", "gpt_oss"]))


def label(value):
    return f"{len(value)}_passes" if isinstance(value, list) else str(value).replace(" ", "_")


# Every seventh of them: any two of the values meet in one.
@pytest.mark.parametrize(("name", "groups", "padded", "kind", "model_name"), CASES[::7], ids=label)
def test_logits_equal_those_of_the_model_that_keeps_everything(name, groups, padded, kind, model_name):
    config, family = CONFIGS[name], model_name.split()[0]
    backend = "eager" if "eager" in model_name else "sdpa"
    if kind == "static" and family == "gpt_oss":
        config = config.replace(full_layers=[])  # one family with learned sinks on the ring is enough
    model, keeper = tiny_model(family), tiny_model(family)
    if family == "gpt_oss":
        config = config.replace(fa_decode=False)  # its layers 0 and 2 have a window of their own
    swaa.adapt(model, config.replace(backend=backend))
    swaa.adapt(keeper, config.replace(release_kv=False, backend=backend))

    def cache():
        if kind == "dynamic":
            return DynamicCache(config=model.config)
        return StaticCache(config=model.config, max_cache_len=64)

    mask = left_padding() if padded else None
    # Both rows' prompts end in column 45; the second row's first token is in column 41.
    extra = {"prompt_length": torch.tensor([45, 4]) if padded else 45}
    released, kept = cache(), cache()
    actual = run(model, IDS, released, groups, mask, **extra)
    expected = run(keeper, IDS, kept, groups, mask, **extra)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    forgetting = [isinstance(layer, FORGETTING) for layer in released.layers]
    assert not any(isinstance(layer, FORGETTING) for layer in kept.layers)
    # A ring cannot hold the prompt that a dense tail sees, so a static layer keeps all when the prompt comes in pieces.
    keeps_all = kind == "static" and config.dense_tail > 0 and groups != [60]
    assert any(forgetting) != keeps_all
    assert (cache_bytes(released) < cache_bytes(kept)) != keeps_all


@pytest.mark.parametrize("family", FAMILIES)
def test_families_generate_the_same_tokens(family):
    config = swaa.SWAAConfig(window=7, sinks=3, full_layers=[3])
    mask = left_padding()
    results = []
    for release in (True, False):
        model = swaa.adapt(tiny_model(family), config.replace(release_kv=release))
        results.append(model.generate(IDS * mask, attention_mask=mask, max_new_tokens=20, do_sample=False))
    assert torch.equal(*results)


@pytest.mark.parametrize("length", [3, 9, 10, 60])
def test_what_is_held_is_what_the_cost_model_says(config, length):
    model = swaa.adapt(tiny_model(), config)
    cache = model(IDS[:1, :length], use_cache=True).past_key_values
    rules = plan_layers(model.config, config)
    assert cache_bytes(cache) == kv_bytes(model.config, rules, length, dtype_bytes=4, release_kv=True)
    held = [kept_tokens(rule, length, release_kv=True, kv_heads=2) for rule in rules]
    parts = [layer.layers if isinstance(layer, HeadsLayer) else [layer] for layer in cache.layers]
    assert [sum(part.keys.shape[1] * part.keys.shape[2] for part in layer) for layer in parts] == held
    assert cache.get_seq_length() == length


def test_a_chunked_prefill_never_holds_more_than_a_chunk_beyond():
    model = swaa.adapt(tiny_model(), SINKS)
    held = []
    for layer in model.model.layers:
        layer.register_forward_hook(
            lambda module, args, kwargs, output: held.append(cache_bytes(given_cache(kwargs))), with_kwargs=True
        )
    ids = torch.randint(3, 101, (1, 300))
    model.generate(ids, prefill_chunk_size=16, max_new_tokens=2, do_sample=False)
    assert max(held) == 4 * (3 + 6) * LAYER_BYTES  # after a layer's pass it is down to sinks + window - 1 again
    peaks = []
    original = SinkWindowLayer.update

    def watched(self, keys, values, *args, **kwargs):
        out = original(self, keys, values, *args, **kwargs)
        peaks.append(out[0].shape[2])
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SinkWindowLayer, "update", watched)
        model.generate(ids, prefill_chunk_size=16, max_new_tokens=2, do_sample=False)
    assert max(peaks) <= 3 + 7 + 16


def test_a_dense_tail_keeps_the_prompt_until_it_is_complete():
    model = swaa.adapt(tiny_model(), TAIL)
    cache = DynamicCache(config=model.config)
    model(IDS[:, :30], past_key_values=cache, use_cache=True, prompt_length=40)
    assert cache.layers[0].keys.shape[2] == 30
    model(IDS[:, 30:40], past_key_values=cache, use_cache=True, prompt_length=40)
    assert cache.layers[0].keys.shape[2] == 3 + 6
    with pytest.raises(ReleasedError, match=r"dense tail sees every key.*release_kv=False"):
        model.generate(IDS, past_key_values=cache, max_new_tokens=2)


def test_a_dense_row_sees_the_key_that_its_own_would_replace():
    model = swaa.adapt(tiny_model(), swaa.SWAAConfig(window=8, dense_tail=1))
    cache = StaticCache(config=model.config, max_cache_len=64)
    model(IDS[:, :8], past_key_values=cache, use_cache=True)
    with pytest.raises(ReleasedError, match="dense tail sees every key"):
        model(IDS[:, 8:9], past_key_values=cache, use_cache=True, prompt_length=9)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("config", [SINKS.replace(release_kv=False), NAIVE.replace(window=6, release_kv=False)])
def test_a_cache_that_was_reset_serves_an_adaptation_that_keeps_everything(config, kind):
    model = swaa.adapt(tiny_model(), SINKS)
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=64)
    model(IDS, past_key_values=cache, use_cache=True)
    cache.reset()
    swaa.adapt(model, config)
    found = model(IDS[:, :40], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found, model(IDS[:, :40], use_cache=False).logits, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(layer, FORGETTING) for layer in cache.layers)


def test_static_shapes_and_storage_never_change():
    model = swaa.adapt(tiny_model(), SINKS)
    cache = StaticCache(config=model.config, max_cache_len=4096)
    model(IDS[:, :1], past_key_values=cache, use_cache=True)
    layer = cache.layers[0]
    assert isinstance(layer, StaticSinkWindowLayer)
    before = layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr()
    run(model, IDS[:, 1:], cache, [20, *[1] * 30, 9])
    assert (layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr()) == before
    assert layer.keys.shape == (2, 2, 3 + 7, 8)
    assert layer.get_max_length() == 4096
    assert cache.get_seq_length() == 60


def test_a_short_static_cache_is_left_alone():
    model = swaa.adapt(tiny_model(), swaa.SWAAConfig(window=60, sinks=8))
    output = model.generate(IDS[:, :20], cache_implementation="static", max_new_tokens=5, return_dict_in_generate=True)
    assert not any(isinstance(layer, StaticSinkWindowLayer) for layer in output.past_key_values.layers)


def test_static_refuses_padding_inside_a_row():
    model = swaa.adapt(tiny_model(), SINKS)
    cache = StaticCache(config=model.config, max_cache_len=100)
    with pytest.raises(ReleasedError, match="padding at the left only"):
        model(IDS, attention_mask=left_padding().flip(-1), past_key_values=cache, use_cache=True)


def test_a_dynamic_cache_takes_padding_inside_a_row():
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[0, 10:30], mask[1, 35:50] = 0, 0
    results = []
    for release in (True, False):
        model = swaa.adapt(tiny_model(), SINKS.replace(release_kv=release))
        results.append(run(model, IDS, DynamicCache(config=model.config), [25, 27, *[1] * 8], mask))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [SINKS, NAIVE, HEADS_TAIL], ids=["sinks", "naive", "heads"])
def test_a_dynamic_cache_refuses_padding_that_was_none_before(config):
    model = swaa.adapt(tiny_model(), config)
    held = model(IDS[:, :50], use_cache=True).past_key_values
    for tokens in (slice(40, 50), slice(0, 1) if config.sinks else slice(44, 46)):
        mask = torch.ones(2, 51, dtype=torch.long)
        mask[0, tokens] = 0
        with pytest.raises(ReleasedError, match=r"takes other tokens.*release_kv=False"):
            model(IDS[:, 50:51], past_key_values=copy.deepcopy(held), use_cache=True, attention_mask=mask)
    # Padding of the past that no row can see any more changes nothing that is held.
    mask = torch.ones(2, 51, dtype=torch.long)
    mask[0, 20:30] = 0
    results = []
    for release in (True, False):
        swaa.adapt(model, config.replace(release_kv=release))
        cache = model(IDS[:, :50], use_cache=True).past_key_values
        results.append(model(IDS[:, 50:51], past_key_values=cache, use_cache=True, attention_mask=mask).logits)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_reset_starts_over():
    model = swaa.adapt(tiny_model(), SINKS)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=100)):
        first = run(model, IDS, cache, [40, 20])
        cache.reset()
        assert cache.get_seq_length() == 0
        assert torch.equal(run(model, IDS, cache, [40, 20]), first)


def test_an_emptied_cache_serves_another_adaptation():
    model = swaa.adapt(tiny_model(), SINKS)
    cache = DynamicCache(config=model.config)
    run(model, IDS, cache, [60])
    with pytest.raises(ReleasedError, match="another adaptation"):
        swaa.adapt(model, NAIVE)(IDS[:, :1], past_key_values=cache, use_cache=True)
    cache.reset()
    for config in (NAIVE, swaa.SWAAConfig(window=7, fa_decode=True)):
        swaa.adapt(model, config)
        expected = run(swaa.adapt(tiny_model(), config), IDS, DynamicCache(config=model.config), [40, 20])
        assert torch.equal(run(model, IDS, cache, [40, 20]), expected)
        cache.reset()


def test_a_restored_model_refuses_a_cache_with_released_tokens():
    model = swaa.adapt(tiny_model(), SINKS)
    cache = DynamicCache(config=model.config)
    run(model, IDS, cache, [60])
    swaa.restore(model)
    with pytest.raises(ReleasedError, match="belongs to an adapted model"):
        model(IDS[:, :1], past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("config", [*CONFIGS.values(), FA_TAIL], ids=str)
def test_one_prompt_answers_many_questions(config, kind):
    """A copy of a computed prompt's cache answers as if prompt and question came together."""
    model = swaa.adapt(tiny_model(), config)
    prompt, questions = IDS[:1, :40], [IDS[:1, 40:46], IDS[:1, 50:59]]
    # The document is not the whole prompt: without this its last rows would be the dense tail.
    unfinished = {"prompt_length": 1000}
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=100)
    model(prompt, past_key_values=cache, use_cache=True, **unfinished)
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    for question in questions:
        whole = torch.cat([prompt, question], dim=1)
        answer = model.generate(whole, past_key_values=copy.deepcopy(cache), **options)
        alone = model.generate(whole, **options)
        assert torch.equal(answer.sequences, alone.sequences)
        torch.testing.assert_close(torch.stack(answer.logits), torch.stack(alone.logits), atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == 40


def test_memory_is_constant_over_a_long_stream():
    model = swaa.adapt(tiny_model(), SINKS)
    cache, held = DynamicCache(config=model.config), set()
    for step in range(400):
        model(IDS[:, step % 60 : step % 60 + 1], past_key_values=cache, use_cache=True)
        if step > 20:
            held.add(cache_bytes(cache))
    assert held == {2 * 4 * (3 + 6) * LAYER_BYTES}


def test_past_the_trained_positions_generation_warns():
    model = swaa.adapt(tiny_model(max_position_embeddings=64), SINKS)
    with pytest.warns(UserWarning, match="64 positions"):
        model.generate(IDS, max_new_tokens=10, do_sample=False)


def test_quantised_caches_work_and_keep_everything(monkeypatch):
    # quanto would build this in C++ on its first use, which takes a minute.
    def unpack(packed, bits):
        return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    monkeypatch.setattr(get_extension("quanto_cpp"), "_lib", SimpleNamespace(unpack=unpack))
    config = swaa.SWAAConfig(window=7, sinks=3)
    model = swaa.adapt(tiny_model(head_dim=64), config)

    def generate():
        cache = QuantizedCache(backend="quanto", config=model.config, nbits=4, q_group_size=64, residual_length=16)
        return model.generate(IDS, past_key_values=cache, max_new_tokens=10, do_sample=False), cache

    quantised, cache = generate()
    assert not any(isinstance(layer, SinkWindowLayer) for layer in cache.layers)
    assert cache.get_seq_length() == 69
    swaa.adapt(model, config.replace(release_kv=False))
    assert torch.equal(quantised, generate()[0])


def test_keys_that_other_layers_use_are_kept():
    """Gemma 3n: its last layers attend to the keys of earlier ones, and would look for released ones."""
    shape = {"vocab_size": 101, "vocab_size_per_layer_input": 101, "hidden_size": 32, "intermediate_size": 64}
    shape |= {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    shape |= {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 2, "altup_num_inputs": 2}
    shape |= {"layer_types": ["full_attention"] * 4, "activation_sparsity_pattern": [0.0] * 4}
    config = AutoConfig.for_model("gemma3n_text", **shape, pad_token_id=0, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(3, 101, (1, 40))
    tokens = [
        swaa.adapt(model, swaa.SWAAConfig(window=7, release_kv=release)).generate(
            ids, max_new_tokens=12, do_sample=False
        )
        for release in (True, False)
    ]
    assert torch.equal(*tokens)
    output = swaa.adapt(model, swaa.SWAAConfig(window=7))(ids)
    assert not any(isinstance(layer, SinkWindowLayer) for layer in output.past_key_values.layers)
    # A cache that grows with what is stored has no layers for those that store nothing.
    assert torch.equal(model(ids, past_key_values=DynamicCache()).logits, output.logits)
