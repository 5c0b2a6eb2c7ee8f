"""Every token and its log-probability equal the transformers path, whatever vLLM makes of the batch."""

import pytest
import torch

import swaa
from engines import BLOCK, answers, check, engine, generate, prompts, saved_model

LENGTHS = (1, 5, 33, 90, 100, 201, 350)
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
# Family, adaptation, and options of the engine; odd chunk sizes, and each way of caching keys.
CASES = {
    "everything kept": ("llama", swaa.SWAAConfig(window=50, sinks=10, fa_decode=True, full_layers=[1]), {}),
    "everything released": ("qwen3", swaa.SWAAConfig(window=50, sinks=40), {"max_num_batched_tokens": 37}),
    "some released": ("llama", swaa.SWAAConfig(window=7, sinks=3, full_layers="odd", fa_decode=[0]), {}),
    "no sinks": ("qwen3", swaa.SWAAConfig(window=33), {"max_num_batched_tokens": 53}),
    "window 1": ("llama", swaa.SWAAConfig(window=1, sinks=2, full_layers=[3]), {}),
    "tail": (
        "qwen3",
        swaa.SWAAConfig(window=40, sinks=3, dense_tail=8, fa_decode=[0, 2]),
        {"max_num_batched_tokens": 41},
    ),
    "release_kv off": ("llama", swaa.SWAAConfig(window=20, sinks=4, release_kv=False), {"max_num_batched_tokens": 512}),
    "drafts": ("qwen3", swaa.SWAAConfig(window=20, sinks=4), {"speculative_config": NGRAM}),
    "drafts and tail": (
        "llama",
        swaa.SWAAConfig(window=20, sinks=4, dense_tail=5, fa_decode=[1, 3]),
        {"speculative_config": NGRAM},
    ),
    "one kind of cache": (
        "llama",
        swaa.SWAAConfig(window=20, sinks=4, full_layers=[1]),
        {"disable_hybrid_kv_cache_manager": True},
    ),
    "full attention": ("llama", swaa.SWAAConfig(), {}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    family, config, options = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    model = saved_model(folder, family, config)
    with engine(folder, **options) as llm:
        yield model, llm


def test_chunks_and_mixed_lengths(case):
    model, llm = case
    tokens = prompts(*LENGTHS)
    check(model, tokens, generate(llm, tokens))


def test_repetitive_prompts(case):
    """Prompts that repeat make n-gram drafts, most of them wrong."""
    model, llm = case
    tokens = [part * 6 for part in prompts(9, 17, 30, seed=2)]
    outputs = generate(llm, tokens, new=40)
    check(model, tokens, outputs)


def test_prefix_cache(case):
    model, llm = case
    tokens = prompts(*LENGTHS, seed=3)
    assert [output.num_cached_tokens for output in generate(llm, tokens)] == [0] * len(tokens)
    again = generate(llm, tokens)
    check(model, tokens, again)
    for prompt, output in zip(tokens, again, strict=True):
        assert output.num_cached_tokens == (len(prompt) - 1) // BLOCK * BLOCK
    # Longer prompts with the same beginning, and shorter ones: other rows are the tail, in other blocks.
    other = [tokens[-1] + tokens[1], tokens[-1][: 7 * BLOCK + 4], tokens[-2] + tokens[2], tokens[-3][: 3 * BLOCK + 1]]
    check(model, other, generate(llm, other))


def test_second_turn(case):
    """What was generated is prompt now: its keys are others under FA decode, and must not come from the cache."""
    model, llm = case
    tokens = prompts(*LENGTHS, seed=4)
    first = answers(generate(llm, tokens, new=70))
    turns = [a + b + c for a, b, c in zip(tokens, first, prompts(*reversed(LENGTHS), seed=5), strict=True)]
    outputs = generate(llm, turns)
    check(model, turns, outputs)
    config = swaa.SWAAConfig.from_dict(model.config.swaa)
    for prompt, output in zip(tokens, outputs, strict=True):
        if config.fa_decode or config.dense_tail:
            assert output.num_cached_tokens <= max(len(prompt) - config.dense_tail, 0)


@pytest.mark.parametrize("config", [CASES["some released"][1], CASES["tail"][1]], ids=["some released", "tail"])
def test_sampling_with_a_seed(config, tmp_path):
    model = saved_model(tmp_path, "llama", config)
    # On CPUs, vLLM can seed only prompts that come in one piece.
    with engine(tmp_path, max_num_batched_tokens=1024) as llm:
        tokens = prompts(*LENGTHS, seed=6)
        options = {"temperature": 0.8, "top_p": 0.9, "seed": 11}
        outputs = generate(llm, tokens, **options)
        check(model, tokens, outputs, greedy=False)
        assert answers(generate(llm, tokens[-2:], **options)) == answers(outputs)[-2:]
        assert answers(generate(llm, tokens[-2:], **options | {"seed": 12})) != answers(outputs)[-2:]


PREEMPTED = {
    "kept": swaa.SWAAConfig(window=20, sinks=4, fa_decode=True),
    "released": swaa.SWAAConfig(window=20, sinks=4, full_layers="odd"),
    "tail": swaa.SWAAConfig(window=20, sinks=4, dense_tail=9, fa_decode=[2]),
}


@pytest.mark.parametrize("config", PREEMPTED.values(), ids=PREEMPTED)
def test_preemption(config, tmp_path):
    """A small cache: requests are thrown out and resumed, generated tokens and all."""
    model = saved_model(tmp_path, "llama", config)
    with engine(tmp_path, num_gpu_blocks_override=16, max_model_len=256, disable_log_stats=False) as llm:
        tokens = prompts(90, 100, 110, 120, seed=7)
        outputs = generate(llm, tokens, new=60)
        counted = {metric.name: metric for metric in llm.get_metrics()}
        assert counted["vllm:num_preemptions"].value > 0
        check(model, tokens, outputs)


def test_torch_compile(tmp_path):
    config = swaa.SWAAConfig(window=20, sinks=4, full_layers=[0], fa_decode=[1])
    model = saved_model(tmp_path, "qwen3", config)
    with engine(tmp_path, enforce_eager=False) as llm:
        assert llm.llm_engine.vllm_config.compilation_config.mode.value > 0
        tokens = prompts(*LENGTHS)
        check(model, tokens, generate(llm, tokens))


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "mistral", "gemma2"])
def test_families(family, tmp_path):
    """Soft caps, native windows, experts: whatever uses vLLM's ordinary attention layer."""
    config = swaa.SWAAConfig(window=20, sinks=4, dense_tail=3, full_layers=[1])
    model = saved_model(tmp_path, family, config)
    with engine(tmp_path) as llm:
        tokens = prompts(*LENGTHS)
        check(model, tokens, generate(llm, tokens))


def test_overrides_stand_for_a_stored_adaptation(tmp_path):
    model = saved_model(tmp_path, "llama", swaa.SWAAConfig())
    config = swaa.SWAAConfig(window=20, sinks=4, fa_decode=True)
    tokens = prompts(*LENGTHS)
    with engine(tmp_path, hf_overrides={"swaa": config.to_dict()}) as llm:
        check(swaa.adapt(model, config), tokens, generate(llm, tokens))


def test_the_rule_matters(tmp_path):
    """The reference tells the adapted model from the unadapted one."""
    model = saved_model(tmp_path, "llama", swaa.SWAAConfig(window=20, sinks=4))
    swaa.restore(model)
    tokens = prompts(200)
    with engine(tmp_path) as llm, torch.no_grad():
        got = generate(llm, tokens)
        plain = model(torch.tensor(tokens)).logits[0, -1].log_softmax(-1)
        token = answers(got)[0][0]
        assert abs(got[0].outputs[0].logprobs[0][token].logprob - float(plain[token])) > 1e-2
