"""The blocks that requests hold: layers that forget give theirs back, and prefixes are found all the same."""

import pytest
import torch

import swaa
from engines import BLOCK, check, engine, generate, prompts, saved_model
from swaa.config import LayerRule

LENGTH, STEP = 500, 64


def held(llm, request=None):
    """Blocks that the running requests hold, by group of layers; a block counts once a request."""
    managers = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.coordinator.single_type_managers
    return [
        sum(not block.is_null for blocks in manager.req_to_blocks.values() for block in blocks) for manager in managers
    ]


def steps(llm, tokens, new):
    """Generate step by step; yields the blocks held after each."""
    from vllm import SamplingParams

    options = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    for index, prompt in enumerate(tokens):
        llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, options)
    while llm.llm_engine.has_unfinished_requests():
        yield held(llm)
        llm.llm_engine.step()


# The most blocks that one group's request holds: sinks, window, the step, and one that the window begins within.
RELEASED = 1 + -(-(40 - 1 + STEP) // BLOCK) + 1
ALL = -(-(LENGTH + 30) // BLOCK)
CASES = {
    "released": (swaa.SWAAConfig(window=40, sinks=10), [RELEASED]),
    "mixed": (swaa.SWAAConfig(window=40, sinks=10, full_layers="odd"), [ALL, RELEASED]),
    "a quarter full": (swaa.SWAAConfig(window=40, sinks=10, full_layers=[1]), [ALL, RELEASED, RELEASED, RELEASED]),
    "FA decode": (swaa.SWAAConfig(window=40, sinks=10, fa_decode=True), [ALL]),
    "FA decode on a layer": (swaa.SWAAConfig(window=40, sinks=10, fa_decode=[0, 1]), [ALL, RELEASED]),
    "tail": (swaa.SWAAConfig(window=40, sinks=10, dense_tail=4), [ALL]),
    "release_kv off": (swaa.SWAAConfig(window=40, sinks=10, release_kv=False), [ALL]),
    "full attention": (swaa.SWAAConfig(), [ALL]),
}


@pytest.mark.parametrize("case", CASES)
def test_blocks_held(case, tmp_path):
    config, expected = CASES[case]
    saved_model(tmp_path, "llama", config)
    with engine(tmp_path, max_num_batched_tokens=STEP, async_scheduling=False) as llm:
        counts = list(steps(llm, prompts(LENGTH), new=30))
        most = [max(column) for column in zip(*counts, strict=True)]
        assert len(most) == len(expected)
        for seen, limit in zip(sorted(most), sorted(expected), strict=True):
            assert limit - 1 <= seen <= limit


@pytest.mark.parametrize(("full_layers", "at_once"), [("none", (5, 6)), ("all", (2,))])
def test_more_requests_fit_at_once(full_layers, at_once, tmp_path):
    """The same cache, room for two requests that keep everything, runs more than twice as many that forget."""
    config = swaa.SWAAConfig(window=40, sinks=10, full_layers=full_layers)
    saved_model(tmp_path, "llama", config)
    options = {"num_gpu_blocks_override": 2 * ALL + 3, "enable_prefix_caching": False, "async_scheduling": False}
    with engine(tmp_path, max_model_len=LENGTH + 40, **options) as llm:
        running = llm.llm_engine.engine_core.engine_core.scheduler.running
        assert max(len(running) for _ in steps(llm, prompts(*[LENGTH] * 6), new=30)) in at_once


def test_a_prefix_needs_its_sinks(tmp_path):
    """A prefix is found while its sinks and its last window are cached, and not once the sinks are gone."""
    model = saved_model(tmp_path, "llama", swaa.SWAAConfig(window=40, sinks=40))
    with engine(tmp_path) as llm:
        prompt = prompts(LENGTH)
        generate(llm, prompt, new=2)
        again = generate(llm, prompt, new=20)
        assert again[0].num_cached_tokens == LENGTH // BLOCK * BLOCK
        check(model, prompt, again)
        pool = llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        first = next(block for block in pool.blocks if block.block_hash is not None)
        pool._maybe_evict_cached_block(first)
        after = generate(llm, prompt, new=20)
        assert after[0].num_cached_tokens == 0
        check(model, prompt, after)


def test_the_sinks_stay_in_the_block_table():
    """From 0.33 on, vLLM's worker blanks the blocks before a sliding window unless the spec says 0."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from swaa.vllm.cache import sink_window_spec

    full = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    spec = sink_window_spec(full, LayerRule(window=40, sinks=10))
    assert (spec.sliding_window, spec.sink_blocks, spec.num_retained_tokens) == (40, 1, 0)
