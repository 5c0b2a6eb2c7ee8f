"""Decoding at the speed of memory: one token's step with a static cache, compiled and replayed as a CUDA graph.

`generate` with `cache_implementation="static"` comes here for greedy search and sampling. Everything that changes from
token to token lies in tensors on the device, so the recorded step serves all tokens.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from swaa.attention.triton import unavailable
from swaa.cache.naming import CACHE, returned_cache
from swaa.cache.slots import DecodeCache
from swaa.compiling import compile_layers, uncompile_layers
from swaa.cost import head_dim
from swaa.state import Adaptation


def why_not(model: Any, state: Adaptation, config: Any, kwargs: dict[str, Any]) -> str | None:
    """Return why a call of `generate` cannot use the recorded step, None if it can."""
    if config.cache_implementation != "static" or config.use_cache is False:
        return "the cache is not static"
    if config.disable_compile or config.compile_config is not None:
        return "compilation is switched off, or set by the caller"
    if config.output_attentions or config.output_hidden_states:
        return "attentions or hidden states are asked for"
    if kwargs.get("position_ids") is not None:
        return "positions are given"
    if kwargs.get("assistant_model") is not None or kwargs.get("custom_generate") is not None:
        return "another way of decoding is asked for"
    if any(rule is None for rule in state.rules):
        return "the model has layers with a native window"
    if any(rule is not None and rule.full_heads for rule in state.rules):
        return "some layers have full_heads, and so keys of two lengths"
    if len(getattr(model, "hf_device_map", {})) > 1:
        return "the model lies on several devices"
    return unavailable(model.device, model.dtype, head_dim(model.config.get_text_config()))


def decode(
    model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any, **kwargs: Any
) -> Tensor | GenerateDecoderOnlyOutput:
    """Generate as transformers' `_sample` does (greedy search and sampling), with the recorded step.

    The step of a token is launched before anybody asks whether the token was the last one; if it was, the step is
    forgotten. What it wrote lies where the next token's keys go.
    """
    mask = kwargs.get("attention_mask")
    if mask is not None and bool((mask.long().diff(dim=-1) < 0).any()):
        # The step tells positions from the number of paddings at the left.
        sample = {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
        return model._sample(input_ids, **sample, generation_config=generation_config, **kwargs)
    streamer = kwargs.pop("streamer", None)
    kwargs.pop("synced_gpus", None)
    outputs = model._prefill(input_ids, generation_config, kwargs)
    cache, logits = returned_cache(outputs), outputs.logits[:, -1]
    del outputs
    padding = generation_config._pad_token_tensor
    has_end = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(len(input_ids), dtype=torch.long, device=input_ids.device)
    wanted = generation_config.return_dict_in_generate
    scores: list[Tensor] | None = [] if wanted and generation_config.output_scores else None
    raw: list[Tensor] | None = [] if wanted and generation_config.output_logits else None
    step: DecodeStep | None = None
    try:
        while True:
            logits = logits.to(copy=True, dtype=torch.float32, device=input_ids.device)
            processed = logits_processor(input_ids, logits)
            if scores is not None:
                scores.append(processed)
            if raw is not None:
                raw.append(logits)
            if generation_config.do_sample:
                token = torch.multinomial(torch.softmax(processed, dim=-1), num_samples=1).squeeze(1)
            else:
                token = processed.argmax(dim=-1)
            if has_end:
                token = token * unfinished + padding.to(token.device) * (1 - unfinished)
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            unfinished = unfinished & ~stopping_criteria(input_ids, None if scores is None else tuple(scores))
            news = _News(token, unfinished.any())
            ahead = step is not None and step.room and input_ids.shape[1] < (stopping_criteria.max_length or math.inf)
            if ahead:
                assert step is not None
                logits = step(token)
            token, going_on = news.wait()
            if streamer is not None:
                streamer.put(token)
            if not bool(going_on):
                if ahead:
                    assert step is not None
                    step.forget()
                break
            if step is None:
                step = DecodeStep(model, cache, len(input_ids), kwargs.get("attention_mask"))
            if not ahead:
                logits = step(input_ids[:, -1])
    finally:
        if step is not None:
            step.close()
    if streamer is not None:
        streamer.end()
    if not wanted:
        return input_ids
    known: dict[str, Any] = {"scores": scores and tuple(scores), "logits": raw and tuple(raw), CACHE: cache}
    return GenerateDecoderOnlyOutput(
        sequences=input_ids,  # type: ignore[arg-type]  # annotated as a LongTensor, which no int64 tensor is
        **known,
    )


class _News:
    """Tensors on their way to the CPU, without holding up what is launched after them."""

    def __init__(self, *tensors: Tensor):
        self.event: torch.cuda.Event | None = None
        self.tensors = list(tensors)
        if tensors[0].device.type == "cuda":
            pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True, device="cpu") for x in tensors]
            self.tensors = [to.copy_(x, non_blocking=True) for to, x in zip(pinned, tensors, strict=True)]
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self) -> list[Tensor]:
        """Return the tensors on the CPU."""
        if self.event is not None:
            self.event.synchronize()
        return [x.cpu() for x in self.tensors]


class DecodeStep:
    """The forward pass of one token on a static cache, recorded once.

    Args:
        model: an adapted causal language model.
        cache: its static cache, the prompt in it.
        batch: sequences.
        attention_mask: `[batch, >= tokens in the cache]`, left-padded; None: no padding.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache, batch: int, attention_mask: Tensor | None = None):
        self.model = model
        device, start = model.device, int(cache.get_seq_length())
        padding = torch.zeros(batch, dtype=torch.long, device=device)
        if attention_mask is not None:
            padding = (attention_mask[:, :start] == 0).sum(-1).to(device)
        self.cache = DecodeCache(cache, padding, start)
        self.token = torch.zeros(batch, 1, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None
        self.compiled = False

    def __call__(self, token: Tensor) -> Tensor:
        """Feed one token a row, `[batch]`; return the logits of the next, `[batch, vocabulary]` (overwritten later)."""
        self.token.copy_(token[:, None])
        if self.token.device.type != "cuda":
            logits = self._run()
        else:
            if self.logits is None:
                self._record()
            if self.graph is None:
                logits = self._run()
            else:
                self.graph.replay()
                assert self.logits is not None
                logits = self.logits
        self.cache.count += 1
        return logits

    @property
    def room(self) -> bool:
        """Whether the cache has room for another token."""
        return self.cache.start + self.cache.count < self.cache.capacity

    def forget(self) -> None:
        """Take back the last step."""
        self.cache.count -= 1

    def close(self) -> None:
        """Tell the cache what was decoded; the step must not be used afterwards."""
        self.cache.finish()
        if self.compiled:
            uncompile_layers(self.model)

    def _run(self) -> Tensor:
        outputs = self.model(
            input_ids=self.token,
            position_ids=self.cache.positions(),
            use_cache=True,
            return_dict=True,
            **{CACHE: self.cache},
        )
        self.cache.column += 1
        return outputs.logits[:, -1]

    def _record(self) -> None:
        state: Adaptation = vars(self.model.get_decoder())["_swaa"]
        if not state.compiled:
            compile_layers(self.model)
            self.compiled = True
        column = self.cache.column.clone()
        side = _side_stream(self.token.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), _quiet():
            for _ in range(2):
                # The same token in the same place: harmless, and everything is compiled before the recording.
                self.cache.column.copy_(column)
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.cache.column.copy_(column)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.logits = self._run()
            self.graph = graph
        except RuntimeError as error:
            self.cache.column.copy_(column)
            self.logits = self.token
            reason = str(error).partition("\n")[0]
            warnings.warn(f"this model's step cannot be recorded, decoding is slower: {reason}", stacklevel=2)


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    # One for all recordings: cuBLAS keeps a workspace for each stream that it ever ran on, 32 MB on Hopper.
    return torch.cuda.Stream(device)


@contextmanager
def _quiet() -> Iterator[None]:
    # Remarks of the compiler (float32 precision, graph breaks) are no news to someone who generates.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bound(streamer: Any) -> Callable[..., Any]:
    """Return `decode` as a callable for `generate(custom_generate=...)`, which may not hand the streamer on."""

    def decoding(model: Any, input_ids: Tensor, **kwargs: Any) -> Any:
        return decode(model, input_ids, **kwargs | {"streamer": streamer})

    return decoding
