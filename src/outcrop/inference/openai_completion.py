"""OpenAICompletion: ``prompt`` and ``max_tokens`` in, ``text_completion`` out.

Bedrock and the OpenAI API share it. Sources: AWS, "Invoke your imported model"; OpenAI, API reference, Completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings, openai_usage
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, ModelFacts, Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's; through Bedrock max_tokens is always there, being what selects the format
MAX_CHOICES = 8
MAX_LOGPROBS = 20


class OpenAICompletion:
    """The format of a body with ``prompt`` and ``max_tokens``."""

    name = "OpenAICompletion"

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        wanted: dict[str, Any] = {
            "prompt": _prompt(body),
            "max_tokens": fields.whole(body, "max_tokens", 1) or min(DEFAULT_MAX_TOKENS, model.context_tokens),
            **fields.sampling(body),
            "n": fields.whole(body, "n", 1, MAX_CHOICES),
            "logprobs": fields.whole(body, "logprobs", 0, MAX_LOGPROBS),
            "echo": fields.flag(body, "echo"),
            "response_format": fields.response_format(body, schema_may_be_bare=True),
            "structured_outputs": fields.structured_outputs(body),
        }
        return GenerateRequest(kind="completion", body=fields.without_none(wanted))

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        return {
            **_head(ctx),
            "choices": [_choice(c.index, c.text, c.logprobs, c.finish_reason) for c in completion.choices],
            "usage": openai_usage(completion.usage),
        }

    def stream(self, ctx: AnswerContext) -> OpenAICompletionStream:
        return OpenAICompletionStream(ctx)


class OpenAICompletionStream:
    """With several choices each has a finishing piece; only the last of them is held back."""

    def __init__(self, ctx: AnswerContext) -> None:
        self._ctx = ctx
        self._held: dict[str, Any] | None = None

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text and not chunk.logprobs and chunk.finish_reason is None:
            return None
        piece = _head(self._ctx) | {
            "choices": [_choice(chunk.index, chunk.text, chunk.logprobs, chunk.finish_reason)],
        }
        if self._ctx.include_usage:
            piece["usage"] = None
        if chunk.finish_reason is None:
            return piece
        released, self._held = self._held, piece
        return released

    def last(self, usage: Usage, timings: Timings) -> dict[str, Any] | None:
        return self._held

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        if not self._ctx.include_usage:
            return None
        return _head(self._ctx) | {"choices": [], "usage": openai_usage(usage)}


def include_usage(body: Mapping[str, Any]) -> bool:
    """Whether a streamed answer of the OpenAI API ends with a chunk of usage; for ``AnswerContext``."""
    options = fields.mapping(body, "stream_options") or {}
    return fields.flag(options, "include_usage") or False


def _prompt(body: Mapping[str, Any]) -> str | list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, str) and prompt:
        return prompt
    are_ids = isinstance(prompt, list) and all(type(item) is int and item >= 0 for item in prompt)
    if prompt and isinstance(prompt, list) and are_ids:
        return prompt
    # Batches of prompts are not taken: their choices would need indices of their own in every engine.
    raise fields.refusal("prompt", "one string or one list of token ids, not empty", prompt)


def _head(ctx: AnswerContext) -> dict[str, Any]:
    return {
        "id": f"cmpl-{ctx.request_id}",
        "object": "text_completion",
        "created": ctx.created,
        "model": ctx.model_label,
    }


def _choice(index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


OPENAI_COMPLETION = OpenAICompletion()
