"""Shared fixtures: determinism, and no hub."""

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: a test never waits for a network

import pytest
import torch

# Before a kernel is defined: without a GPU, Triton's interpreter runs it on the CPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tiny tensors: a second thread only waits, and the test workers share the cores.
torch.set_num_threads(1)


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
