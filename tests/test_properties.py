"""Masks, backends, caches and configurations over thousands of random cases."""

import json

import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

import swaa
from families import tiny_model
from random_cases import cases, configurations, passes, rules
from swaa.adapting import plan_layers
from swaa.attention import BACKENDS
from swaa.cache import SinkWindowLayer
from swaa.config import LayerRule, SWAAConfig
from swaa.cost import kv_bytes, visible_pairs
from swaa.evaluate import cache_bytes
from swaa.geometry import build_geometry
from swaa.mask import oracle_mask
from swaa.recipes import Recipe
from test_mask import loop_mask
from test_tiles import check

TOKENS = torch.randint(3, 101, (2, 40), generator=torch.Generator().manual_seed(0))
MODELS = [tiny_model(), tiny_model()]


def dense_rows(tokens, generated, left, rule, by_length):
    """Which rows see everything: generated ones, and the last ones of their prompt."""
    dense = []
    for column, token in enumerate(tokens):
        if token is None:
            dense.append(False)
            continue
        if generated[column]:
            dense.append(rule.fa_decode)
            continue
        if by_length:
            to_end = left - token[1]
        else:
            to_end = 1
            for later in range(column + 1, len(tokens)):
                if tokens[later] is None:
                    continue
                if tokens[later][0] != token[0] or generated[later]:
                    break
                to_end += 1
            else:
                to_end += left
        dense.append(to_end <= rule.dense_tail)
    return dense


@given(passes(), rules())
@cases(1500)
def test_masks_follow_the_rule(case, rule):
    arguments, tokens, generated, left = case
    mask = oracle_mask(build_geometry(**arguments), rule).expand(arguments["batch"], -1, -1)
    for row in range(arguments["batch"]):
        dense = dense_rows(tokens[row], generated[row], left[row], rule, "prompt_length" in arguments)
        expected = loop_mask(tokens[row], rule, dense)[arguments["past"] :]
        assert torch.equal(mask[row], expected)


@given(passes(70), rules(), st.sampled_from([4, 16, 32]))
@cases(300)
def test_tiles_cover_what_is_visible(case, rule, size):
    geometry = build_geometry(**case[0])
    check(geometry, geometry, rule, size)


@given(passes(40), rules(), st.integers(0, 2**31), st.sampled_from([None, 3.0]))
@cases(500)
def test_backends_agree(case, rule, seed, softcap):
    geometry = build_geometry(**case[0])
    generator = torch.Generator().manual_seed(seed)
    batch, rows, columns = geometry.batch, geometry.rows, geometry.columns
    query = torch.randn(batch, 4, rows, 8, generator=generator)
    key, value = (torch.randn(batch, 2, columns, 8, generator=generator) for _ in range(2))
    outputs = []
    for name in ("eager", "sdpa"):
        output, _ = BACKENDS[name](query, key, value, geometry=geometry, rule=rule, scaling=0.3, softcap=softcap)
        outputs.append(output)
    real = torch.tensor([[token is not None for token in line] for line in case[1]])[:, geometry.past :]
    torch.testing.assert_close(outputs[0][real], outputs[1][real], atol=1e-5, rtol=1e-5)


@given(rules(), st.integers(1, 60), st.integers(0, 20))
@cases(500)
def test_pairs_are_counted_as_the_mask_has_them(rule, prompt, new):
    geometry = build_geometry(batch=1, past=0, rows=prompt + new, prompt_end=prompt)
    assert visible_pairs(rule, prompt, new) == int(oracle_mask(geometry, rule).sum())


@st.composite
def streams(draw):
    """Passes over 40 tokens: their sizes, the prompt's tokens, and the second row's padding."""
    ends = sorted(draw(st.sets(st.integers(1, 39), max_size=8)))
    sizes = [high - low for low, high in zip([0, *ends], [*ends, 40], strict=True)]
    prompt = draw(st.integers(1, 40))
    return sizes, prompt, draw(st.integers(0, prompt - 1))


def feed(config, model, cache, stream):
    """Read the tokens pass by pass, and return the logits of real tokens."""
    sizes, prompt, padding = stream
    swaa.adapt(model, config)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1, :padding] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    lengths = torch.tensor([prompt, prompt - padding]) if padding else prompt
    found, low = [], 0
    for size in sizes:
        high = low + size
        extra = {"attention_mask": mask[:, :high], "position_ids": positions[:, low:high]} if padding else {}
        if low < prompt:
            extra["prompt_length"] = lengths
        with torch.no_grad():
            found.append(model(TOKENS[:, low:high], past_key_values=cache, use_cache=True, **extra).logits)
        low = high
    return torch.cat(found, dim=1)[mask.bool()]


@given(configurations(), streams(), st.sampled_from(["dynamic", "dynamic", "static"]))
@cases(120)
def test_caches_that_forget_change_nothing(config, stream, kind):
    caches = []
    for model in MODELS:
        cache = DynamicCache(config=model.config)
        caches.append(cache if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=48))
    logits = [
        feed(config.replace(release_kv=release), model, cache, stream)
        for release, model, cache in zip((True, False), MODELS, caches, strict=True)
    ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)
    if kind == "static":
        return
    released, kept = caches
    assert released.get_seq_length() == kept.get_seq_length() == 40
    for layer, whole in zip(released.layers, kept.layers, strict=True):
        if isinstance(layer, SinkWindowLayer) and not stream[2]:
            places = [*range(config.sinks), *range(40 - config.window + 1, 40)]
            expected = whole.keys[:, :, places] if len(places) < 40 else whole.keys
            torch.testing.assert_close(layer.keys, expected, atol=1e-5, rtol=1e-5)
    if not stream[2] and stream[1] == 40:
        rules = plan_layers(MODELS[0].config, config)
        assert cache_bytes(released) == 2 * kv_bytes(MODELS[0].config, rules, 40, dtype_bytes=4, release_kv=True)


@given(configurations())
@cases(500)
def test_configurations_survive_their_files(config):
    plain = config.to_dict()
    assert SWAAConfig.from_dict(plain) == config
    assert SWAAConfig.from_dict(json.loads(json.dumps(plain))) == config
    assert SWAAConfig.from_dict(yaml.safe_load(yaml.safe_dump(plain))) == config
    assert json.loads(json.dumps(plain)) == plain
    assert hash(SWAAConfig.from_dict(plain)) == hash(config)
    recipe = Recipe("one", config, "a description", {"chain_of_thought": "prompt"}, "somewhere")
    assert Recipe.from_dict("one", yaml.safe_load(recipe.to_yaml())) == recipe
    layers = config.resolve(4)
    assert [layer for layer, rule in enumerate(layers) if rule == LayerRule()] == list(config.full_layer_numbers(4))
