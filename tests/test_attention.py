"""Every backend against the oracle: values and gradients, over every kind of row."""

from dataclasses import replace
from itertools import cycle, product

import pytest
import torch

from swaa.attention import BACKENDS, select_backend
from swaa.cache.held import released_view
from swaa.config import LayerRule
from swaa.geometry import build_geometry

# Compiled FlexAttention needs a GPU (tests/test_gpu.py); our kernels run in Triton's interpreter.
HERE = [name for name in BACKENDS if name != "flex"]
RULES = [
    LayerRule(),
    LayerRule(window=1),
    LayerRule(window=2, sinks=1),
    LayerRule(window=5, sinks=9, fa_decode=True),
    LayerRule(window=64, sinks=3, dense_tail=4),
    LayerRule(window=100, sinks=10, fa_decode=True, dense_tail=7),
    LayerRule(window=1000, sinks=2),
    LayerRule(window=3, fa_decode=True),
]
LEFT_PADDED = torch.tensor([[0] * 37 + [1] * 263, [1] * 300, [0] * 290 + [1] * 10])
RIGHT_PADDED = torch.tensor([[1] * 263 + [0] * 37, [1] * 300, [1] * 2 + [0] * 298])
HOLES = torch.tensor([[0] * 10 + [1] * 90 + [0] * 150 + [1] * 50, [1] * 100 + [0] * 3 + [1] * 197, [1] * 300])
PACKED = torch.cat([torch.arange(40), torch.arange(9), torch.arange(150), torch.arange(101)])[None]
FLAGS = (torch.arange(300) % 70 > 50).expand(3, -1)
PASSES = {
    "prompt": {"batch": 2, "past": 0, "rows": 300},
    "prompt and answer": {"batch": 1, "past": 0, "rows": 300, "prompt_length": 250},
    "prompt and answers of two lengths": {"batch": 2, "past": 0, "rows": 300, "prompt_length": torch.tensor([250, 3])},
    "chunk": {"batch": 1, "past": 170, "rows": 130, "prompt_end": 400},
    "chunk that ends the prompt": {"batch": 1, "past": 170, "rows": 130, "prompt_end": 300},
    "chunk of one row": {"batch": 1, "past": 299, "rows": 1, "prompt_end": 303},
    "prompt and drafts": {"batch": 1, "past": 200, "rows": 100, "prompt_end": 290},
    "decode": {"batch": 2, "past": 299, "rows": 1, "prompt_end": 200},
    "decode of drafts": {"batch": 1, "past": 290, "rows": 10, "prompt_end": 200},
    "left padding": {"batch": 3, "past": 0, "rows": 300, "attention_mask": LEFT_PADDED},
    "left padding, chunk": {"batch": 3, "past": 150, "rows": 150, "attention_mask": LEFT_PADDED, "prompt_end": 310},
    "left padding, chunk of padding": {"batch": 3, "past": 0, "rows": 30, "attention_mask": LEFT_PADDED[:, :30]},
    "left padding, decode": {"batch": 3, "past": 298, "rows": 2, "attention_mask": LEFT_PADDED, "prompt_end": 299},
    "right padding": {"batch": 3, "past": 0, "rows": 300, "attention_mask": RIGHT_PADDED, "prompt_length": 200},
    "padding inside": {"batch": 3, "past": 250, "rows": 50, "attention_mask": HOLES, "prompt_end": 280},
    "dense rows": {"batch": 3, "past": 0, "rows": 300, "attention_mask": RIGHT_PADDED, "dense_rows": FLAGS},
    "packed": {"batch": 1, "past": 0, "rows": 300, "position_ids": PACKED},
    "packed answers": {"batch": 1, "past": 0, "rows": 300, "position_ids": PACKED, "dense_rows": FLAGS[:1]},
}


PAIRS = list(product(PASSES, RULES))


def cases(interpreted):
    """Each backend with passes and rules: all of them, or those given for Triton's interpreter, which takes seconds."""
    chosen = {name: interpreted if name == "triton" else PAIRS for name in HERE if name != "eager"}
    return [(name, *pair) for name, pairs in chosen.items() for pair in pairs]


def spaceless(value):
    return str(value).replace(" ", "_")


