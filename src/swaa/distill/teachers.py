"""Who answers: the original model in this process, in batches, or behind an OpenAI-compatible endpoint."""

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from swaa.distill.prompts import Prompt
from swaa.endpoint import Endpoint, Reply
from swaa.tasks.base import Sample, encode, leading_ids

KEY_NAMES = ("SWAA_TEACHER_KEY", "OPENAI_API_KEY")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Args:
        samples: answers to each prompt.
        temperature: of the distribution; 1 is the model's own, 0 always takes the most likely token.
        top_p: share of the probability that may be drawn.
        max_new_tokens: where an answer is cut off.
        seed: the same one gives the same answers.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("samples", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: use 1 or more")
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature={self.temperature}, top_p={self.top_p}: use 0 or more, and more than 0 up to 1"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("at temperature 0 every answer to a prompt is the same: use samples=1")

    def seed_of(self, *parts: int) -> int:
        """Return the seed of a part of the work, 31 bits."""
        text = "/".join(map(str, ("distill", self.seed, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


class Request(NamedTuple):
    """Which answer: the number of the prompt's row, and of the answer to it."""

    row: int
    sample: int


class Teacher(Protocol):
    """A model that answers."""

    model: str

    def describe(self) -> dict[str, Any]:
        """Return what tells the teacher, and with the sampling its answers, from others: JSON values."""

    def answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: set[Request]
    ) -> Iterator[dict[Request, Reply]]:
        """Yield answers as they come, for all but the requests that are done.

        Args:
            prompts: all prompts of the run, whether done or not: what is drawn depends on them.
            sampling: how.
            done: what is answered already.
        """


class LocalTeacher:
    """A model of transformers in this process, under full attention.

    Prompts of like lengths are answered together, the longest ones first. A batch draws from a random stream of its
    own, so a run that was killed goes on to the same answers.

    Args:
        model: a causal language model that carries no adaptation.
        tokenizer: its tokenizer.
        name: how the model is called in what is written.
        revision: what tells its weights from others.
        batch_size: answers drawn at a time.
        share: number of this process and of all that share the batches; the answers do not depend on it.
        static_cache: reserve the cache at once; on a GPU the step of a token is compiled and replayed.

    Raises:
        ValueError: `batch_size` is not positive, or the model is adapted.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str,
        batch_size: int = 8,
        share: tuple[int, int] = (0, 1),
        static_cache: bool = False,
    ):
        from swaa.attaching import adaptation

        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use 1 or more")
        if adaptation(model) is not None:
            raise ValueError("the teacher is adapted: answers are to come from full attention, call swaa.restore first")
        self.model, self.revision, self.batch_size = name, revision, batch_size
        self._rank, self._count = share
        self._model, self._tokenizer, self._static_cache = model, tokenizer, static_cache

    def describe(self) -> dict[str, Any]:
        """See `Teacher.describe`. A batch shares its random stream, so its size counts."""
        dtype = str(self._model.dtype).removeprefix("torch.")
        return {"model": self.model, "revision": self.revision, "dtype": dtype, "batch_size": self.batch_size}

    def answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: set[Request]
    ) -> Iterator[dict[Request, Reply]]:
        """See `Teacher.answers`. A prompt that leaves no room for an answer gets an empty one, which no filter keeps.

        Raises:
            ValueError: no prompt leaves room for an answer.
        """
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        fits = [len(own) + sampling.max_new_tokens <= limit for own in ids]
        if not any(fits):
            raise ValueError(
                f"the shortest prompt has {min(map(len, ids))} tokens, and with an answer of {sampling.max_new_tokens} "
                f"more than the {limit} that the model was trained on: lower max_new_tokens"
            )
        too_long = {
            Request(p.row, n) for p, x in zip(prompts, fits, strict=True) if not x for n in range(sampling.samples)
        }
        if self._rank == 0 and not done.issuperset(too_long):
            yield dict.fromkeys(sorted(too_long), Reply("", False, 0))
        order = sorted((index for index, x in enumerate(fits) if x), key=lambda index: (-len(ids[index]), index))
        work = [(index, sample) for index in order for sample in range(sampling.samples)]
        for number, start in enumerate(range(0, len(work), self.batch_size)):
            batch = work[start : start + self.batch_size]
            requests = [Request(prompts[index].row, sample) for index, sample in batch]
            if number % self._count == self._rank and not done.issuperset(requests):
                replies = self._draw([ids[index] for index, _ in batch], sampling, sampling.seed_of(number))
                yield dict(zip(requests, replies, strict=True))

    def _draw(self, batch: Sequence[list[int]], sampling: Sampling, seed: int) -> list[Reply]:
        import torch

        from swaa.adapting import adapt, restore
        from swaa.config import SWAAConfig
        from swaa.evaluate import generate_texts

        samples = [Sample(tuple(ids), (), (), "") for ids in batch]
        options = {name: value for name, value in asdict(sampling).items() if name not in ("samples", "seed")}
        device = self._model.device
        if self._static_cache:
            # Full attention still: the recorded step is that of an adapted model.
            adapt(self._model, SWAAConfig())
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                options["static_cache"] = self._static_cache
                texts = generate_texts(self._model, self._tokenizer, samples, **options)
        finally:
            restore(self._model)
        return [Reply(text, finished, len(encode(self._tokenizer, text))) for text, finished in texts]

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        if getattr(self._tokenizer, "chat_template", None):
            turns = prompt.turns()
            try:
                text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # templates raise what they like
                raise ValueError(f"row {prompt.row + 1}: the chat template refuses it: {error}") from error
            return encode(self._tokenizer, str(text))
        if prompt.chat:
            raise ValueError("`messages` need a chat template and the tokenizer has none: use `prompt`")
        return [*leading_ids(self._tokenizer), *encode(self._tokenizer, prompt.messages[0][1])]


class RemoteTeacher:
    """A model behind an OpenAI-compatible endpoint, such as a vLLM server.

    Every request carries a seed of its own: a server that heeds it gives the same answers again.

    Args:
        model: its name at the endpoint.
        url: base URL, such as `http://localhost:8000/v1`.
        parallel: requests at the same time.
        retries: how often a request is sent again after a failure that may pass.

    Raises:
        EndpointError: the package `openai` is missing.
    """

    def __init__(self, model: str, url: str, *, parallel: int = 16, retries: int = 6):
        if parallel < 1:
            raise ValueError(f"parallel={parallel}: use 1 or more")
        self.model, self.parallel = model, parallel
        # What decides on the answers must not be left out.
        required = ("temperature", "top_p", "max_tokens")
        self._endpoint = Endpoint(
            model, url, role="teacher", keys=KEY_NAMES, retries=retries, options={}, required=required
        )

    def describe(self) -> dict[str, Any]:
        """See `Teacher.describe`. The same model may be reached elsewhere, and nobody tells its revision."""
        return {"model": self.model, "revision": None, "dtype": None, "batch_size": None}

    def answers(
        self, prompts: Sequence[Prompt], sampling: Sampling, done: set[Request]
    ) -> Iterator[dict[Request, Reply]]:
        """See `Teacher.answers`.

        Raises:
            EndpointError: a request failed for good.
        """
        options = {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens}
        options |= {"top_p": sampling.top_p} if sampling.top_p < 1 else {}
        with ThreadPoolExecutor(self.parallel) as pool:
            futures = {}
            for prompt in prompts:
                for sample in range(sampling.samples):
                    if (request := Request(prompt.row, sample)) not in done:
                        seed = sampling.seed_of(*request)
                        future = pool.submit(self._endpoint.ask, prompt.turns(), seed=seed, **options)
                        futures[future] = request
            try:
                for future in as_completed(futures):
                    yield {futures[future]: future.result()}
            finally:
                for future in futures:
                    future.cancel()
