"""The GPU backends on the CPU. Run in a process of their own: vLLM must believe that there is Triton.

Triton's interpreter runs vLLM's own kernels; FlashAttention, which has none, is replaced by PyTorch, call for call.
"""

import os
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_USE_V2_MODEL_RUNNER": "0"}
    import torch
    import triton.backends

    # vLLM looks for a driver, and for Hopper's number formats.
    driver = types.SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = types.SimpleNamespace(driver=driver, compiler=None)
    torch.cuda.get_device_capability = lambda *_: (9, 0)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
