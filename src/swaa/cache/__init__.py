"""Cache layers that release what nobody will see again: they keep the sinks and the last `window - 1` tokens.

They stand in for transformers' cache layers on layers without FA decode, and are put in place while a cache is empty.
Before each pass the model announces its geometry, so that sinks are found behind padding; afterwards a layer says by
`view` which keys it has handed out. Of a layer with full heads such a layer holds the sliding heads only.
"""

from dataclasses import replace
from typing import TypeGuard

from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from swaa.cache.dynamic import SinkWindowLayer
from swaa.cache.heads import HeadsLayer
from swaa.cache.held import ReleasedError
from swaa.cache.static import StaticSinkWindowLayer
from swaa.config import LayerRule
from swaa.geometry import Geometry

__all__ = [
    "HeadsLayer",
    "ReleasedError",
    "SinkWindowLayer",
    "StaticSinkWindowLayer",
    "announce",
    "install",
    "is_ours",
    "stop_recording",
]


def install(cache: Cache, rules: tuple[LayerRule | None, ...], *, prompt_complete: bool, record_past: bool) -> None:
    """Put forgetting layers into an empty cache, where the rule lets a layer forget and the layer is an ordinary one.

    Quantised layers stay as they are and keep everything; so do static ones with a dense tail whose prompt comes in
    chunks, since the tail needs every key of the prompt.

    Args:
        cache: a cache without tokens.
        rules: the rule of each layer.
        prompt_complete: the coming pass completes the prompt.
        record_past: `crop` will follow each pass (drafts that may be rejected): release only there.
    """
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layers.extend(DynamicLayer() for _ in rules[len(cache.layers) :])
    for index, rule in enumerate(rules[: len(cache.layers)]):
        layer = cache.layers[index]
        kind = type(layer.full if isinstance(layer, HeadsLayer) else layer)
        ordinary: DynamicLayer | StaticLayer
        forgetting: SinkWindowLayer | StaticSinkWindowLayer | None = None
        if kind in (DynamicLayer, SinkWindowLayer):
            ordinary = DynamicLayer()
            if _forgets(rule):
                forgetting = SinkWindowLayer(replace(rule, full_heads=()), record_past=record_past)
        elif kind in (StaticLayer, StaticSinkWindowLayer):
            length = layer.get_max_length()
            ordinary = StaticLayer(length)
            if _forgets(rule) and (prompt_complete or not rule.dense_tail) and rule.sinks + (rule.window or 0) < length:
                forgetting = StaticSinkWindowLayer(length, replace(rule, full_heads=()))
        else:
            continue
        if forgetting is not None and rule is not None and rule.full_heads:
            cache.layers[index] = HeadsLayer(rule, forgetting, ordinary)
        else:
            cache.layers[index] = forgetting or ordinary


def announce(cache: Cache, rules: tuple[LayerRule | None, ...], geometry: Geometry, *, prompt_complete: bool) -> None:
    """Tell the forgetting layers of a cache about the pass that comes.

    Raises:
        ReleasedError: the cache was filled under other rules, or the pass needs what was released.
    """
    # Without what the backends note there, which would live as long as the cache.
    held = replace(geometry, memo={})
    for layer, rule in zip(cache.layers, rules, strict=False):
        if isinstance(layer, SinkWindowLayer | StaticSinkWindowLayer | HeadsLayer):
            if layer.rule != rule:
                raise ReleasedError(
                    f"the cache was filled under another adaptation ({layer.rule}) and has released what this one "
                    f"({rule}) may see: start with an empty cache"
                )
            layer.announce(held, prompt_complete=prompt_complete)


def is_ours(cache: Cache) -> bool:
    """Tell whether layers of a cache forget."""
    return any(isinstance(layer, SinkWindowLayer | StaticSinkWindowLayer | HeadsLayer) for layer in cache.layers)


def stop_recording(cache: Cache) -> None:
    """Let the layers release after each pass again: an earlier turn with drafts has told them to wait for `crop`."""
    for layer in cache.layers:
        if isinstance(layer, SinkWindowLayer | HeadsLayer):
            layer.record_past = False


def _forgets(rule: LayerRule | None) -> TypeGuard[LayerRule]:
    """Tell whether a layer can release tokens: it is ours and slides, for prompt and generated rows alike."""
    return rule is not None and rule.window is not None and not rule.fa_decode
