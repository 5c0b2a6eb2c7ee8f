"""Measuring a model on samples: forced answers, free generation, perplexity, prefill time and KV bytes.

A measurement takes the model as it is: adapted or not.
"""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from swaa.attaching import adaptation
from swaa.cache import HeadsLayer, announce, install
from swaa.cache.naming import returned_cache
from swaa.config import LayerRule
from swaa.cost import attention_heads, layer_kinds, releases
from swaa.geometry import build_geometry
from swaa.tasks import Sample, correct_text


@dataclass(frozen=True)
class Answer:
    """How a model answered one sample.

    Args:
        index: number of the sample.
        correct: whether the whole answer was right.
        nll: mean negative log likelihood of the gold answer's tokens, in nats.
        text: the prediction: the most likely token at each place of the gold answer, or the generated text.
    """

    index: int
    correct: bool
    nll: float
    text: str


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], *, batch_size: int = 1
) -> Iterator[Answer]:
    """Score the gold answers in one pass a batch: right if every token is the most likely one after those before it.

    That is greedy exact match after the forced answer prefix. Prefix and answer count as generated tokens.

    Args:
        model: the model, adapted or not.
        tokenizer: its tokenizer.
        samples: retrieval samples.
        batch_size: samples a pass.
    """
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        for offset, (scores, gold) in enumerate(answer_logits(model, batch)):
            predicted = scores.argmax(-1)
            nll = torch.nn.functional.cross_entropy(scores, gold).item()
            yield Answer(start + offset, bool((predicted == gold).all()), nll, str(tokenizer.decode(predicted)))


def answer_logits(model: PreTrainedModel, samples: Sequence[Sample]) -> list[tuple[Tensor, Tensor]]:
    """Compute in one pass what the model says at each place of the gold answers; gradients flow where they are on.

    Args:
        model: the model, adapted or not.
        samples: a batch of retrieval samples.

    Returns:
        for each sample the logits, `[answer tokens, vocabulary]` float32, and the gold tokens, `[answer tokens]`.
    """
    rows = [list(s.prompt_ids + s.prefix_ids + s.answer_ids) for s in samples]
    longest = max(map(len, rows))
    kept = longest - min(len(s.prompt_ids) + len(s.prefix_ids) for s in samples) + 1
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    # Without a mask a batch without padding takes the faster path.
    extra: dict[str, Any] = {} if bool(mask.all()) else {"attention_mask": mask}
    if adaptation(model):
        extra["prompt_length"] = torch.tensor([len(s.prompt_ids) for s in samples])
    logits = model(ids, use_cache=False, logits_to_keep=kept, **extra).logits
    found = []
    for offset, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        stop = len(row) - 1 - (longest - logits.shape[1])
        scores = logits[offset, stop - len(sample.answer_ids) : stop].float()
        found.append((scores, ids[offset, len(row) - len(sample.answer_ids) : len(row)]))
    return found


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], *, batch_size: int = 1
) -> Iterator[Answer]:
    """Let the model answer freely and greedily: right if the gold answer stands in the text.

    The NLL is that of the forced gold answer (`score_answers`). Arguments as there.
    """
    forced = list(score_answers(model, tokenizer, samples, batch_size=batch_size))
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        room = max(len(s.prefix_ids) + len(s.answer_ids) for s in batch) + 8
        for offset, (text, _) in enumerate(generate_texts(model, tokenizer, batch, max_new_tokens=room)):
            correct = correct_text(batch[offset], text)
            yield Answer(start + offset, correct, forced[start + offset].nll, text)


@torch.inference_mode()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    static_cache: bool = False,
) -> list[tuple[str, bool]]:
    """Let the model go on after the prompts, in one batch padded on the left.

    Args:
        model: the model, adapted or not.
        tokenizer: its tokenizer.
        samples: their prompts are the batch.
        max_new_tokens: where each text is cut off.
        temperature: of the distribution that tokens are drawn from; 0: the most likely token, always.
        top_p: share of the probability that may be drawn.
        static_cache: reserve the cache at once; see `swaa.decoding`.

    Returns:
        the text of each sample, and whether the model ended it itself.
    """
    generator: Any = model  # `generate` comes from a mixin that the annotation does not know
    longest = max(len(s.prompt_ids) for s in samples)
    padding = [[0] * (longest - len(s.prompt_ids)) for s in samples]
    rows = [(*left, *s.prompt_ids) for left, s in zip(padding, samples, strict=True)]
    ids = torch.tensor(rows, device=model.device)
    mask = torch.tensor([left + [1] * (longest - len(left)) for left in padding], device=model.device)
    # By themselves, transformers and many a model's own settings cut the distribution.
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "min_p": None}
    output = generator.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=_padding(model, tokenizer),
        cache_implementation="static" if static_cache else None,
        **(drawn if temperature else {"do_sample": False}),
    )[:, longest:]
    stops = getattr(model.generation_config, "eos_token_id", None)
    stops = set(stops) if isinstance(stops, list) else {stops}
    return [
        (str(tokenizer.decode(row, skip_special_tokens=True)), not stops.isdisjoint(row.tolist())) for row in output
    ]


