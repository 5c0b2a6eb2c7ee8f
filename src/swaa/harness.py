"""The model `swaa` of lm-evaluation-harness. Importing this registers it, and needs `swaa[lm-eval]`."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swaa.adapting import adapt, restore
from swaa.attaching import adaptation
from swaa.config import ConfigError, SWAAConfig
from swaa.models import DEFAULT_MODEL, default_model_path
from swaa.recipes import Recipe, load_recipe

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import Collator
    from tqdm import tqdm
except ImportError as error:
    raise ImportError(f"lm-evaluation-harness is not complete here ({error}): pip install 'swaa[lm-eval]'") from error

# (context, continuation) as text, or None for a window of a rolling log-likelihood; and the tokens of both.
Request = tuple[tuple[str, str] | None, list[int], list[int]]

_log = logging.getLogger(__name__)


@register_model("swaa")
class SwaaLM(HFLM):
    """lm-eval's Hugging Face model under a recipe.

    The context of a log-likelihood request is the prompt, and slides; the rows of its continuation's tokens are those
    of generated tokens, so they see everything on layers with FA decode. A rolling log-likelihood (perplexity) is all
    prompt. Generation is `model.generate`.

    Args:
        pretrained: model, as lm-eval takes it: a folder or a hub id, or a model (its adaptation is replaced); or
            `swaa.models.DEFAULT_MODEL`.
        recipe: name of a shipped recipe, or a recipe or configuration file; None: the adaptation stored with the model.
        device: as lm-eval takes it; None: CUDA if there is one, otherwise the CPU.
        **kwargs: fields of `SWAAConfig` that replace the recipe's (`window`, `fa_decode`, ..; `backend` is the
            attention backend), and whatever else lm-eval's `hf` takes (`dtype`, `batch_size`, `peft`, ..).

    Raises:
        ConfigError: no such recipe, a wrong value, or neither a recipe nor a stored adaptation.
        AdaptError: the model cannot be adapted.
    """

    def __init__(
        self,
        pretrained: str | Path | nn.Module,
        recipe: str | Path | None = None,
        *,
        device: str | None = None,
        **kwargs: Any,
    ):
        changes = {x.name: kwargs.pop(x.name) for x in dataclasses.fields(SWAAConfig) if x.name in kwargs}
        # Before the weights are loaded, which may take minutes.
        chosen = None if recipe is None else load_recipe(recipe).replace(**changes)
        if not isinstance(pretrained, nn.Module):
            pretrained = str(default_model_path() if str(pretrained) == DEFAULT_MODEL else pretrained)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, backend="causal", device=device, **kwargs)
        self.recipe = chosen or self._stored(changes)
        self.recipe.check_model(self.model.config)
        if self.recipe.chain_of_thought != "none" and not self.enable_thinking:
            _log.warning(
                "recipe %s is meant for a model that reasons first (chain_of_thought: %s), which is up to the task and "
                "its settings here: for a thinking model, --apply_chat_template and enable_thinking=True with its "
                "think_end_token in --model_args",
                self.recipe.name,
                self.recipe.chain_of_thought,
            )
        if self.recipe.config == SWAAConfig():
            restore(self.model)
        else:
            adapt(self.model, self.recipe.config)

    def _stored(self, changes: dict[str, Any]) -> Recipe:
        """Return the recipe of a model that was given without one."""
        stored = None if self.peft else getattr(self.model.config, "swaa", None)
        if stored is None and not changes:
            raise ConfigError(
                "no recipe was given and none is stored with the model: add recipe=NAME to --model_args (`swaa "
                "recipes` lists the names), a file such as recipe=ADAPTER/swaa_config.json, or recipe=full for full "
                "attention"
            )
        return Recipe("stored" if stored else "changed", SWAAConfig.from_dict(stored or {})).replace(**changes)

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into its results about the model, the adaptation included."""
        return super().get_model_info() | {"recipe": self.recipe.name, "swaa": self.recipe.config.to_dict()}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take a cache of responses (`--use_cache`).

        Raises:
            ConfigError: it was filled under another model or adaptation, which lm-eval's keys do not hold.
        """
        if (responses := cache_hook.dbdict) is not None:
            name = getattr(self.pretrained, "name_or_path", self.pretrained)
            mine = json.dumps({"pretrained": name, "peft": self.peft, **self.recipe.config.to_dict()})
            held = responses.get("swaa", "another kind of model") if len(responses) else mine
            if held != mine:
                raise ConfigError(
                    f"--use_cache: this cache holds responses of {held}, and the model is {mine}: give each model and "
                    "recipe a cache of its own"
                )
            responses["swaa"] = mine
        super().set_cache_hook(cache_hook)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Score requests, one pass a batch: the log-likelihood of each continuation, and whether it is the greedy one.

        lm-eval's own does not tell the model where contexts end, and shares the logits of requests whose tokens agree
        but for the last even if their contexts end at different tokens.
        """
        shared: dict[Any, list[int]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            if not context or not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens after {len(context)} cannot be scored: at least one "
                    f"token each, and at most {self.max_length} (max_length in --model_args)"
                )
            key = (tuple(context), tuple(continuation[:-1]), None if self.logits_cache else index)
            shared.setdefault(key, []).append(index)
        # The longest first, as in lm-eval: whatever does not fit into memory fails at once.
        order = Collator(
            [(members, *requests[members[0]][1:]) for members in shared.values()],
            sort_fn=lambda group: -len(group[1]) - len(group[2]),
        )
        search = self.batch_size == "auto" and not override_bs
        if search:
            # What was found for other requests may be too large for these.
            self.batch_sizes: dict[float, int] = {}
        fixed = (override_bs or 0) if self.batch_size == "auto" else self.batch_size
        answers: list[Any] = [None] * len(requests)
        hide = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hide, desc="Running loglikelihood requests") as bar:
            for chunk in order.get_batched(n=fixed, batch_fn=self._batch_scheduler if search else None):
                rolling = [requests[members[0]][0] is None for members, _, _ in chunk]
                logits = self._continuation_logits([group[1:] for group in chunk], rolling)
                for (members, _, _), rows in zip(chunk, logits, strict=True):
                    likelihoods = nn.functional.log_softmax(rows, dim=-1, dtype=self.softmax_dtype)
                    best = likelihoods.argmax(-1)
                    for index in members:
                        text, _, continuation = requests[index]
                        gold = torch.tensor(continuation, device=best.device)
                        total = float(likelihoods.gather(-1, gold[:, None]).sum())
                        answers[index] = total, bool((best == gold).all())
                        # A window's value is no answer to a request; lm-eval keeps the sum over the windows.
                        if text is not None:
                            self.cache_hook.add_partial("loglikelihood", text, answers[index])
                    bar.update(len(members))
        return answers

    def _continuation_logits(
        self, pairs: Sequence[tuple[list[int], list[int]]], rolling: Sequence[bool]
    ) -> list[Tensor]:
        """Run one pass over contexts with their continuations, cut from the left to what the model takes.

        Args:
            pairs: tokens of context and continuation.
            rolling: whether the continuation is prompt too.

        Returns:
            for each pair `[continuation tokens, vocabulary]`, the logits that predict the continuation.
        """
        rows, prompts = [], []
        for (context, continuation), prompt_only in zip(pairs, rolling, strict=True):
            # Nothing is asked of the last token, so it does not go in.
            row = (context + continuation)[:-1]
            if len(row) > self.max_length:
                _log.warning("a request of %d tokens loses its first %d", len(row), len(row) - self.max_length)
                row = row[-self.max_length :]
            rows.append(row)
            prompts.append(len(row) + 1 - (0 if prompt_only else len(continuation)))
        longest = max(map(len, rows))
        first = min(len(row) - len(continuation) for row, (_, continuation) in zip(rows, pairs, strict=True))
        # Padding stands at the right, where no real row sees it; so no mask, and rows of one prompt take the fast path.
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.device)
        announced = {"prompt_length": torch.tensor(prompts)} if adaptation(self.model) else {}
        mixed = self.mixed_precision_dtype
        with torch.no_grad(), torch.autocast(self.device.type, dtype=mixed, enabled=mixed is not None):
            logits = self.model(ids, use_cache=False, logits_to_keep=longest - first, **announced).logits
        stops = [len(row) - first for row in rows]
        return [
            part[stop - len(continuation) : stop]
            for part, stop, (_, continuation) in zip(logits, stops, pairs, strict=True)
        ]
