"""Mistral's native format: ``prompt`` and ``max_tokens`` in, ``outputs`` out; for models that are set to it.

Source: AWS, "Mistral AI text completion"; defaults of the 7B Instruct model there.
"""

from __future__ import annotations

from typing import Any

from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings
from outcrop.inference.bedrock_completion import llama_stop_reason
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, ModelFacts, Usage

DEFAULT_MAX_TOKENS = 512
DEFAULT_TEMPERATURE = 0.5
DEFAULT_TOP_P = 0.9


class Mistral:
    """The format of a body with ``prompt`` when the model answers as Mistral's do."""

    name = "Mistral"

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        wanted: dict[str, Any] = {
            "prompt": fields.text(body, "prompt"),
            "temperature": DEFAULT_TEMPERATURE,
            "top_p": DEFAULT_TOP_P,
            **fields.sampling(body),
            "max_tokens": fields.whole(body, "max_tokens", 1) or min(DEFAULT_MAX_TOKENS, model.context_tokens),
        }
        return GenerateRequest(kind="completion", body=wanted)

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        return {"outputs": [_output(choice.text, choice.finish_reason) for choice in completion.choices]}

    def stream(self, ctx: AnswerContext) -> MistralStream:
        return MistralStream()


class MistralStream:
    def __init__(self) -> None:
        self._held: dict[str, Any] | None = None

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text and chunk.finish_reason is None:
            return None
        piece = {"outputs": [_output(chunk.text, chunk.finish_reason)]}
        if chunk.finish_reason is None:
            return piece
        self._held = piece
        return None

    def last(self, usage: Usage, timings: Timings) -> dict[str, Any] | None:
        return self._held

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        return None


def _output(text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"text": text, "stop_reason": llama_stop_reason(finish_reason)}


MISTRAL = Mistral()
