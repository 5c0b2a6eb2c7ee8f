"""Engines over tiny random models, and the reference: the adapted model of transformers on the same weights."""

import gc
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch

import swaa
from families import tiny_model

SHAPE = {"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 1024, "moe_intermediate_size": 64}
BLOCK = 32
# Not empty once an engine has registered its kernels in this process.
REGISTERED = []


def saved_model(folder, family, config):
    """Save a tiny model as `save_pretrained` of an adapted one does, and return it in double precision.

    So what a comparison sees is the engine's rounding alone.
    """
    # Qwen2's head dim follows from the sizes.
    shape = SHAPE | ({"hidden_size": 128} if family == "qwen2" else {})
    model = swaa.adapt(tiny_model(family, **shape), config)
    model.save_pretrained(folder)
    if family == "qwen3_moe":
        model.set_experts_implementation("eager")  # the grouped one knows no double precision
    return model.double()


@contextmanager
def engine(folder, **options):
    """Start an engine in this process, and end it."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.model_executor.models import registry
    from vllm.v1.attention import selector

    # A test before this one may have used another backend.
    selector._cached_get_attn_backend.cache_clear()
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": BLOCK,
        "kv_cache_memory_bytes": 256 << 20,
        "max_model_len": 640,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "skip_tokenizer_init": True,
    }
    # It collects garbage nine times, among all the modules of its process; once is enough.
    once = mock.patch.object(gc, "collect", return_value=0)
    # It looks at a model's class in another process, whose start takes longer than the engine's.
    here = mock.patch.object(registry, "_run_in_subprocess", lambda function: function())
    llm = None
    try:
        with once, here, kernels_registered_once():
            llm = LLM(str(folder), **(defaults | options))
        yield llm
    finally:
        with once:
            if llm is not None:
                llm.llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()
        del llm
        gc.collect()


@contextmanager
def kernels_registered_once():
    """Let only the first engine of a process look for Triton kernels to replace on a CPU.

    It looks among all attributes of all modules, and vLLM 0.32 fails on those of numba, which n-gram drafts load.
    """
    from vllm.platforms import current_platform

    again = REGISTERED and current_platform.is_cpu()
    with mock.patch.object(type(current_platform), "register_triton_kernel_overrides") if again else nullcontext():
        yield
    REGISTERED.append(True)


def prompts(*lengths, seed=1):
    """Random prompts of some lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 101, (length,), generator=generator).tolist() for length in lengths]


def generate(llm, tokens, new=24, **sampling):
    """Generate after each prompt; returns vLLM's outputs."""
    from vllm import SamplingParams

    options = {"temperature": 0, "max_tokens": new, "logprobs": 0, "ignore_eos": True, "detokenize": False} | sampling
    return llm.generate([{"prompt_token_ids": t} for t in tokens], SamplingParams(**options), use_tqdm=False)


def answers(outputs):
    """The tokens of outputs."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def check(model, tokens, outputs, greedy=True, tolerance=1e-4):
    """Compare each generated token and its log-probability with one scoring pass of the reference."""
    for prompt, output in zip(tokens, outputs, strict=True):
        answer = list(output.outputs[0].token_ids)
        row = torch.tensor([prompt + answer])
        with torch.no_grad():
            logits = model(row, prompt_length=len(prompt), use_cache=False).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)
        if greedy:
            assert answer == expected.argmax(-1).tolist()
        pairs = zip(output.outputs[0].logprobs, answer, strict=True)
        got = torch.tensor([entry[token].logprob for entry, token in pairs], dtype=expected.dtype)
        wanted = expected.gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)
