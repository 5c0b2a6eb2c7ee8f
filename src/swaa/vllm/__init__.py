"""SWAA inside stock vLLM: a plugin that vLLM finds by its entry point (`vllm.general_plugins`).

Nothing of vLLM is copied and no model class is touched. Backends that derive from vLLM's own apply the rules, cache
specs of our own let layers release blocks, and a model without an adaptation runs exactly as without the plugin.
"""


def register() -> None:
    """Register the plugin; vLLM calls this in each of its processes, perhaps more than once."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from swaa.vllm.hooks import install

    # Only paths: a backend is imported where it is used.
    register_backend(AttentionBackendEnum.CPU_ATTN, "swaa.vllm.cpu.SWAACPUBackend")
    register_backend(AttentionBackendEnum.FLASH_ATTN, "swaa.vllm.flash.SWAAFlashBackend")
    register_backend(AttentionBackendEnum.TRITON_ATTN, "swaa.vllm.triton.SWAATritonBackend")
    install()