def tensors(geometry, heads=4, kv_heads=2, dim=16, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(0)

    def random(heads, length):
        x = torch.randn(geometry.batch, heads, length, dim, generator=generator).to(dtype)
        return x.requires_grad_(grad)

    return random(heads, geometry.rows), random(kv_heads, geometry.columns), random(kv_heads, geometry.columns)


def real_rows(geometry):
    if geometry.segments is None:
        return torch.ones(geometry.batch, geometry.rows, dtype=torch.bool)
    return geometry.segments[:, geometry.past :] >= 0


# Each rule and each pass several times; a GPU runs all pairs of them (tests/test_gpu.py).
@pytest.mark.parametrize(("backend", "kind", "rule"), cases(PAIRS[::5]), ids=spaceless)
def test_agrees_with_oracle(backend, kind, rule):
    geometry = build_geometry(**PASSES[kind])
    expected, _ = BACKENDS["eager"](*tensors(geometry), geometry=geometry, rule=rule, scaling=0.25)
    actual, _ = BACKENDS[backend](*tensors(geometry), geometry=geometry, rule=rule, scaling=0.25)
    real = real_rows(geometry)
    assert actual.isfinite().all()
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


# For the interpreter, every second pass, and one rule of each kind.
BACKWARD = list(zip(list(PASSES)[::2], cycle((RULES[0], *RULES[3:6])), strict=False))


@pytest.mark.parametrize(("backend", "kind", "rule"), cases(BACKWARD), ids=spaceless)
def test_gradients_agree_with_oracle(backend, kind, rule):
    geometry = build_geometry(**PASSES[kind])
    real = real_rows(geometry)
    weight = torch.randn(geometry.batch, geometry.rows, 4, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for name in ("eager", backend):
        inputs = tensors(geometry, grad=True)
        output, _ = BACKENDS[name](*inputs, geometry=geometry, rule=rule, scaling=0.25)
        (output * weight)[real].sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"s_aux": torch.linspace(-1, 3, 8)}])
def test_head_groups_softcap_and_learned_sinks(kv_heads, options):
    geometry = build_geometry(batch=2, past=0, rows=200, prompt_length=150)
    rule = LayerRule(window=20, sinks=4, fa_decode=True)
    inputs = tensors(geometry, heads=8, kv_heads=kv_heads)
    expected, weights = BACKENDS["eager"](*inputs, geometry=geometry, rule=rule, scaling=0.3, **options)
    actual, _ = BACKENDS["sdpa"](*inputs, geometry=geometry, rule=rule, scaling=0.3, **options)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert weights.shape == (2, 8, 200, 200)


def test_bfloat16_is_within_one_percent():
    geometry = build_geometry(batch=1, past=0, rows=500)
    rule = LayerRule(window=64, sinks=4)
    expected, _ = BACKENDS["eager"](*tensors(geometry), geometry=geometry, rule=rule, scaling=0.25)
    actual, _ = BACKENDS["sdpa"](*tensors(geometry, dtype=torch.bfloat16), geometry=geometry, rule=rule, scaling=0.25)
    assert (actual.float() - expected).norm() / expected.norm() < 1e-2


def test_sliding_rows_touch_a_window_of_keys_only():
    """The work is linear: keys outside sinks and window may hold NaN and are never read."""
    geometry = build_geometry(batch=1, past=3000, rows=10, prompt_end=5000)
    query, key, value = tensors(geometry)
    key[:, :, 7:2980], value[:, :, 7:2980] = float("nan"), float("nan")
    output, _ = BACKENDS["sdpa"](query, key, value, geometry=geometry, rule=LayerRule(window=20, sinks=7), scaling=0.25)
    assert output.isfinite().all()


HELD = ["chunk", "chunk of one row", "decode", "decode of drafts", "left padding, chunk", "left padding, decode"]


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("kind", [*HELD, "padding inside"], ids=spaceless)
@pytest.mark.parametrize("backend", HERE)
def test_keys_that_a_cache_still_holds(backend, kind, sinks):
    """Sinks and the columns that can still be seen give what all keys give."""
    geometry, rule = build_geometry(**PASSES[kind]), LayerRule(window=20, sinks=sinks)
    query, key, value = tensors(geometry)
    expected, _ = BACKENDS["eager"](query, key, value, geometry=geometry, rule=rule, scaling=0.25)
    released = geometry.first_needed(20, geometry.past)
    assert released > 20
    tail = torch.arange(released, geometry.columns).expand(geometry.batch, -1)
    columns = torch.cat([geometry.sink_columns(sinks).expand(geometry.batch, -1), tail], dim=1)
    held = [x.gather(2, columns[:, None, :, None].expand(-1, 2, -1, 16)) for x in (key, value)]
    view = released_view(geometry, released, sinks)
    assert view.keys == columns.shape[1]
    actual, _ = BACKENDS[backend](query, *held, geometry=view, rule=rule, scaling=0.25)
    real = real_rows(geometry)
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])}], ids=str)
@pytest.mark.parametrize("backend", HERE)
def test_one_row_over_keys_in_any_order(backend, options):
    geometry, rule = build_geometry(batch=2, past=299, rows=1, prompt_end=300), LayerRule(window=20, sinks=4)
    query, key, value = tensors(geometry)
    expected, _ = BACKENDS["eager"](query, key, value, geometry=geometry, rule=rule, scaling=0.25, **options)
    order = torch.randperm(300)
    visible = (order < 4) | (order >= 280)
    shuffled = replace(geometry, key_mask=visible[None], memo={})
    actual, _ = BACKENDS[backend](
        query, key[:, :, order], value[:, :, order], geometry=shuffled, rule=rule, scaling=0.25, **options
    )
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_unknown_backend_suggests():
    with pytest.raises(ValueError, match="Did you mean 'sdpa'"):
        select_backend("spda", torch.device("cpu"), torch.float32, 64)


def test_auto_picks_a_backend_and_says_why():
    name, reason = select_backend("auto", torch.device("cpu"), torch.float32, 64)
    assert name == "sdpa"
    assert "linear" in reason
