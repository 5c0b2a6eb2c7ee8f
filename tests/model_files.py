"""A tiny model and its tokenizer, as a folder and as a GGUF file."""

from pathlib import Path

import torch
from gguf import GGUFWriter
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("Ġ", "Ġ"), ("h", "i")]
VOCABULARY = ["<|end|>", *BYTES, *(a + b for a, b in MERGES)]
SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SHAPE, **HEADS, vocab_size=len(VOCABULARY), max_position_embeddings=512, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config).eval()


def save_tokenizer(folder: Path) -> None:
    ids = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=ids, merges=MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def write_gguf(path: Path, pre: str = "smollm") -> LlamaForCausalLM:
    """Write the tiny model as an unquantised GGUF file, and return it."""
    model = tiny_model()
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3] + [1] * (len(VOCABULARY) - 1))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    parts = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    parts |= {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    parts |= {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    weights = model.state_dict()
    tensors = {"token_embd": weights["model.embed_tokens.weight"], "output_norm": weights["model.norm.weight"]}
    for layer in range(2):
        for ours, theirs in parts.items():
            tensors[f"blk.{layer}.{theirs}"] = weights[f"model.layers.{layer}.{ours}.weight"]
        for ours, heads in (("q", 4), ("k", 2)):
            weight = weights[f"model.layers.{layer}.self_attn.{ours}_proj.weight"]
            # llama.cpp rotates neighbouring pairs, transformers the two halves of a head.
            pairs = weight.reshape(heads, 2, 8, 64).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.attn_{ours}"] = pairs
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
