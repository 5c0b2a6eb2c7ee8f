"""The original model inside an adapted one: exactly the one it was, by hand and by the length of the prompt."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import swaa
from families import tiny_model
from swaa.train import Lora, add_lora

CONFIG = swaa.SWAAConfig(window=8, sinks=2, full_layers=[1], fa_decode=[0])
IDS = torch.randint(3, 101, (2, 30), generator=torch.Generator().manual_seed(7))
OPTIONS = {"do_sample": False, "max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}


def with_adapter(**options):
    model = add_lora(tiny_model(), Lora(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    return swaa.adapt(model, CONFIG, **options).eval()


def original():
    """Frozen as the weights beside an adapter are: on others PyTorch's matrix product may round in another way."""
    return tiny_model().requires_grad_(False)


def same(found, expected):
    return torch.equal(found.sequences, expected.sequences) and all(map(torch.equal, found.logits, expected.logits))


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"num_beams": 2, "output_logits": False}])
def test_short_prompts_are_answered_by_the_original_model(cache):
    """What is generated runs past the limit, and stays the original's."""
    options = OPTIONS | cache
    model, always = with_adapter(original_up_to="window"), with_adapter()
    for length in (3, 8, 9, 30):
        ids = IDS[:, :length]
        found, before, adapted = (x.generate(ids, **options) for x in (model, original(), always))
        assert found.sequences.shape[1] == length + 6
        expected, other = (before, adapted) if length <= 8 else (adapted, before)
        if options["output_logits"]:
            assert same(found, expected)
            assert not same(found, other)
        else:
            assert torch.equal(found.sequences, expected.sequences)
        assert swaa.adaptation(model).config == CONFIG


def test_the_longest_prompt_of_a_batch_counts_without_its_padding():
    model, before, always = with_adapter(original_up_to=8), original(), with_adapter()
    mask = torch.ones(2, 12, dtype=torch.long)
    for row, padding, owner in ((0, 4, before), (0, 3, always)):
        mask[:] = 1
        mask[row, :padding] = 0
        mask[1, :8] = 0
        inputs = {"input_ids": IDS[:, :12], "attention_mask": mask}
        assert same(model.generate(**inputs, **OPTIONS), owner.generate(**inputs, **OPTIONS))


def test_later_turns_on_a_cache_stay_with_who_began():
    model, before = with_adapter(original_up_to=8), original()
    found, expected = [], []
    for who, outputs in ((model, found), (before, expected)):
        cache, ids = DynamicCache(config=who.config), IDS[:1, :6]
        for _ in range(2):
            outputs.append(who.generate(ids, past_key_values=cache, **OPTIONS))
            ids = torch.cat([outputs[-1].sequences, IDS[:1, 10:20]], dim=1)
    assert all(map(same, found, expected))
    # A cache that is handed out is remembered too, and so is one that the adapted model began.
    for length, owner in ((6, before), (20, with_adapter())):
        ids = IDS[:1, :length]
        first, other = model.generate(ids, **OPTIONS), owner.generate(ids, **OPTIONS)
        ids = torch.cat([first.sequences, IDS[:1, :5]], dim=1)
        # A generated token may be that of padding, which transformers would mask in the second turn.
        turn = OPTIONS | {"attention_mask": torch.ones_like(ids)}
        second = model.generate(ids, past_key_values=first.past_key_values, **turn)
        assert same(second, owner.generate(ids, past_key_values=other.past_key_values, **turn))


def test_a_cache_made_ready_by_the_adapted_model_is_refused():
    model = swaa.adapt(tiny_model(), CONFIG.replace(fa_decode=False), original_up_to=8)
    cache = DynamicCache(config=model.config)
    model.generate(IDS[:1], past_key_values=cache, **OPTIONS)
    cache.reset()
    assert not cache.get_seq_length()
    with pytest.raises(ValueError, match="pass a new one"):
        model.generate(IDS[:1, :6], past_key_values=cache, **OPTIONS)


