"""Tests that start vLLM. They run in an environment of their own (`make test-vllm`): vLLM pins its dependencies.

Where vLLM is not installed, nothing here is collected.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    os.environ |= {
        # All of an engine in this process: it starts in seconds, and tests can look into its scheduler.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # The test workers share the cores, and binding wants a NUMA node for each process.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        # What finds n-gram drafts is compiled for half a minute otherwise.
        "NUMBA_DISABLE_JIT": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }


def pytest_collection_modifyitems(items):
    """Warnings of vLLM and its many dependencies are theirs to mend."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
