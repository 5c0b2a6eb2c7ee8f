"""Compiled decoder layers: the same numbers, one code for all layers and lengths.

That generation stays the same is seen with full heads in `test_heads.py`, with Inductor on a GPU.
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import Qwen3Config, Qwen3ForCausalLM

import swaa

CONFIG = swaa.SWAAConfig(window=7, sinks=3, full_layers="odd", fa_decode=True)


def deep_model(layers=12):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture
def counter():
    torch._dynamo.reset()
    yield CompileCounter()
    torch._dynamo.reset()


@torch.no_grad()
def test_all_layers_and_lengths_share_one_code(counter):
    model = swaa.adapt(deep_model(), CONFIG)
    ids = torch.randint(0, 100, (1, 50))
    wanted = [model(ids[:, :length]).logits for length in (50, 33)]
    swaa.compile_layers(model, backend=counter)
    first = model(ids)
    torch.testing.assert_close(first.logits, wanted[0])
    compiled = counter.frame_count
    assert 0 < compiled < 12
    torch.testing.assert_close(model(ids[:, :33]).logits, wanted[1])
    assert counter.frame_count == compiled
    cache = first.past_key_values
    assert "update" not in vars(cache)
    model(ids[:, :1], past_key_values=cache)
    with_tokens = counter.frame_count
    for _ in range(3):
        model(ids[:, :1], past_key_values=cache)
    assert counter.frame_count == with_tokens


# torch itself looks at the gradients of what it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_gradients_are_the_same(counter):
    model = swaa.adapt(deep_model(2).train(), CONFIG)
    ids = torch.randint(0, 100, (1, 40))
    model(ids, labels=ids, use_cache=False).loss.backward()
    wanted = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    swaa.compile_layers(model, backend=counter)
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert counter.frame_count
    for parameter, grad in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_restore_takes_it_off(counter):
    model = deep_model(2)
    swaa.compile_layers(swaa.adapt(model, CONFIG), backend=counter)
    swaa.restore(model)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)
    model(torch.randint(0, 100, (1, 20)))
    assert counter.frame_count == 0


def test_needs_an_adapted_model():
    with pytest.raises(swaa.AdaptError, match=r"call swaa\.adapt first"):
        swaa.compile_layers(deep_model(2))


@torch.no_grad()
def test_adapting_another_model_compiles_nothing_anew(counter):
    model = swaa.adapt(deep_model(), CONFIG)
    swaa.compile_layers(model, backend=counter)
    ids = torch.randint(0, 100, (1, 50))
    model(ids)
    before = counter.frame_count
    swaa.adapt(deep_model(), CONFIG)
    with swaa.switched_off(model):
        model(ids)
    for length in (49, 33, 21):
        model(ids[:, :length])
    assert counter.frame_count == before