def test_switching_off_by_hand_gives_everything_back():
    model = with_adapter(original_up_to=4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_A" in name)
    state, flags = swaa.adaptation(model), [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        before = model(IDS, use_cache=False).logits
        with swaa.switched_off(model):
            assert swaa.adaptation(model) is None
            assert torch.equal(model(IDS).logits, original()(IDS).logits)
        assert torch.equal(model(IDS, use_cache=False).logits, before)
    assert swaa.adaptation(model) is state
    assert flags == [p.requires_grad for p in model.parameters()]
    with pytest.raises(RuntimeError, match="midway"), swaa.switched_off(model):
        raise RuntimeError("midway")
    assert swaa.adaptation(model) is state


def test_an_adaptation_that_is_put_on_meanwhile_stays():
    model, config = swaa.compile_layers(swaa.adapt(tiny_model(), CONFIG), backend="eager"), CONFIG.replace(window=5)
    with torch.no_grad(), swaa.switched_off(model):
        swaa.adapt(model, config)
        expected = model(IDS).logits
    assert swaa.adaptation(model).config == config
    assert model.model.layers[0]._compiled_call_impl is None
    assert (len(model.model._forward_pre_hooks), len(model.model._forward_hooks)) == (1, 1)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected)
        assert torch.equal(swaa.restore(model)(IDS).logits, original()(IDS).logits)
    assert not model.model._forward_pre_hooks
    assert not hasattr(model.config, "swaa")


def test_a_model_without_adaptation_or_adapter_is_left_alone():
    model = tiny_model()
    with torch.no_grad(), swaa.switched_off(model):
        assert torch.equal(model(IDS).logits, original()(IDS).logits)


def test_compiled_layers_are_put_back():
    model = swaa.compile_layers(swaa.adapt(tiny_model(), CONFIG), backend="eager")
    layer = model.model.layers[0]
    compiled = layer._compiled_call_impl
    with torch.no_grad(), swaa.switched_off(model):
        assert layer._compiled_call_impl is None
        assert torch.equal(model(IDS).logits, original()(IDS).logits)
    assert layer._compiled_call_impl is compiled
    assert swaa.adaptation(model).compiled


def test_loading_with_it(tmp_path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = with_adapter()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    swaa.save(model, tmp_path / "adapter")
    loaded = swaa.load(tmp_path / "adapter", original_up_to="window").eval()
    assert swaa.adaptation(loaded).original_up_to == 8
    loaded.generation_config.eos_token_id = None
    assert same(loaded.generate(IDS[:, :8], **OPTIONS), original().generate(IDS[:, :8], **OPTIONS))
    assert swaa.adaptation(swaa.load(tmp_path / "adapter")).original_up_to == 0


@pytest.mark.parametrize("limit", [-1, 2.5, "all"])
def test_a_wrong_limit(limit):
    with pytest.raises(swaa.ConfigError, match=r"original_up_to=.*0 or more, or 'window'"):
        swaa.adapt(tiny_model(), CONFIG, original_up_to=limit)


def test_a_reset_cache_is_no_longer_the_originals():
    model = swaa.adapt(tiny_model(), CONFIG, original_up_to=20)
    # A growing cache keeps its length when reset, before transformers 5.18.
    cache = StaticCache(config=model.config, max_cache_len=100)
    model.generate(IDS[:, :15], past_key_values=cache, **OPTIONS)
    cache.reset()
    first = model.generate(IDS, past_key_values=cache, **OPTIONS).sequences
    second = torch.cat([first, IDS[:, :5]], dim=1)
    wanted = model.generate(second, past_key_values=after(model, IDS), **OPTIONS).sequences
    assert torch.equal(model.generate(second, past_key_values=cache, **OPTIONS).sequences, wanted)


def after(model, ids):
    cache = DynamicCache(config=model.config)
    model.generate(ids, past_key_values=cache, **OPTIONS)
    return cache
