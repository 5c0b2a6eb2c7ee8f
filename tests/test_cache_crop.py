"""Taking tokens back from a cache that forgets: `crop` after drafts, also of rows of the batch that changed places."""

import copy

import pytest
import torch
from transformers import DynamicCache

import swaa
from families import tiny_model
from swaa.cache import ReleasedError

pytestmark = pytest.mark.usefixtures("no_gradients")
SINKS = swaa.SWAAConfig(window=7, sinks=3)
HEADS = swaa.SWAAConfig(window=7, sinks=3, full_heads={1: [0], 3: [1]})
IDS = torch.randint(3, 101, (2, 60), generator=torch.Generator().manual_seed(0))
# How a cache takes other rows of the batch, and which.
ROWS = {
    "reordered": (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
    "selected": (lambda cache: cache.batch_select_indices(torch.tensor([0])), [0]),
    "masked": (lambda cache: cache.batch_select_indices(torch.tensor([False, True])), [1]),
    "repeated": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
}


def test_crop():
    model = swaa.adapt(tiny_model(), SINKS)
    cache = DynamicCache(config=model.config)
    model(IDS[:, :8], past_key_values=cache, use_cache=True)
    short = copy.deepcopy(cache)
    short.crop(-12)  # more than there are: all, as transformers' layers do
    assert short.get_seq_length() == 0
    cache.crop(-5)  # nothing was released yet
    assert cache.get_seq_length() == 3
    model(IDS[:, 3:33], past_key_values=cache, use_cache=True)
    with pytest.raises(ReleasedError, match=r"cannot crop 2 tokens.*activate_past_recording.*release_kv=False"):
        cache.crop(-2)
    cache.activate_past_recording()
    model(IDS[:, 33:38], past_key_values=cache, use_cache=True)
    cache.crop(-4)
    assert cache.get_seq_length() == 34
    assert cache.layers[0].keys.shape[2] == 3 + 6
    keeper = swaa.adapt(tiny_model(), SINKS.replace(release_kv=False))
    kept = DynamicCache(config=model.config)
    model_logits = model(IDS[:, 34:40], past_key_values=cache, use_cache=True).logits
    for low, high in ((0, 3), (3, 34)):
        keeper(IDS[:, low:high], past_key_values=kept, use_cache=True)
    keeper_logits = keeper(IDS[:, 34:40], past_key_values=kept, use_cache=True).logits
    torch.testing.assert_close(model_logits, keeper_logits, atol=1e-5, rtol=1e-5)


def test_rejected_drafts_leave_a_small_cache():
    model = swaa.adapt(tiny_model(), SINKS)
    ids = torch.randint(3, 101, (1, 10)).repeat(1, 6)
    output = model.generate(
        ids, prompt_lookup_num_tokens=4, max_new_tokens=12, do_sample=False, return_dict_in_generate=True
    )
    assert output.past_key_values.layers[0].keys.shape[2] == 3 + 6


def test_a_plain_turn_after_one_with_drafts_releases_again():
    model = swaa.adapt(tiny_model(), SINKS)
    ids = torch.randint(3, 101, (1, 10)).repeat(1, 6)
    cache = DynamicCache(config=model.config)
    first = model.generate(ids, past_key_values=cache, prompt_lookup_num_tokens=4, max_new_tokens=12, do_sample=False)
    whole = torch.cat([first, IDS[:1, :9]], dim=1)
    second = model.generate(whole, past_key_values=cache, max_new_tokens=12, do_sample=False)
    assert cache.layers[0].keys.shape[2] == 3 + 6
    assert torch.equal(second, model.generate(whole, max_new_tokens=12, do_sample=False))


@pytest.mark.parametrize("config", [SINKS, SINKS.replace(sinks=0), HEADS], ids=["sinks", "naive", "heads"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("padded", [0, 1])
def test_rows_that_changed_places_are_cropped(config, rows, padded):
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[padded, :25] = 0
    change, index = ROWS[rows]
    results = []
    for release in (True, False):
        model = swaa.adapt(tiny_model(), config.replace(release_kv=release))
        cache = DynamicCache(config=model.config)

        def feed(ids, low, high, mask=mask, model=model, cache=cache):
            where = {"attention_mask": mask[:, :high], "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, low:high]}
            return model(ids[:, low:high], past_key_values=cache, use_cache=True, **where).logits

        feed(IDS, 0, 30)
        cache.activate_past_recording()
        feed(IDS, 30, 36)
        change(cache)
        cache.crop(-4)
        results.append(torch.cat([feed(IDS[index], 32, 36, mask[index]), feed(IDS[index], 36, 40, mask[index])], 1))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_an_assistant_with_a_tail_keeps_everything():
    model, assistant = tiny_model(), tiny_model()
    ids, options = torch.randint(3, 101, (1, 10)).repeat(1, 6), {"max_new_tokens": 12, "do_sample": False}
    tail = SINKS.replace(dense_tail=5)
    with pytest.raises(ReleasedError, match=r"dense tail.*release_kv=False"):
        model.generate(ids, assistant_model=swaa.adapt(assistant, tail), **options)
    expected = model.generate(ids, **options)
    for config in (tail.replace(release_kv=False), SINKS):
        assert torch.equal(model.generate(ids, assistant_model=swaa.adapt(assistant, config), **options), expected)
