"""Saving an adapted model and loading it back, adaptation included."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import cached_file

from swaa.adapters import ADAPTATION_FILE, PEFT_FILE
from swaa.adapting import adapt, adaptation
from swaa.config import ConfigError, SWAAConfig
from swaa.models import DEFAULT_MODEL, default_model_path


def save(model: Any, path: str | Path, *, state_dict: dict[str, Any] | None = None) -> None:
    """Save a model with its adaptation: weights as `save_pretrained` does, and what `swaa.load` needs.

    A plain adapted model carries its adaptation in `config.json`, so `model.save_pretrained` does as well; a
    PEFT-wrapped one (adapter weights only) gets a `swaa_config.json` beside the adapter.

    Args:
        model: an adapted model of transformers, PEFT-wrapped or not.
        path: folder to write.
        state_dict: the weights, where the model itself holds only a part of them (FSDP); None: those of the model.

    Raises:
        ConfigError: the model carries no adaptation.
    """
    state = adaptation(model)
    if state is None:
        raise ConfigError("the model carries no adaptation: call swaa.adapt first, or model.save_pretrained to save it")
    model.save_pretrained(path, **({"state_dict": state_dict} if state_dict is not None else {}))
    if hasattr(model, "get_base_model"):
        state.config.save(Path(path) / ADAPTATION_FILE)


def load(
    name: str | Path,
    config: SWAAConfig | None = None,
    *,
    original_up_to: int | Literal["window"] = 0,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model and put its adaptation on: `from_pretrained` and `swaa.adapt` in one.

    Args:
        name: folder or hub id of an adapted model, or of a PEFT adapter saved with `swaa.save`.
        config: the adaptation; None: the one stored with the model.
        original_up_to: prompts of up to so many tokens are left to the original model, see `swaa.adapt`: it is a choice
            of who answers, not of what was trained, so it is not stored.
        **kwargs: passed on to `from_pretrained` (`dtype`, `device_map`, `revision`, ..).

    Raises:
        ConfigError: no adaptation is stored and none was given.
        OSError: there is no such model.
    """
    names: list[str] = ["revision", "token", "cache_dir", "local_files_only", "subfolder"]
    hub: dict[str, Any] = {key: kwargs[key] for key in names if key in kwargs}
    if _find(name, PEFT_FILE, hub):
        model = _load_adapter(name, hub, kwargs)
        file = _find(name, ADAPTATION_FILE, hub)
        stored = json.loads(Path(file).read_text()) if file else None
    else:
        model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
        stored = getattr(model.config, "swaa", None)
    if config is None:
        if stored is None:
            raise ConfigError(f"{name} stores no adaptation: pass config=SWAAConfig(..)")
        config = SWAAConfig.from_dict(stored)
    return adapt(model, config, original_up_to=original_up_to)


def _load_adapter(name: str | Path, hub: dict[str, Any], kwargs: dict[str, Any]) -> Any:
    from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel

    if PeftConfig.from_pretrained(str(name), **hub).base_model_name_or_path != DEFAULT_MODEL:
        return AutoPeftModelForCausalLM.from_pretrained(name, **kwargs)
    # The small default model goes by a name of ours, so that an adapter for it works on every machine.
    base = AutoModelForCausalLM.from_pretrained(
        default_model_path(), **{k: x for k, x in kwargs.items() if k not in hub}
    )
    return PeftModel.from_pretrained(base, str(name), **hub)


def _find(name: str | Path, file: str, hub: dict[str, Any]) -> str | None:
    return cached_file(
        str(name),
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
        **hub,
    )
