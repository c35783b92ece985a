"""OpenAICompletion: ``prompt`` and ``max_tokens`` in, ``text_completion`` out.

Bedrock and the OpenAI API share it. Sources: AWS, "Invoke your imported model"; OpenAI, API reference, Completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest
from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings, openai_usage
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, ModelFacts, Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's; through Bedrock max_tokens is always there, being what selects the format
MAX_CHOICES = 8
MAX_LOGPROBS = 20
MAX_PROMPTS = 256  # of one request


class OpenAICompletion:
    """The format of a body with ``prompt`` and ``max_tokens``."""

    name = "OpenAICompletion"

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        _refuse_unsupported(body)
        echo = fields.flag(body, "echo") or None
        max_tokens = fields.whole(body, "max_tokens", 0 if echo else 1)
        logprobs = fields.whole(body, "logprobs", 0, MAX_LOGPROBS)
        prompt_logprobs = fields.whole(body, "prompt_logprobs", 0, MAX_LOGPROBS)
        _refuse_in_streams(body, max_tokens, logprobs if echo else None)
        wanted: dict[str, Any] = {
            **_prompts(body),
            "echo": echo,
            "max_tokens": min(DEFAULT_MAX_TOKENS, model.context_tokens) if max_tokens is None else max_tokens,
            **fields.sampling(body),
            "n": fields.whole(body, "n", 1, MAX_CHOICES),
            "logprobs": logprobs,
            "prompt_logprobs": logprobs if echo and prompt_logprobs is None else prompt_logprobs,
            "response_format": fields.response_format(body, schema_may_be_bare=True),
            "structured_outputs": fields.structured_outputs(body),
        }
        return GenerateRequest(kind="completion", body=fields.without_none(wanted))

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        return {
            **_head(ctx),
            "choices": [_whole_choice(choice) for choice in completion.choices],
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


def _prompts(body: Mapping[str, Any]) -> dict[str, Any]:
    """``prompt``, or ``prompts`` when there are several."""
    given = body.get("prompt")
    if _is_prompt(given):
        return {"prompt": given}
    if not isinstance(given, list) or not given or not all(map(_is_prompt, given)):
        rule = "a string, a list of token ids, or a list of several of these, none of them empty"
        raise fields.refusal("prompt", rule, given)
    if len(given) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(given)} prompts; at most {MAX_PROMPTS} are taken", param="prompt")
    return {"prompt": given[0]} if len(given) == 1 else {"prompts": given}


def _is_prompt(given: Any) -> bool:
    if isinstance(given, list):
        return bool(given) and all(type(item) is int and item >= 0 for item in given)
    return isinstance(given, str) and bool(given)


def _head(ctx: AnswerContext) -> dict[str, Any]:
    return {
        "id": f"cmpl-{ctx.request_id}",
        "object": "text_completion",
        "created": ctx.created,
        "model": ctx.model_label,
    }


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse what would change the answer and cannot be done, rather than leave it out."""
    if body.get("suffix"):
        raise InvalidRequest("suffix is not supported; leave it out", param="suffix")
    best_of = fields.whole(body, "best_of", 1)
    if best_of is not None and best_of != (body.get("n") or 1):
        raise fields.refusal("best_of", "the same as n", best_of)


def _refuse_in_streams(body: Mapping[str, Any], max_tokens: int | None, echoed_logprobs: int | None) -> None:
    if not fields.flag(body, "stream"):
        return
    if max_tokens == 0:
        raise InvalidRequest("max_tokens 0 gives nothing to stream; leave stream out", param="max_tokens")
    if echoed_logprobs is not None:
        raise InvalidRequest(
            "log-probabilities of an echoed prompt are not available when the answer is streamed", param="logprobs"
        )


def _whole_choice(choice: Choice) -> dict[str, Any]:
    if choice.echo is None:
        found = _choice(choice.index, choice.text, _logprobs(choice.logprobs, 0), choice.finish_reason)
        # vLLM's place for them in this format
        return found if choice.prompt_logprobs is None else found | {"prompt_logprobs": choice.prompt_logprobs}
    logprobs = choice.logprobs
    if choice.prompt_logprobs is not None:
        logprobs = {"content": [*_echoed(choice), *((logprobs or {}).get("content") or [])]}
    return _choice(choice.index, choice.echo + choice.text, _logprobs(logprobs, 0), choice.finish_reason)


def _echoed(choice: Choice) -> list[dict[str, Any]]:
    """The tokens of the prompt that *choice* begins with, in the form of an answer's log-probabilities.

    Nothing comes before the first, so it has the log-probability None; its text is what the others leave of the prompt.
    """
    rows = [_echoed_token(row) for row in (choice.prompt_logprobs or [])[1:] if row]
    rest = "".join(row["token"] for row in rows)
    echo = choice.echo or ""
    first = echo.removesuffix(rest) if rest and echo.endswith(rest) else ""
    return [{"token": first if rest or len(rows) else echo, "logprob": None, "top_logprobs": []}, *rows]


def _echoed_token(row: dict[str, Any]) -> dict[str, Any]:
    own, *_ = row.values()
    others = sorted(row.values(), key=lambda entry: -entry["logprob"])
    top = [{"token": entry["decoded_token"], "logprob": entry["logprob"]} for entry in others]
    return {"token": own["decoded_token"], "logprob": own["logprob"], "top_logprobs": top}


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
        "top_logprobs": [_alternatives(entry) for entry in logprobs["content"]],
        "text_offset": offsets,
    }


def _alternatives(entry: Mapping[str, Any]) -> dict[str, float] | None:
    if entry["logprob"] is None:
        return None
    return {other["token"]: other["logprob"] for other in entry.get("top_logprobs") or []}


def _choice(index: int, text: str, logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


OPENAI_COMPLETION = OpenAICompletion()
