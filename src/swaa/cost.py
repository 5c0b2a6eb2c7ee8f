"""The cost model of an adaptation: visible pairs, KV memory and prefill arithmetic. Numbers only, no torch.

`relative_cost` is what `swaa inspect`, `compare`, `eval` and the policy search of `select` go by: the prefill's
arithmetic and the KV bytes, each as a fraction of full attention's.

Where a family keeps something else than plain keys and values, the answer is None: unknown is better than wrong.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from swaa.config import LayerRule

# Settings of families whose cache or head sizes this module does not know (latent attention, sizes by layer kind, ..).
_UNKNOWN_SIZES = (
    "kv_lora_rank",
    "v_head_dim",
    "global_head_dim",
    "swa_head_dim",
    "swa_num_key_value_heads",
    "multi_query",
    "attn_config",
    "cross_attention_layers",
    "skip",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk")


def visible_pairs(rule: LayerRule, prompt: int, new: int = 0, *, kv_heads: int = 1) -> int:
    """Count the query-key pairs that one layer sees, in closed form.

    Args:
        rule: the layer's rule.
        prompt: prompt tokens.
        new: generated rows after the prompt.
        kv_heads: KV heads, over which the pairs are summed; a rule with full heads needs it.

    Returns:
        the number of True entries of `swaa.mask.oracle_head_masks` over all rows.

    Raises:
        ConfigError: the rule's full heads are not among these, or are all of them.
    """
    return sum(len(heads) * _pairs(part, prompt, new) for heads, part in rule.parts(kv_heads))


def _pairs(rule: LayerRule, prompt: int, new: int) -> int:
    rows = prompt + new
    if rule.window is None:
        return _triangle(rows)
    # The window part and the sink part of a row are disjoint, so a sliding row sees min(position + 1, both) keys.
    most = rule.window + rule.sinks
    start, stop = max(prompt - rule.dense_tail, 0), rows if rule.fa_decode else prompt
    dense = _triangle(stop) - _triangle(start)
    return _triangle(start, most) + dense + _triangle(rows, most) - _triangle(stop, most)


def kept_tokens(rule: LayerRule, length: int, *, release_kv: bool, kv_heads: int = 1) -> int:
    """Count the tokens whose keys and values a layer holds once its prompt is complete.

    Args:
        rule: the layer's rule.
        length: tokens so far.
        release_kv: layers forget what no later row can see. Rows of a layer with FA decode can see everything.
        kv_heads: KV heads, over which the tokens are summed; a rule with full heads needs it.

    Raises:
        ConfigError: the rule's full heads are not among these, or are all of them.
    """
    return sum(len(heads) * _kept(part, length, release_kv) for heads, part in rule.parts(kv_heads))


def _kept(rule: LayerRule, length: int, release_kv: bool) -> int:
    if rule.window is None or rule.fa_decode or not release_kv:
        return length
    return min(length, rule.sinks + rule.window - 1)


def kv_bytes(
    model_config: Any,
    rules: Sequence[LayerRule | None],
    length: int,
    *,
    dtype_bytes: int = 2,
    release_kv: bool,
) -> int | None:
    """Count the bytes of keys and values of one sequence, once its prompt is complete.

    Args:
        model_config: the model's configuration of transformers, a composite one too.
        rules: what `swaa.adapting.plan_layers` returns.
        length: tokens so far.
        dtype_bytes: bytes of one number.
        release_kv: as in `kept_tokens`. Layers with a native window release in any case.

    Returns:
        the bytes, None for a family whose cache holds something else on some layer.
    """
    total = 0
    release_kv = releases(model_config, release_kv)
    for rule, reuses, (kind, config) in zip(
        rules, reusing_layers(model_config), layer_kinds(model_config), strict=True
    ):
        if reuses:
            continue
        heads = attention_heads(config)
        native = native_window(kind, config)
        if heads is None or (rule is None and native is None):
            return None
        if rule is not None:
            tokens = kept_tokens(rule, length, release_kv=release_kv, kv_heads=heads[1])
        else:
            tokens = heads[1] * min(length, (native or 0) - 1)
        total += 2 * heads[2] * dtype_bytes * tokens
    return total


class Weights(NamedTuple):
    """How many numbers of a model are multiplied with a token: embeddings are looked up, not multiplied.

    Attributes:
        body: those of all layers, of a mixture of experts the share of the chosen ones.
        head: those of the LM head, which of a prompt reads the last token only.
    """

    body: int
    head: int


def prefill_flops(
    model_config: Any, rules: Sequence[LayerRule | None], prompt: int, weights: Weights, new: int = 0
) -> tuple[float, float | None]:
    """Count the floating-point operations of reading a prompt (and an answer, in training).

    Norms, RoPE, softmax and activations are left out: they are a small part of the arithmetic, though not of the time.

    Args:
        model_config: the model's configuration of transformers, a composite one too.
        rules: what `swaa.adapting.plan_layers` returns.
        prompt: prompt tokens.
        weights: of the model (`active_weights`).
        new: tokens of an answer that are read in the same pass, each of which reaches the head.

    Returns:
        the linear part, 2 x body x tokens + 2 x head for one token or those of the answer; and the attention part,
        4 x query heads x head dim x visible pairs, summed over the layers (None where the head sizes are unknown). A
        layer of linear attention has no pairs.
    """
    attention, tokens = 0.0, prompt + new
    linear = 2.0 * (weights.body * tokens + weights.head * (new or 1))
    for rule, (kind, config) in zip(rules, layer_kinds(model_config), strict=True):
        if (heads := attention_heads(config)) is None:
            return linear, None
        native = native_window(kind, config)
        if rule is not None:
            pairs = visible_pairs(rule, prompt, new, kv_heads=heads[1])
        elif kind == "chunked_attention" and native:
            pairs = heads[1] * (tokens // native * _triangle(native) + _triangle(tokens % native))
        else:
            pairs = visible_pairs(LayerRule(window=native), tokens, kv_heads=heads[1]) if native else 0
        # A KV head stands for heads[0] / heads[1] query heads.
        attention += 4.0 * heads[0] / heads[1] * heads[2] * pairs
    return linear, attention


class RelativeCost(NamedTuple):
    """What an adaptation costs, each as a fraction of what full attention costs; None where it is not known.

    Attributes:
        flops: arithmetic of the prefill, matrix products with weights included.
        attention: arithmetic of the prefill's attention alone.
        kv: bytes of keys and values that are held once the prompt is complete.
    """

    flops: float | None
    attention: float | None
    kv: float | None


def relative_cost(
    model_config: Any, rules: Sequence[LayerRule | None], length: int, weights: Weights, *, release_kv: bool
) -> RelativeCost:
    """Compare an adaptation's costs with those of full attention, see `prefill_flops` and `kv_bytes`.

    Args:
        model_config: the model's configuration of transformers, a composite one too.
        rules: what `swaa.adapting.plan_layers` returns.
        length: tokens of the prompt.
        weights: of the model (`active_weights`).
        release_kv: as in `kept_tokens`.
    """
    full = [None if rule is None else LayerRule() for rule in rules]
    linear, attention = prefill_flops(model_config, rules, length, weights)
    _, whole = prefill_flops(model_config, full, length, weights)
    held = kv_bytes(model_config, rules, length, release_kv=release_kv)
    kept = kv_bytes(model_config, full, length, release_kv=False)
    memory = held / kept if held is not None and kept else None
    if attention is None or whole is None:
        return RelativeCost(None, None, memory)
    return RelativeCost((linear + attention) / (linear + whole), attention / whole if whole else None, memory)


def active_parameters(model: Any) -> int:
    """Count the parameters that one token passes through: of a mixture of experts, the share of the chosen ones.

    Args:
        model: a transformers model; one on the meta device will do.
    """
    return round(sum(size for _, size in _active(model)))


def active_weights(model: Any) -> Weights:
    """Count what one token is multiplied with.

    Args:
        model: a causal language model of transformers; one on the meta device will do.
    """
    output = model.get_output_embeddings()
    head = None if output is None else output.weight
    # By name, for torch is not imported here. The head may be the embedding's own matrix.
    modules = [m for m in model.modules() if any(kind.__name__ == "Embedding" for kind in type(m).__mro__)]
    apart = {id(module.weight) for module in modules} | {id(head)}
    body = round(sum(size for parameter, size in _active(model) if id(parameter) not in apart))
    return Weights(body, 0 if head is None else head.numel())


def _active(model: Any) -> list[tuple[Any, float]]:
    """Return each parameter with how much of it a token meets."""
    config = model.config.get_text_config()
    experts = next((n for name in _EXPERTS if isinstance(n := getattr(config, name, None), int) and n > 1), 1)
    chosen = next((n for name in _CHOSEN if isinstance(n := getattr(config, name, None), int)), experts)
    share = min(chosen / experts, 1.0)
    found = []
    for name, parameter in model.named_parameters():
        # Some families keep their experts under other names, but all of them in one tensor.
        expert = ".experts." in name or (parameter.ndim == 3 and parameter.shape[0] == experts)
        found.append((parameter, parameter.numel() * share if expert else parameter.numel()))
    return found


def layer_kinds(model_config: Any) -> list[tuple[str, Any]]:
    """Return each layer's kind, as transformers calls it, and its configuration."""
    config = model_config.get_text_config()
    # Heterogeneous models (Gemma 4) refuse to tell a size that differs between layers any other way.
    each = getattr(config, "per_layer_config", None)
    configs = list(each) if each else [config] * config.num_hidden_layers
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        native = getattr(config, "sliding_window", None)
        kinds = ["full_attention" if native is None else "sliding_attention"] * len(configs)
    return list(zip(kinds, configs, strict=True))


