"""The one form between the dialects and the engines: every dialect reads into it and writes out of it.

The request keeps OpenAI's field names, because every engine speaks them; the answer is reduced to what dialects use.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class Usage(Struct, frozen=True):
    """Tokens counted by the engine."""

    prompt_tokens: int
    completion_tokens: int


class Choice(Struct, frozen=True):
    """One finished answer; ``text`` is empty when the model only called tools."""

    index: int
    text: str
    finish_reason: str | None
    logprobs: Any = None
    tool_calls: list[Any] | None = None
    reasoning: str | None = None
    stop_sequence: str | None = None  # the one that ended the answer, where the engine says so
    prompt_logprobs: list[Any] | None = None  # of the prompt that this answers; see Completion
    echo: str | None = None  # the prompt, where it was asked for before the answer


class Completion(Struct, frozen=True):
    """A whole answer, not streamed."""

    choices: list[Choice]
    usage: Usage
    prompt_logprobs: list[Any] | None = None  # vLLM's form: an object for each token of the prompt, null for the first
    decode_s: float | None = None  # from the first token to the last, where the engine says so


class Chunk(Struct, frozen=True):
    """A piece of a streamed answer. The last one carries ``usage``; one may carry nothing else."""

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    index: int = 0
    logprobs: Any = None
    tool_calls: list[Any] | None = None
    reasoning: str | None = None
    stop_sequence: str | None = None


class GenerateRequest(Struct, frozen=True):
    """What to generate: an OpenAI body of that kind, without ``model`` and ``stream``.

    *width*: how many of its choices may run at a time.
    """

    kind: Literal["chat", "completion"]
    body: dict[str, Any]
    width: int = 1


class ModelFacts(Struct, frozen=True):
    """What a dialect must know about the model to judge a request."""

    model_id: str
    arn: str
    account: str
    name: str
    context_tokens: int
    has_chat_template: bool
    dialect: str | None = None  # what bodies with "prompt" are answered in; None: what their keys select
    takes_images: bool = False
    embeds: bool = False  # gives embeddings and generates nothing
