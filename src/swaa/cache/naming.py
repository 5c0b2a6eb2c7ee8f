"""The name of the cache in what models take and return: `cache` since transformers 5.24, `past_key_values` before.

Newer versions still take the old name from callers (and say that it is deprecated), so both are looked for there.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

_OLD = "past_key_values"
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else _OLD


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """Return the cache among the keyword arguments of a model or of its `generate`, None if there is none."""
    return kwargs.get(CACHE, kwargs.get(_OLD))


def put_cache(kwargs: dict[str, Any], cache: Cache) -> None:
    """Put a cache among the keyword arguments of a model, where none was given."""
    kwargs.pop(_OLD, None)
    kwargs[CACHE] = cache


def returned_cache(output: Any) -> Any:
    """Return the cache in what a model or its `generate` has returned, None if there is none."""
    return getattr(output, CACHE, None)
