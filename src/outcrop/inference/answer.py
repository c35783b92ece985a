"""What every dialect offers, and the facts that an answer needs beside the generated text.

A body dialect is one object per format. The api asks it three things: what a body means, how a whole answer is
written, and how a streamed one is. No dialect reads a clock or makes an identifier; both come in here.
"""

from __future__ import annotations

from typing import Any, Protocol

from msgspec import Struct

from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, ModelFacts, Usage


class AnswerContext(Struct, frozen=True):
    """Facts of one request that its answer repeats."""

    request_id: str
    model_label: str  # "<account>-<model id>" through Bedrock, the name the caller used through the OpenAI API
    created: int  # seconds since the epoch
    include_usage: bool = False  # only of the OpenAI API: see openai_completion.include_usage


class Timings(Struct, frozen=True):
    """How long an invocation took; *first_byte_ms* is None when nothing was generated."""

    latency_ms: int
    first_byte_ms: int | None


class StreamEncoder(Protocol):
    """Writes one streamed answer, piece by piece. Not to be shared between requests."""

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        """What to send for *chunk*, or None. The piece that finishes the answer is held back for ``last``."""

    def last(self, usage: Usage, timings: Timings) -> dict[str, Any] | None:
        """The piece held back, which Bedrock's metrics may be merged into; None when no piece finished the answer."""

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        """What follows ``last`` when the caller asked for usage (``AnswerContext.include_usage``), else None."""


class BodyDialect(Protocol):
    """One format of InvokeModel bodies."""

    @property
    def name(self) -> str:
        """AWS's name of the format."""

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        """What *body* asks for; raises InvalidRequest. Parameters that the format does not know are ignored."""

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        """The whole answer."""

    def stream(self, ctx: AnswerContext) -> StreamEncoder:
        """A fresh encoder of one streamed answer."""


def invocation_metrics(usage: Usage, timings: Timings) -> dict[str, int]:
    """Value of "amazon-bedrock-invocationMetrics", which rides on the last chunk: four integers, always."""
    first_byte_ms = timings.latency_ms if timings.first_byte_ms is None else timings.first_byte_ms
    return {
        "inputTokenCount": usage.prompt_tokens,
        "outputTokenCount": usage.completion_tokens,
        "invocationLatency": timings.latency_ms,
        "firstByteLatency": first_byte_ms,
    }


def openai_usage(usage: Usage) -> dict[str, int]:
    """*usage* as the OpenAI formats write it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "completion_tokens": usage.completion_tokens,
    }
