"""OpenAICompletion: ``prompt`` and ``max_tokens`` in, ``text_completion`` out.

Bedrock and the OpenAI API share it. Sources: AWS, "Invoke your imported model"; OpenAI, API reference, Completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest
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
        _refuse_unsupported(body)
        wanted: dict[str, Any] = {
            "prompt": _prompt(body),
            "max_tokens": fields.whole(body, "max_tokens", 1) or min(DEFAULT_MAX_TOKENS, model.context_tokens),
            **fields.sampling(body),
            "n": fields.whole(body, "n", 1, MAX_CHOICES),
            "logprobs": fields.whole(body, "logprobs", 0, MAX_LOGPROBS),
            "prompt_logprobs": fields.whole(body, "prompt_logprobs", 0, MAX_LOGPROBS),
            "response_format": fields.response_format(body, schema_may_be_bare=True),
            "structured_outputs": fields.structured_outputs(body),
        }
        return GenerateRequest(kind="completion", body=fields.without_none(wanted))

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        choices = [_choice(c.index, c.text, _logprobs(c.logprobs, 0), c.finish_reason) for c in completion.choices]
        if completion.prompt_logprobs is not None:  # vLLM's place for them in this format
            choices = [choice | {"prompt_logprobs": completion.prompt_logprobs} for choice in choices]
        return {
            **_head(ctx),
            "choices": choices,
            "usage": openai_usage(completion.usage),
        }

    def stream(self, ctx: AnswerContext) -> OpenAICompletionStream:
        return OpenAICompletionStream(ctx)


class OpenAICompletionStream:
    """With several choices each has a finishing piece; only the last of them is held back."""

    def __init__(self, ctx: AnswerContext) -> None:
        self._ctx = ctx
        self._held: dict[str, Any] | None = None
        self._offsets: dict[int, int] = {}  # choice -> characters sent

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.text and not chunk.logprobs and chunk.finish_reason is None:
            return None
        logprobs = None
        if chunk.logprobs:
            offset = self._offsets.get(chunk.index, 0)
            logprobs = _logprobs(chunk.logprobs, offset)
            self._offsets[chunk.index] = offset + len(chunk.text)
        piece = _head(self._ctx) | {"choices": [_choice(chunk.index, chunk.text, logprobs, chunk.finish_reason)]}
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


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse what would change the answer and cannot be done, rather than leave it out."""
    if fields.flag(body, "echo"):
        raise InvalidRequest("echo is not supported; put the prompt before the answer yourself", param="echo")
    if body.get("suffix"):
        raise InvalidRequest("suffix is not supported; leave it out", param="suffix")
    best_of = fields.whole(body, "best_of", 1)
    if best_of is not None and best_of != (body.get("n") or 1):
        raise fields.refusal("best_of", "the same as n", best_of)


def _logprobs(logprobs: Any, offset: int) -> dict[str, Any] | None:
    """*logprobs* in the older form of this API; the first token's text begins *offset* characters into the answer."""
    if not logprobs:
        return None
    if "content" not in logprobs:
        return dict(logprobs)  # an engine that writes this form itself
    tokens, offsets = [], []
    for entry in logprobs["content"]:
        tokens.append(entry["token"])
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": tokens,
        "token_logprobs": [entry["logprob"] for entry in logprobs["content"]],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in entry.get("top_logprobs") or []}
            for entry in logprobs["content"]
        ],
        "text_offset": offsets,
    }


def _choice(index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


OPENAI_COMPLETION = OpenAICompletion()