@torch.inference_mode()
def perplexity(model: PreTrainedModel, samples: Iterable[Sample]) -> Iterator[float]:
    """Yield the mean negative log likelihood (nats a token) of each sample's tokens from `meta["score_from"]` on.

    All rows are prompt rows: FA decode plays no part.
    """
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids], device=model.device)
        scored = ids.shape[1] - sample.meta["score_from"]
        logits = model(ids, use_cache=False, logits_to_keep=scored + 1).logits[0, :-1]
        # In slices: a float32 copy of all logits would be the largest tensor of the run.
        losses = [
            torch.nn.functional.cross_entropy(part.float(), gold, reduction="sum").item()
            for part, gold in zip(logits.split(512), ids[0, -scored:].split(512), strict=True)
        ]
        yield math.fsum(losses) / scored


def mean_nll(losses: Sequence[float | None]) -> float | None:
    """Average the NLL of samples; None if there is none, or if that of one is None or not finite.

    A mean over the others would be one over other samples than the next recipe's.
    """
    finite = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    return math.fsum(finite) / len(finite) if finite and len(finite) == len(losses) else None


def exponential(nll: float | None) -> float | None:
    """Return the perplexity of a mean NLL; None if there is none, or if no float is that large (NLL above 709)."""
    try:
        return None if nll is None else math.exp(nll)
    except OverflowError:
        return None


@torch.inference_mode()
def measure_prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> tuple[float, int]:
    """Time the prefill of single prompts, and measure what the cache holds afterwards.

    Args:
        model: the model.
        prompts: token ids of one or more prompts of one length; the first is run once more to warm up.

    Returns:
        median seconds of a prompt (logits of the last token only), and KV bytes a sequence.
    """
    seconds, held = [], 0
    for index, prompt in enumerate([prompts[0], *prompts]):
        ids = torch.tensor([list(prompt)], device=model.device)
        _synchronize(model.device)
        begin = time.perf_counter()
        output = model(ids, use_cache=True, logits_to_keep=1)
        _synchronize(model.device)
        if index:
            seconds.append(time.perf_counter() - begin)
        held = cache_bytes(returned_cache(output))
    return sorted(seconds)[len(seconds) // 2], held


def held_bytes(model_config: Any, rules: Sequence[LayerRule | None], length: int, *, release_kv: bool) -> int | None:
    """Measure the KV bytes of one sequence in bfloat16 on real cache layers, without weights or memory.

    Args:
        model_config: the model's (text) configuration.
        rules: what `swaa.adapting.plan_layers` returns.
        length: tokens of the prompt.
        release_kv: whether layers that can release do.

    Returns:
        the bytes, None for a family whose cache does not hold plain keys and values on every layer.
    """
    cache = DynamicCache(config=model_config)
    heads = [attention_heads(own) for _, own in layer_kinds(model_config)]
    if len(cache.layers) != len(rules) or any(x is None for x in heads):
        return None
    geometry = build_geometry(batch=1, past=0, rows=length)
    if releases(model_config, release_kv):
        install(cache, tuple(rules), prompt_complete=True, record_past=False)
    announce(cache, tuple(rules), geometry, prompt_complete=True)
    for index, (rule, found) in enumerate(zip(rules, heads, strict=True)):
        if found is None or not isinstance(cache.layers[index], DynamicLayer | HeadsLayer):
            return None
        _, kv_heads, head_dim = found
        states = torch.empty(1, kv_heads, length, head_dim, dtype=torch.bfloat16, device="meta")
        cache.update(states, states.clone(), index)
        assert rule is not None or cache.is_sliding[index]
    return cache_bytes(cache)


def cache_bytes(cache: Cache) -> int:
    """Return the bytes of all key and value tensors that a cache holds.

    transformers' own sliding layers count with what they hold from the next token on: right after a prompt in one pass
    they have a slice of all its keys and values, which the next token replaces by a copy of what its window sees.
    """
    layers: list[Any] = cache.layers
    native = [isinstance(layer, DynamicSlidingWindowLayer) for layer in layers]
    slices = [x for layer, own in zip(layers, native, strict=True) if own for x in _states(layer)]
    tensors = [x for layer, own in zip(layers, native, strict=True) if not own for x in _states(layer)]
    storages = [x.untyped_storage() for x in tensors if x is not None]
    # A view (a slice of a longer prompt, say) keeps its whole storage alive; tensors on "meta" have no address.
    held = sum({storage.data_ptr() or id(storage): storage.nbytes() for storage in storages}.values())
    return held + sum(x.nbytes for x in slices if x is not None)


def _states(layer: Any) -> list[Tensor | None]:
    """Return the tensors of a cache layer: keys and values, or the states of a linear attention layer."""
    if isinstance(layer, HeadsLayer):
        return [x for part in layer.layers for x in _states(part)]
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    return [*layer.conv_states.values(), *layer.recurrent_states.values()]


def accuracy_interval(correct: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of an accuracy (Wilson 1927), 0..1."""
    z = 1.959964
    share, spread = correct / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    # It holds the accuracy, but for rounding at its ends.
    return max(min(middle - half, share), 0.0), min(max(middle + half, share), 1.0)


def _padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(x for x in known if x is not None)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
