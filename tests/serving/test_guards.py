"""What would be ignored or come out wrong is refused while the engine starts."""

import pytest
import torch

import swaa
from engines import engine, saved_model
from swaa.config import ConfigError

CONFIG = swaa.SWAAConfig(window=20, sinks=4)


def test_a_backend_that_would_ignore_the_rules(monkeypatch, tmp_path):
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention.backends import registry

    load_general_plugins()
    monkeypatch.delitem(registry._ATTN_OVERRIDES, registry.AttentionBackendEnum.CPU_ATTN)
    saved_model(tmp_path, "llama", CONFIG)
    with pytest.raises(ConfigError, match=r"would ignore.*--attention-backend"), engine(tmp_path):
        pass


def test_full_heads(tmp_path):
    saved_model(tmp_path, "llama", CONFIG.replace(full_heads={0: [1]}))
    with pytest.raises(ConfigError, match="full_layers"), engine(tmp_path):
        pass


def test_an_fp8_cache_on_a_cpu(tmp_path):
    saved_model(tmp_path, "llama", CONFIG)
    # On processors without these instructions vLLM itself refuses, before it comes to us.
    able = torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()
    error, words = (ConfigError, "kv-cache-dtype") if able else (NotImplementedError, "AVX-512")
    with pytest.raises(error, match=words), engine(tmp_path, kv_cache_dtype="fp8"):
        pass