def reusing_layers(model_config: Any) -> list[bool]:
    """Tell which layers hold no keys and values, but use those of an earlier one (as in Gemma 3n and 4)."""
    text = model_config.get_text_config()
    count = text.num_hidden_layers
    shared = getattr(text, "num_kv_shared_layers", None) or 0  # how transformers says it up to 5.17
    modes = getattr(text, "kv_sharing_modes", None) or [None] * (count - shared) + ["reuse"] * shared
    return [mode == "reuse" for mode in modes]


def releases(model_config: Any, release_kv: bool) -> bool:
    """Tell whether layers really release: not where others use their keys, and would look for the released ones."""
    return release_kv and not any(reusing_layers(model_config))


def native_window(kind: str, config: Any) -> int | None:
    """Return the model's own window of a layer: tokens visible, the row's own included; None if it has none."""
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    return getattr(config, names[kind], None) if kind in names else None


def _triangle(rows: int, most: int | None = None) -> int:
    """Sum min(row, most) over the rows 1 to `rows`."""
    if most is None or rows <= most:
        return rows * (rows + 1) // 2
    return most * (most + 1) // 2 + (rows - most) * most


def attention_heads(config: Any) -> tuple[int, int, int] | None:
    """Return a layer's query heads, KV heads and head dim, None if it is no plain attention."""
    if any(getattr(config, name, None) for name in _UNKNOWN_SIZES):
        return None
    heads = getattr(config, "num_attention_heads", None)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(heads, int) or not isinstance(kv_heads, int):
        return None
    return heads, kv_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def head_dim(model_config: Any) -> int:
    """Return the largest head dim of a model's layers; 128, the usual one, where the configuration does not tell."""
    known = [heads[2] for _, config in layer_kinds(model_config) if (heads := attention_heads(config))]
    return max(known, default=128)
