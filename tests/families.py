"""Tiny random models of many families, and the reference that every adapted model is compared with."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from swaa.adapting import plan_layers
from swaa.cache.naming import given_cache
from swaa.geometry import build_geometry
from swaa.mask import oracle_head_masks

TINY = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _MOE,
    "mistral": {"sliding_window": None},
    "mixtral": {"sliding_window": None, **_MOE},
    "phi3": {},
    "gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 16, "query_pre_attn_scalar": 8},
    "granite": {},
    "olmo2": {},
    "smollm3": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "gpt_oss": {"sliding_window": 16, **_MOE},
    "cohere2": {"sliding_window": 16},
}
HALF_NATIVE = ["sliding_attention", "full_attention"] * 2
for _family in ("gemma2", "gemma3_text", "gpt_oss", "cohere2"):
    FAMILIES[_family]["layer_types"] = HALF_NATIVE


def tiny_model(family="llama", seed=0, attn_implementation=None, **changes):
    """A tiny random float32 model; larger weights than the default, so that every key matters to the logits."""
    config = AutoConfig.for_model(family, **(TINY | FAMILIES[family] | changes))
    if family == "gemma2":  # transformers' sdpa drops its soft cap, up to 5.17 silently: compare with eager layers
        attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25, generator=generator)
    model.generation_config.eos_token_id = None
    return model


def reference(model, config, prompt_end=None):
    """Make an unadapted model compute the adaptation by explicit 4-D masks, one a layer and head, from the oracle.

    The masks are put in front of each attention module, so nothing of the adapted path runs.

    Args:
        model: a model with eager attention; it is changed.
        config: the adaptation to imitate.
        prompt_end: first generated column, or keywords of `build_geometry` that describe the rows.
    """
    decoder = model.get_decoder()
    seen = {}

    def before_decoder(module, args, kwargs):
        cache = given_cache(kwargs)
        tokens = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        batch, rows = tokens.shape[:2]
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask = kwargs.get("attention_mask")
        phase = prompt_end if isinstance(prompt_end, dict) else {"prompt_end": prompt_end}
        seen["geometry"] = build_geometry(batch=batch, past=past, rows=rows, attention_mask=mask, **phase)

    def before_attention(rule):
        def hook(module, args, kwargs):
            heads, kv_heads = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
            mask = oracle_head_masks(seen["geometry"], rule, kv_heads).repeat_interleave(heads // kv_heads, dim=1)
            mask = mask | ~mask.any(-1, keepdim=True)
            bias = torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
            kwargs["attention_mask"] = bias.to(module.o_proj.weight.device)
            return args, kwargs

        return hook

    decoder.register_forward_pre_hook(before_decoder, with_kwargs=True)
    for layer, rule in zip(decoder.layers, plan_layers(decoder.config, config), strict=True):
        if rule is not None:
            layer.self_attn.register_forward_pre_hook(before_attention(rule), with_kwargs=True)
    return model
