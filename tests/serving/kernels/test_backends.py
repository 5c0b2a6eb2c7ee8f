"""The Triton and the FlashAttention backend compute what the transformers path does, recorded steps too."""

import pytest

import flash_reference
import swaa
from engines import check, engine, generate, prompts, saved_model

ADAPTATIONS = {
    "everything": swaa.SWAAConfig(window=20, sinks=10, dense_tail=5, full_layers=[1], fa_decode=[0]),
    "released": swaa.SWAAConfig(window=20, sinks=40, full_layers=[1]),
    "no sinks": swaa.SWAAConfig(window=20),
    "FA decode": swaa.SWAAConfig(window=20, sinks=3, fa_decode=True),
}


@pytest.fixture
def use(monkeypatch):
    """Let vLLM's CPU platform, which takes no other backend, use one of ours for GPUs."""

    def choose(path):
        from vllm.plugins import load_general_plugins
        from vllm.v1.attention.backends import registry

        load_general_plugins()
        if "flash" in path:
            flash_reference.install(monkeypatch)
        monkeypatch.setitem(registry._ATTN_OVERRIDES, registry.AttentionBackendEnum.CPU_ATTN, path)

    return choose


def record(llm):
    """Build metadata as for steps that are recorded as CUDA graphs, though none is."""
    from vllm.config import CUDAGraphMode

    llm.llm_engine.vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY


def check_builders(llm, kind, recorded):
    """What ran was the backend that the test is about, in the way that it is about."""
    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    groups = [group for groups in worker.model_runner.attn_groups for group in groups]
    builders = [builder for group in groups for builder in group.metadata_builders]
    assert all(isinstance(builder, kind) for builder in builders)
    assert any(builder.recorded for builder in builders) == recorded


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_flash(name, recorded, use, tmp_path):
    """The prompt of 97 tokens leaves a piece of one row, which slides although it looks like a decode step."""
    use("swaa.vllm.flash.SWAAFlashBackend")
    from swaa.vllm.flash import SWAAFlashMetadataBuilder

    model = saved_model(tmp_path, "llama", ADAPTATIONS[name])
    with engine(tmp_path, max_num_batched_tokens=32) as llm:
        if recorded:
            record(llm)
        tokens = prompts(5, 33, 90, 97, 150)
        check(model, tokens, generate(llm, tokens, new=12))
        one_row = prompts(97, seed=3)
        check(model, one_row, generate(llm, one_row, new=12))
        check(model, one_row, generate(llm, one_row, new=12))
        check_builders(llm, SWAAFlashMetadataBuilder, recorded)


@pytest.mark.parametrize("name", ["everything", "released"])
def test_the_runner_of_gpus(name, use, monkeypatch, tmp_path):
    """There, vLLM's second model runner is the default: it gathers block tables and prompts' lengths in its own way."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    use("swaa.vllm.flash.SWAAFlashBackend")
    from swaa.vllm.flash import SWAAFlashMetadataBuilder

    model = saved_model(tmp_path, "llama", ADAPTATIONS[name])
    with engine(tmp_path, max_num_batched_tokens=32) as llm:
        assert llm.llm_engine.vllm_config.use_v2_model_runner
        tokens = prompts(5, 33, 90, 150)
        check(model, tokens, generate(llm, tokens, new=12))
        check_builders(llm, SWAAFlashMetadataBuilder, False)


@pytest.mark.parametrize(("name", "recorded"), [("everything", False), ("released", True)])
def test_triton(name, recorded, use, tmp_path):
    use("swaa.vllm.triton.SWAATritonBackend")
    from swaa.vllm.triton import SWAATritonMetadataBuilder

    model = saved_model(tmp_path, "llama", ADAPTATIONS[name])
    with engine(tmp_path, max_num_batched_tokens=64) as llm:
        if recorded:
            record(llm)
        tokens = prompts(5, 80)
        check(model, tokens, generate(llm, tokens, new=5))
        check_builders(llm, SWAATritonMetadataBuilder, recorded)
