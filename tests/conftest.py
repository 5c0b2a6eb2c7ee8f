"""Shared fixtures: determinism, no hub and no keys, and what tests of several subjects use."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: a test never waits for a network
# Before anything loads OpenMP: tensors are tiny, the test workers share the cores, and a second thread waits spinning.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# Before a kernel is defined: without a GPU, Triton's interpreter runs it on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# Nobody's key is sent to the servers of the tests.
for key in ("SWAA_JUDGE_KEY", "SWAA_TEACHER_KEY", "OPENAI_API_KEY"):
    os.environ.pop(key, None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny model and its tokenizer, to be trained."""
    # Here, as below, because few tests need them, and those of vLLM share this file.
    from families import tiny_model
    from training import CHATML, VOCABULARY, tiny_tokenizer

    folder = tmp_path_factory.mktemp("base")
    tiny_model(vocab_size=len(VOCABULARY)).save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    """One token a byte."""
    from eval_runs import bytes_tokenizer

    return bytes_tokenizer(pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


@pytest.fixture
def serve():
    """Starts servers of known replies."""
    from endpoints import serving

    with serving() as start:
        yield start


@pytest.fixture
def no_gradients(request):
    """Except in tests that say "gradients"."""
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def pytest_collection_finish():
    """Spare what is loaded by now, which stays, each later collection of garbage: they took longer than some tests."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """At the end all is freed in the ordinary way."""
    gc.unfreeze()
