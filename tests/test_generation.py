"""An adapted model against the same model under explicit 4-D masks: token-exact, logits within 1e-4 in float32."""

import copy
from itertools import product

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StaticCache

import swaa
from families import FAMILIES, reference, tiny_model

pytestmark = pytest.mark.usefixtures("no_gradients")
CONFIGS = {
    "naive": swaa.SWAAConfig(window=7),
    "sinks": swaa.SWAAConfig(window=5, sinks=3),
    "fa decode": swaa.SWAAConfig(window=5, fa_decode=True),
    "all": swaa.SWAAConfig(window=7, sinks=3, full_layers=[2], fa_decode=True, dense_tail=4),
    "fa decode on a layer": swaa.SWAAConfig(window=6, sinks=2, fa_decode=[1], dense_tail=3),
    "sinks longer than window": swaa.SWAAConfig(window=1, sinks=9, fa_decode=[3]),
    "full heads": swaa.SWAAConfig(window=5, sinks=3, full_heads={1: [1], 3: [0]}),
    "full heads and all": swaa.SWAAConfig(
        window=7, sinks=3, full_layers=[2], full_heads={1: [1], 3: [0]}, fa_decode=[1], dense_tail=4
    ),
}
PROMPT = 50
NEW = 12


def prompt(batch=1, length=PROMPT, seed=0):
    return torch.randint(3, 101, (batch, length), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths=(50, 31, 4)):
    """Three prompts of different lengths and their mask."""
    ids, mask = prompt(3), torch.ones(3, PROMPT, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, : PROMPT - length] = 0
    return ids * mask, mask


def pair(config, family="llama", prompt_end=PROMPT, **changes):
    """An adapted model and the reference that imitates it."""
    adapted = swaa.adapt(tiny_model(family, **changes), config)
    return adapted, reference(tiny_model(family, attn_implementation="eager", **changes), config, prompt_end)


def generate(model, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return model.generate(*args, max_new_tokens=NEW, **({"do_sample": False} | kwargs))


@pytest.fixture(params=CONFIGS, ids=lambda name: name.replace(" ", "_"))
def config(request):
    return CONFIGS[request.param]


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "seed": 3},
    "beams": {"num_beams": 3},
    "beams that are returned": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3, "seed": 5},
    "without cache": {"use_cache": False},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padded", [False, True])
