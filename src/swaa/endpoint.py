"""A language model behind an OpenAI-compatible endpoint: OpenAI's own, or a server such as vLLM's."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]


class EndpointError(ValueError):
    """The endpoint cannot be asked; the message says why and what to do."""


@dataclass(frozen=True)
class Reply:
    """What a model wrote.

    Args:
        text: its words; a thought that the server keeps apart stands in front of them, between `<think>` marks.
        finished: whether the model ended it itself.
        tokens: how many were generated; None: the server does not tell.
    """

    text: str
    finished: bool
    tokens: int | None


class Endpoint:
    """Asks a model, and sends requests again after failures that may pass.

    Args:
        model: its name at the endpoint.
        url: base URL, such as `http://localhost:8000/v1`; None: OpenAI's.
        role: what errors call the model, as in `"judge"`.
        keys: environment variables that may hold the key, the first one wins.
        retries: how often a request is sent again.
        options: of every request, such as `temperature`. What the endpoint does not know is left out from then on,
            unless it is `required`.
        required: names of options whose refusal is an error.

    Raises:
        EndpointError: the package `openai` or the key is missing.
    """

    def __init__(
        self,
        model: str,
        url: str | None,
        *,
        role: str,
        keys: Sequence[str],
        retries: int,
        options: dict[str, Any],
        required: Sequence[str] = (),
    ):
        try:
            import openai
        except ModuleNotFoundError as error:
            raise EndpointError(f"a {role} behind a URL needs the package openai: pip install 'swaa[judge]'") from error
        self._names = " or ".join(keys)
        key = next((os.environ[name] for name in keys if os.environ.get(name)), None)
        if key is None and url is None:
            raise EndpointError(f"OpenAI's endpoint wants a key: set {self._names}, or name another {role}'s URL")
        self.model, self.url, self._role = model, url, role
        self._options, self._required = options, required
        self._refused: set[str] = set()
        # A local server asks for no key, but the client for something.
        self._client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=retries, timeout=300)

    def ask(self, messages: Messages, **more: Any) -> Reply:
        """Send a conversation, and return what the model says next.

        Args:
            messages: turns with `role` and `content`.
            **more: options of this request only.

        Raises:
            EndpointError: the request failed for good.
        """
        import openai

        options = {name: x for name, x in (self._options | more).items() if name not in self._refused}
        try:
            # The client has an overload for each set of options, and these come from the command line.
            done = self._client.chat.completions.create(model=self.model, messages=messages, **options)  # type: ignore[arg-type]
        except openai.BadRequestError as error:
            # Some models refuse a temperature, or call the limit otherwise.
            refused = {name for name in options if name in str(error)} - set(self._required)
            if not refused:
                raise EndpointError(f"the {self._role} {self.model!r} refuses the request: {error}") from error
            self._refused |= refused
            return self.ask(messages, **more)
        except openai.AuthenticationError as error:
            raise EndpointError(f"the {self._role}'s endpoint refuses the key: set {self._names}") from error
        except openai.OpenAIError as error:
            where = self.url or "OpenAI's endpoint"
            raise EndpointError(
                f"the {self._role} {self.model!r} at {where} does not answer ({type(error).__name__}: {error}); what "
                "it said so far is kept: repeat the command when it does"
            ) from error
        if not done.choices:
            return Reply("", False, None)
        choice = done.choices[0]
        text, thought = choice.message.content or "", getattr(choice.message, "reasoning_content", None)
        tokens = done.usage.completion_tokens if done.usage else None
        whole = f"<think>\n{thought.strip()}\n</think>\n\n{text.lstrip()}" if thought else text
        return Reply(whole, choice.finish_reason == "stop", tokens)
