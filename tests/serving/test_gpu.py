"""The backends on a GPU, with vLLM's own kernels and CUDA graphs."""

import pytest
import torch

import swaa
from engines import check, engine, generate, prompts, saved_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = (1, 5, 33, 90, 97, 201, 350)
ADAPTATIONS = {
    "released": swaa.SWAAConfig(window=50, sinks=20),
    "some released": swaa.SWAAConfig(window=7, sinks=3, full_layers="odd", fa_decode=[0]),
    "tail": swaa.SWAAConfig(window=40, sinks=3, dense_tail=8, fa_decode=[0, 2]),
    "FA decode": swaa.SWAAConfig(window=33, sinks=17, fa_decode=True, full_layers=[1]),
}


@pytest.fixture
def exact(monkeypatch):
    """Products of float32 numbers in float32, in Triton and in PyTorch."""
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    # Not by `monkeypatch`, which would delete the attribute: this module answers only to `getattr`.
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ADAPTATIONS)
def test_triton_in_float32(name, graphs, exact, tmp_path):
    model = saved_model(tmp_path, "llama", ADAPTATIONS[name])
    options = {"block_size": 16, "gpu_memory_utilization": 0.2, "attention_backend": "TRITON_ATTN"}
    with engine(tmp_path, enforce_eager=not graphs, **options) as llm:
        tokens = prompts(*LENGTHS)
        for _ in range(2):  # the second time from the prefix cache, with prompts of one row
            check(model, tokens, generate(llm, tokens), tolerance=2e-4)


def error(model, tokens, outputs):
    """Mean difference of the log-probability of generated tokens to a scoring pass in float32."""
    found = []
    for prompt, output in zip(tokens, outputs, strict=True):
        answer = list(output.outputs[0].token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]), prompt_length=len(prompt), use_cache=False).logits[0]
        expected = logits[len(prompt) - 1 : -1].log_softmax(-1)
        for index, (entry, token) in enumerate(zip(output.outputs[0].logprobs, answer, strict=True)):
            found.append(abs(entry[token].logprob - float(expected[index, token])))
    return sum(found) / len(found)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("backend", ["FLASH_ATTN", "TRITON_ATTN"])
def test_bfloat16(backend, graphs, tmp_path):
    """As near to float32 as vLLM's own full attention is in bfloat16."""
    options = {"dtype": "bfloat16", "block_size": 16, "gpu_memory_utilization": 0.2, "attention_backend": backend}
    tokens, errors = prompts(*LENGTHS, 97, seed=2), {}
    for name, config in {"full": swaa.SWAAConfig(), **ADAPTATIONS}.items():
        model = saved_model(tmp_path / name, "qwen3", config)
        with engine(tmp_path / name, enforce_eager=not graphs, **options) as llm:
            errors[name] = max(error(model, tokens, generate(llm, tokens)) for _ in range(2))
    assert max(errors.values()) < 2 * errors["full"] + 0.01, errors
