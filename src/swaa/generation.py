"""`generate` of an adapted model: it announces the prompt, and picks who decodes."""

import copy
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation import GenerationMode

from swaa.config import ConfigError
from swaa.decoding import bound, why_not
from swaa.state import GENERATION, Adaptation, Generation
from swaa.switching import generate_switched_off, is_left_to_the_original, prompt_tokens


def generate(self: PreTrainedModel, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
    """Generate as the model's class does, with the prompt's end announced."""
    state: Adaptation | None = vars(self.get_decoder()).get("_swaa")
    own: Any = type(self)  # its `generate` comes from a mixin that the annotation does not know
    if state is None:  # the decoder was restored by itself
        return own.generate(self, inputs, *args, **kwargs)
    if is_left_to_the_original(state, inputs, kwargs):
        return generate_switched_off(self, inputs, *args, **kwargs)
    config = copy.deepcopy(kwargs.get("generation_config") or (args[0] if args else None) or self.generation_config)
    # As transformers does: what a given configuration leaves open is the model's.
    unset = {key: value for key, value in vars(self.generation_config).items() if getattr(config, key, None) is None}
    config.update(**unset | {key: value for key, value in kwargs.items() if key != "generation_config"})
    if config.token_healing:
        raise ConfigError("token_healing changes the prompt inside generate: heal the prompt first, or switch it off")
    if state.has_phases and not config.use_cache and (config.guidance_scale or 1) != 1:
        raise ConfigError(
            "guidance_scale without a cache: where the other sequence's prompt ends is known by its cache alone, so "
            "leave out use_cache=False"
        )
    prompt = prompt_tokens(inputs, kwargs)
    # With a cache the new tokens may come alone, but the mask always covers the whole sequence.
    mask = kwargs.get("attention_mask")
    prompt_end = prompt.shape[1] if mask is None else max(prompt.shape[1], mask.shape[-1])
    drafts = config.get_generation_mode(kwargs.get("assistant_model")) == GenerationMode.ASSISTED_GENERATION
    token = GENERATION.set(Generation(state, prompt_end, drafts or bool(config.is_assistant)))
    greedy_or_sample = config.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
    if greedy_or_sample and why_not(self, state, config, kwargs) is None:
        kwargs["custom_generate"] = bound(kwargs.get("streamer"))
    # transformers compiles the decode step of a static cache by itself on a GPU; it cannot trace what describes a pass.
    if config.compile_config is None:
        kwargs["disable_compile"] = True
    try:
        return own.generate(self, inputs, *args, **kwargs)
    finally:
        GENERATION.reset(token)