def test_generate(config, mode, padded):
    ids, mask = left_padded() if padded else (prompt(2), torch.ones(2, PROMPT, dtype=torch.long))
    adapted, expected = pair(config)
    kwargs = {"attention_mask": mask} | MODES[mode]
    assert torch.equal(generate(adapted, ids, **kwargs), generate(expected, ids, **kwargs))


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family):
    config = swaa.SWAAConfig(window=7, sinks=3, full_layers=[1], fa_decode=True, dense_tail=2)
    adapted, expected = pair(config, family)
    ids, mask = left_padded()
    real = mask.bool()
    kwargs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    logits = adapted(**kwargs).logits[real]
    torch.testing.assert_close(logits, expected(**kwargs).logits[real], atol=1e-4, rtol=1e-4)
    unadapted = tiny_model(family)(**kwargs).logits[real]
    assert (logits - unadapted).abs().max() > 1e-2
    assert torch.equal(
        generate(adapted, ids, attention_mask=mask, num_beams=2),
        generate(expected, ids, attention_mask=mask, num_beams=2),
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_full_heads(family):
    """Four KV heads with two query heads each; full ones at an end, in the middle, in turn with sliding ones."""
    config = swaa.SWAAConfig(window=7, sinks=3, full_heads={1: [0, 2], 3: [3]}, dense_tail=2)
    if "layer_types" not in FAMILIES[family]:
        config = config.replace(full_heads={0: [1, 2], 1: [0, 2], 3: [3]}, fa_decode=[3])
    adapted, expected = pair(config, family, num_attention_heads=8, num_key_value_heads=4)
    ids, mask = left_padded()
    real = mask.bool()
    kwargs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    logits = adapted(**kwargs).logits[real]
    torch.testing.assert_close(logits, expected(**kwargs).logits[real], atol=1e-4, rtol=1e-4)
    all_slide = tiny_model(family, num_attention_heads=8, num_key_value_heads=4)
    swaa.adapt(all_slide, config.replace(full_heads={}))
    assert (logits - all_slide(**kwargs).logits[real]).abs().max() > 1e-2
    wanted = generate(expected, ids, attention_mask=mask, num_beams=2)
    for options in ({}, {"prefill_chunk_size": 16}, {"cache_implementation": "static"}):
        assert torch.equal(generate(adapted, ids, attention_mask=mask, num_beams=2, **options), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_eager_backend_returns_attention_weights(family):
    config = swaa.SWAAConfig(window=7, sinks=3, backend="eager")
    adapted, expected = pair(config, family)
    ids = prompt()
    output = adapted(ids, output_attentions=True)
    torch.testing.assert_close(output.logits, expected(ids).logits, atol=1e-4, rtol=1e-4)
    last = output.attentions[1][0, 0]
    assert last.shape == (PROMPT, PROMPT)
    assert torch.equal((last[-1] > 0).nonzero()[:, 0], torch.tensor([0, 1, 2, *range(43, 50)]))


def test_rows_of_a_padded_batch_equal_the_rows_alone(config):
    ids, mask = left_padded()
    adapted = swaa.adapt(tiny_model(), config)
    together = generate(adapted, ids, attention_mask=mask)
    for row in range(3):
        alone = ids[row : row + 1, mask[row].bool()]
        assert torch.equal(together[row, PROMPT:], generate(adapted, alone)[0, alone.shape[1] :])


@pytest.mark.parametrize("chunk", [1, 7, 49, 64])  # 7 and 49 end in a chunk of one token
@pytest.mark.parametrize("padded", [False, True])
def test_chunked_prefill(config, chunk, padded):
    ids, mask = left_padded() if padded else (prompt(), torch.ones(1, PROMPT, dtype=torch.long))
    adapted, expected = pair(config)
    assert torch.equal(
        generate(adapted, ids, attention_mask=mask, prefill_chunk_size=chunk),
        generate(expected, ids, attention_mask=mask),
    )


def count_rows(model):
    """Record the number of query rows of each pass."""
    rows = []
    model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return rows


def test_prompt_lookup(config):
    ids = prompt(length=10).repeat(1, 5)
    adapted, expected = pair(config)
    rows = count_rows(adapted)
    assert torch.equal(generate(adapted, ids, prompt_lookup_num_tokens=4), generate(expected, ids))
    assert any(1 < count <= 5 for count in rows), "no drafts were checked"


@pytest.mark.parametrize("assistant", ["same", "other", "adapted"])
def test_assisted_decoding(config, assistant):
    adapted, expected = pair(config)
    helper = tiny_model() if assistant == "same" else tiny_model(seed=1, num_hidden_layers=2)
    if assistant == "adapted":
        swaa.adapt(helper, swaa.SWAAConfig(window=4, fa_decode=True))
    rows = count_rows(adapted)
    assert torch.equal(generate(adapted, prompt(), assistant_model=helper), generate(expected, prompt()))
    assert max(rows[1:]) > 1, "no drafts were checked"


STATIC = list(product(CONFIGS, [False, True], ["llama", "qwen3", "gemma3_text", "mistral"]))


# The step of a single token runs in Triton's interpreter.
@pytest.mark.parametrize(("name", "padded", "family"), STATIC[::5])
def test_static_cache(name, padded, family):
    config = CONFIGS[name]
    ids, mask = left_padded() if padded else (prompt(), torch.ones(1, PROMPT, dtype=torch.long))
    adapted, expected = pair(config, family)
    static = generate(adapted, ids, attention_mask=mask, cache_implementation="static")
    assert torch.equal(static, generate(expected, ids, attention_mask=mask))
    chunked = generate(adapted, ids, attention_mask=mask, cache_implementation="static", prefill_chunk_size=7)
    assert torch.equal(static, chunked)


def test_inputs_embeds(config):
    adapted, expected = pair(config)
    embeds = adapted.get_input_embeddings()(prompt())
    assert torch.equal(generate(adapted, inputs_embeds=embeds), generate(expected, inputs_embeds=embeds))


@pytest.mark.parametrize("only_new_tokens", [False, True])
def test_second_turn_on_the_same_cache(config, only_new_tokens):
    if config.dense_tail and config.fa_decode is not True:
        config = config.replace(release_kv=False)  # refused otherwise: see test_cache.py
    ids = prompt(2)
    adapted, expected = pair(config)
    results = []
    for model in (adapted, expected):
        cache = DynamicCache(config=model.config)
        first = generate(model, ids, past_key_values=cache)
        conversation = torch.cat([first, prompt(2, length=9, seed=1)], dim=1)
        end = conversation.shape[1]
        if model is expected:
            expected = reference(tiny_model(attn_implementation="eager"), config, prompt_end=end)
            model = expected
        tokens = conversation[:, cache.get_seq_length() :] if only_new_tokens else conversation
        mask = torch.ones(2, end, dtype=torch.long)
        second = generate(model, tokens, past_key_values=cache, attention_mask=mask)
        results.append(second[:, tokens.shape[1] :])
    assert torch.equal(*results)


@pytest.mark.parametrize("cache_type", [DynamicCache, StaticCache])
def test_hand_written_loop(config, cache_type):
    ids = prompt(2)
    adapted, expected = pair(config)
    cache = cache_type(config=adapted.config, **({"max_cache_len": 80} if cache_type is StaticCache else {}))
    tokens = [ids]
    logits = adapted(ids, past_key_values=cache, use_cache=True).logits
    for _ in range(NEW):
        tokens.append(logits[:, -1:].argmax(-1))
        logits = adapted(tokens[-1], past_key_values=cache, use_cache=True).logits
    assert torch.equal(torch.cat(tokens, dim=1), generate(expected, ids))


def test_hand_written_chunks_with_a_stated_prompt_length(config):
    """Prompt and answer rows in any grouping, as long as prompt_length is stated until the prompt is complete."""
    ids, mask = left_padded(lengths=(50, 31, 14))
    adapted, expected = pair(config, prompt_end=40)
    cache, logits = DynamicCache(config=adapted.config), []
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for low, high in ((0, 10), (10, 11), (11, 45), (45, 50)):
        stated = {"prompt_length": torch.tensor([40, 21, 4])} if low < 40 else {}
        chunk = {"attention_mask": mask[:, :high], "position_ids": positions[:, low:high], **stated}
        logits.append(adapted(ids[:, low:high], past_key_values=cache, use_cache=True, **chunk).logits)
    real = mask.bool()
    full = expected(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], full[real], atol=1e-4, rtol=1e-4)


SCORING = {
    "all prompt": {},
    "one prompt length": {"prompt_length": 30},
    "prompt lengths": {"prompt_length": torch.tensor([30, 12, 1])},
    "dense rows": {"dense_rows": torch.arange(PROMPT).expand(3, -1) % 17 > 9},
}


@pytest.mark.parametrize("rows", SCORING)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("config_name", ["all", "fa decode on a layer", "full heads and all"])
def test_scoring_without_a_cache(rows, padding, config_name):
    ids, mask = left_padded()
    mask = {"none": torch.ones_like(mask), "left": mask, "right": mask.flip(-1)}[padding]
    adapted, expected = pair(CONFIGS[config_name], prompt_end=SCORING[rows])
    kwargs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    real = mask.bool()
    logits = adapted(**kwargs, **SCORING[rows]).logits[real]
    torch.testing.assert_close(logits, expected(**kwargs).logits[real], atol=1e-4, rtol=1e-4)


def test_scoring_equals_generation():
    """The rows of a forced answer see in one scoring pass what they see when they are generated."""
    config = CONFIGS["all"]
    adapted = swaa.adapt(tiny_model(), config)
    output = generate(adapted, prompt(), return_dict_in_generate=True, output_logits=True)
    scored = adapted(output.sequences, prompt_length=PROMPT).logits[:, PROMPT - 1 : -1]
    torch.testing.assert_close(scored, torch.stack(output.logits, dim=1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", ["all prompt", "dense rows"])
def test_packed_rows_equal_the_segments_alone(config, rows):
    if rows == "dense rows" and not config.fa_decode:
        config = config.replace(fa_decode=True)
    adapted = swaa.adapt(tiny_model(), config)
    segments = [prompt(length=length, seed=length) for length in (20, 3, 31)]
    positions = torch.cat([torch.arange(s.shape[1]) for s in segments])[None]
    flags = torch.arange(54)[None] % 11 > 6
    kwargs = {"dense_rows": flags} if rows == "dense rows" else {}
    packed = adapted(torch.cat(segments, dim=1), position_ids=positions, use_cache=False, **kwargs).logits
    start = 0
    for segment in segments:
        stop = start + segment.shape[1]
        alone_kwargs = {"dense_rows": flags[:, start:stop]} if kwargs else {}
        alone = adapted(segment, use_cache=False, **alone_kwargs).logits
        torch.testing.assert_close(packed[:, start:stop], alone, atol=1e-4, rtol=1e-4)
        start = stop


@pytest.mark.parametrize("config_name", ["all", "full heads and all"])
def test_gradients_through_the_model(config_name):
    config = CONFIGS[config_name]
    adapted, expected = pair(config, prompt_end=30)
    ids = prompt(2)
    # transformers renamed it in 5.2x and warns about the old name
    enable = getattr(adapted, "activation_checkpointing_enable", None) or adapted.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    adapted.train(), expected.train()
    adapted(ids, labels=ids, prompt_length=30, use_cache=False).loss.backward()
    expected(ids, labels=ids, use_cache=False).loss.backward()
    for (name, actual), (_, wanted) in zip(adapted.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(actual.grad, wanted.grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_a_copy_of_a_cache_answers_like_the_original(config):
    adapted = swaa.adapt(tiny_model(), config)
    cache = DynamicCache(config=adapted.config)
    logits = adapted(prompt(), past_key_values=cache, use_cache=True).logits
    copied = copy.deepcopy(cache)
    token = logits[:, -1:].argmax(-1)
    for _ in range(3):
        one = adapted(token, past_key_values=cache, use_cache=True).logits
        two = adapted(token, past_key_values=copied, use_cache=True).logits
        assert torch.equal(one, two)
        token = one[:, -1:].argmax(-1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_guidance_reads_a_sequence_of_its_own(kind):
    """Without the prompt, whose end is another one than that of what guides."""
    config = swaa.SWAAConfig(window=5, sinks=1, fa_decode=True)
    adapted, ids, other = swaa.adapt(tiny_model(), config), prompt(length=40), prompt(length=20, seed=1)
    options = {"guidance_scale": 1.7, "negative_prompt_ids": other, "cache_implementation": kind}
    found = generate(adapted, ids, **options)[0, 40:].tolist()
    said = []
    for _ in range(NEW):
        logits = []
        for start in (ids, other):
            row = torch.cat([start, torch.tensor([said], dtype=torch.long)], dim=1)
            logits.append(adapted(row, prompt_length=start.shape[1], use_cache=False).logits[0, -1].log_softmax(-1))
        said.append(int((1.7 * (logits[0] - logits[1]) + logits[1]).argmax()))
    assert found == said


def test_what_a_given_configuration_leaves_open_is_the_models():
    adapted = swaa.adapt(tiny_model(), swaa.SWAAConfig(window=8, sinks=2))
    ids = prompt().repeat(1, 2)
    wanted = generate(adapted, ids)
    adapted.generation_config.prompt_lookup_num_tokens = 4
    given = GenerationConfig(max_new_tokens=NEW, do_sample=False)
    assert torch.equal(adapted.generate(ids, generation_config=given), wanted)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_what_a_processor_reads_meanwhile_is_a_prompt_of_its_own(own, used):
    model, other = swaa.adapt(tiny_model(), CONFIGS["all"]), torch.randint(3, 101, (1, 70))
    expected, seen = model(other, use_cache=False).logits, []

    def read(ids, scores):
        seen.append(model(other, use_cache=used).logits)
        return scores

    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": own}
    tokens = model.generate(other[:, :50], logits_processor=LogitsProcessorList([read]), **options)
    assert len(seen) == 4
    assert all(torch.equal(logits, expected) for logits in seen)
    assert torch.equal(tokens, model.generate(other[:, :50], **options))
