"""The recorded step of a static cache, here without the recording: the same kernels run in Triton's interpreter."""

import gc
import warnings

import pytest
import torch
from transformers import Cache, DynamicCache, StaticCache

import swaa
from families import reference, tiny_model
from swaa.cache import SinkWindowLayer, StaticSinkWindowLayer
from swaa.cache.naming import CACHE, given_cache, put_cache, returned_cache
from swaa.decoding import DecodeStep, why_not
from swaa.evaluate import measure_prefill

CONFIGS = {
    "FA decode": swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], fa_decode=True, dense_tail=4),
    "ring": swaa.SWAAConfig(window=7, sinks=3),
    "ring and full": swaa.SWAAConfig(window=7, sinks=12, full_layers=[1]),
    "sliding, all kept": swaa.SWAAConfig(window=7, sinks=2, release_kv=False),
    "FA decode on one layer": swaa.SWAAConfig(window=5, sinks=1, fa_decode=[1]),
}


@pytest.fixture
def steps(monkeypatch):
    """Count the steps that were taken."""
    taken = []
    call = DecodeStep.__call__
    monkeypatch.setattr(DecodeStep, "__call__", lambda self, token: taken.append(token.clone()) or call(self, token))
    return taken


def prompt(batch, columns, padding=0):
    ids = torch.randint(3, 101, (batch, columns), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(("batch", "columns", "padding"), [(1, 40, 0), (1, 5, 0), (3, 20, 6), (2, 12, 9)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tokens_are_those_of_explicit_masks(config, batch, columns, padding, steps):
    adapted = swaa.adapt(tiny_model(), config)
    expected = reference(tiny_model(attn_implementation="eager"), config, prompt_end=columns)
    inputs = prompt(batch, columns, padding)
    wanted = expected.generate(**inputs, max_new_tokens=11, do_sample=False)
    actual = adapted.generate(**inputs, max_new_tokens=11, do_sample=False, cache_implementation="static")
    assert torch.equal(actual, wanted)
    assert len(steps) == 10


@pytest.mark.parametrize("place", [slice(9, 13), slice(15, 20)], ids=["inside", "right"])
@pytest.mark.parametrize("config", [CONFIGS["FA decode"], swaa.SWAAConfig()], ids=["FA decode", "full"])
def test_padding_that_is_not_at_the_left_is_left_to_transformers(config, place, steps):
    adapted, inputs = swaa.adapt(tiny_model(), config), prompt(2, 20)
    inputs["attention_mask"][1, place] = 0
    wanted = adapted.generate(**inputs, max_new_tokens=8, do_sample=False)
    actual = adapted.generate(**inputs, max_new_tokens=8, do_sample=False, cache_implementation="static")
    assert torch.equal(actual, wanted)
    assert not steps


def test_given_positions_are_those_of_the_prompt(steps):
    adapted, inputs = swaa.adapt(tiny_model(), CONFIGS["FA decode"]), prompt(1, 20)
    inputs["position_ids"] = torch.arange(20)[None] + 100
    wanted = adapted.generate(**inputs, max_new_tokens=8, do_sample=False)
    actual = adapted.generate(**inputs, max_new_tokens=8, do_sample=False, cache_implementation="static")
    assert torch.equal(actual, wanted)
    assert not steps


def test_sampling_draws_the_same_tokens(steps):
    adapted = swaa.adapt(tiny_model(), CONFIGS["ring"])
    options = {"max_new_tokens": 15, "do_sample": True, "temperature": 0.8, "top_k": 20, "repetition_penalty": 1.2}
    outputs = []
    for kind in ("dynamic", "static"):
        torch.manual_seed(3)
        outputs.append(adapted.generate(**prompt(2, 20), **options, cache_implementation=kind))
    assert torch.equal(*outputs)
    assert steps


def test_scores_streamer_and_dictionary_are_as_usual(steps):
    class Streamer:
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, tokens):
            self.tokens += tokens.flatten().tolist()

        def end(self):
            self.ended = True

    adapted = swaa.adapt(tiny_model(), CONFIGS["FA decode"])
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True}
    wanted = adapted.generate(**prompt(1, 15), **options)
    streamer = Streamer()
    actual = adapted.generate(**prompt(1, 15), **options, cache_implementation="static", streamer=streamer)
    assert steps
    assert torch.equal(actual.sequences, wanted.sequences)
    assert streamer.tokens == wanted.sequences[0].tolist()
    assert streamer.ended
    for name in ("scores", "logits"):
        torch.testing.assert_close(torch.stack(actual[name]), torch.stack(wanted[name]), atol=1e-5, rtol=1e-5)
    assert isinstance(actual.past_key_values, StaticCache)


def test_rows_end_one_by_one(steps):
    adapted = swaa.adapt(tiny_model(), CONFIGS["ring"])
    inputs = prompt(3, 20)
    free = adapted.generate(**inputs, max_new_tokens=12, do_sample=False)
    end = int(free[1, 23])  # whatever the second row says fourth
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": end, "pad_token_id": 0}
    wanted = adapted.generate(**inputs, **options)
    assert torch.equal(adapted.generate(**inputs, **options, cache_implementation="static"), wanted)
    assert steps


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_second_turn_on_the_same_static_cache(config, steps):
    if config.dense_tail:
        config = config.replace(dense_tail=0)
    adapted = swaa.adapt(tiny_model(), config)
    first, more = prompt(1, 25)["input_ids"], torch.randint(3, 101, (1, 9))
    turns = []
    for cache in (DynamicCache(config=adapted.config), StaticCache(adapted.config, max_cache_len=90)):
        said = adapted.generate(first, past_key_values=cache, max_new_tokens=10, do_sample=False)
        if isinstance(cache, StaticCache):
            step = DecodeStep(adapted, cache, 1)
            logits = step(said[:, -1])
            step.close()
            assert all(
                layer.seen == said.shape[1] for layer in cache.layers if isinstance(layer, StaticSinkWindowLayer)
            )
        else:
            logits = adapted(said[:, -1:], past_key_values=cache).logits[:, -1]
        whole = torch.cat([said, more], dim=1)
        turns.append((logits, adapted(more, past_key_values=cache).logits, whole))
    for one, other in zip(*turns, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_cache_goes_with_its_last_user(kind, request):
    """Keys and values of a long prompt are gigabytes: they must not wait until Python looks for circles."""

    def caches():
        return sum(issubclass(type(x), Cache) for x in gc.get_objects())

    adapted = swaa.adapt(tiny_model(), CONFIGS["ring and full"])
    gc.collect()
    request.addfinalizer(gc.enable)
    gc.disable()
    before = caches()
    adapted.generate(**prompt(2, 12), max_new_tokens=5, do_sample=False, cache_implementation=kind)
    assert caches() == before


def test_says_why_not():
    adapted = swaa.adapt(tiny_model(), CONFIGS["ring"])
    state = swaa.adaptation(adapted)

    def reason(**changes):
        config = adapted.generation_config.__class__(cache_implementation="static")
        config.update(**{key: value for key, value in changes.items() if hasattr(config, key)})
        return why_not(adapted, state, config, changes)

    assert reason() is None
    assert "not static" in reason(cache_implementation="dynamic")
    assert "compilation" in reason(disable_compile=True)
    assert "hidden states" in reason(output_hidden_states=True)
    assert "another way" in reason(assistant_model=adapted)
    gemma = swaa.adapt(tiny_model("gemma3_text"), swaa.SWAAConfig(window=7))
    gemma.generation_config.cache_implementation = "static"
    assert "native window" in str(why_not(gemma, swaa.adaptation(gemma), gemma.generation_config, {}))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_cache_has_the_name_of_this_transformers(kind):
    model = swaa.adapt(tiny_model(), CONFIGS["ring"])
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "cache_implementation": kind}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the tests' own settings let the deprecated name pass
        output = model.generate(**prompt(2, 20), **options)
        measure_prefill(model, [list(range(3, 23))])
    assert isinstance(output[CACHE], StaticCache if kind == "static" else DynamicCache)
    assert output[CACHE] is returned_cache(output)
    old, new = (given_cache({name: output[CACHE]}) for name in ("past_key_values", CACHE))
    assert old is new is output[CACHE]
    kwargs = {"past_key_values": None}
    put_cache(kwargs, output[CACHE])
    assert kwargs == {CACHE: output[CACHE]}


def test_the_old_name_reaches_a_decoder_that_is_called_by_itself():
    decoder = swaa.adapt(tiny_model(), CONFIGS["ring"]).model
    ids, cache = prompt(1, 20)["input_ids"], DynamicCache(config=decoder.config)
    decoder(ids, past_key_values=cache, use_cache=True)
    assert returned_cache(decoder(ids, past_key_values=None, use_cache=True)).get_seq_length() == 20
    assert cache.get_seq_length() == 20
    assert isinstance(cache.layers[0], SinkWindowLayer)
    decoder(ids[:, :1], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 21
