"""BedrockCompletion, the Llama-native format: ``prompt`` and ``max_gen_len`` in, ``generation`` out.

Source: AWS, "Invoke your imported model" and "Advanced API features for imported models".
"""

from __future__ import annotations

from typing import Any

from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, ModelFacts, Usage

DEFAULT_MAX_GEN_LEN = 512
DEFAULT_TEMPERATURE = 0.5
DEFAULT_TOP_P = 0.9

_TOKEN_ID_PREFIX = "token_id:"  # noqa: S105  # how vLLM spells an id where OpenAI's format has a token


class BedrockCompletion:
    """The format of a body with ``prompt`` and without ``max_tokens``."""

    name = "BedrockCompletion"

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        # max_tokens only where the model is set to this format whatever the body's keys; see route.
        max_gen_len = fields.whole(body, "max_gen_len", 1) or fields.whole(body, "max_tokens", 1)
        wanted: dict[str, Any] = {
            "prompt": fields.text(body, "prompt"),
            "temperature": DEFAULT_TEMPERATURE,
            "top_p": DEFAULT_TOP_P,
            **fields.sampling(body),
            # A default may not ask for more than the model has; what the caller asks for is passed on as it is.
            "max_tokens": max_gen_len or min(DEFAULT_MAX_GEN_LEN, model.context_tokens),
        }
        response_format = fields.response_format(body, schema_may_be_bare=True)
        if response_format is not None:
            wanted["response_format"] = response_format
        if fields.flag(body, "return_logprobs"):
            # vLLM gives ids only when asked with the second; llama.cpp always gives them and ignores it.
            wanted |= {"logprobs": 1, "return_tokens_as_token_ids": True}
        return GenerateRequest(kind="completion", body=wanted)

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        choice = completion.choices[0]
        return {
            "generation": choice.text,
            "prompt_token_count": completion.usage.prompt_tokens,
            "generation_token_count": completion.usage.completion_tokens,
            "stop_reason": llama_stop_reason(choice.finish_reason),
            "logprobs": _logprobs(choice.logprobs),
        }

    def stream(self, ctx: AnswerContext) -> BedrockCompletionStream:
        return BedrockCompletionStream()


class BedrockCompletionStream:
    """Counts as it goes: ``generation_token_count`` is the total so far.

    Until the engine reports usage the count is the number of pieces with text (or of their logprobs), which is
    never more than the tokens generated; the last piece has the engine's own count. ``prompt_token_count`` is sent
    once: with the first piece when the engine has reported it by then, else with the last.
    """

    def __init__(self) -> None:
        self._generated_tokens = 0
        self._is_first = True
        self._prompt_was_counted = False
        self._held: Chunk | None = None

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        if chunk.finish_reason is not None:
            self._held = chunk
            return None
        if not chunk.text and not chunk.logprobs:
            return None
        logprobs = _logprobs(chunk.logprobs)
        if chunk.usage is not None:
            self._generated_tokens = chunk.usage.completion_tokens
        else:
            self._generated_tokens += len(logprobs) if logprobs else 1
        prompt_tokens = chunk.usage.prompt_tokens if chunk.usage is not None and self._is_first else None
        self._is_first = False
        return self._piece(chunk.text, prompt_tokens, None, logprobs)

    def last(self, usage: Usage, timings: Timings) -> dict[str, Any] | None:
        held = self._held or Chunk()
        self._generated_tokens = usage.completion_tokens
        prompt_tokens = None if self._prompt_was_counted else usage.prompt_tokens
        return self._piece(held.text, prompt_tokens, llama_stop_reason(held.finish_reason), _logprobs(held.logprobs))

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        return None

    def _piece(
        self, text: str, prompt_tokens: int | None, stop_reason: str | None, logprobs: list[dict[str, float]] | None
    ) -> dict[str, Any]:
        self._prompt_was_counted |= prompt_tokens is not None
        piece: dict[str, Any] = {
            "generation": text,
            "prompt_token_count": prompt_tokens,
            "generation_token_count": self._generated_tokens,
            "stop_reason": stop_reason,
        }
        if logprobs is not None:
            piece["logprobs"] = logprobs
        return piece


def llama_stop_reason(finish_reason: str | None) -> str | None:
    """ "length" or "stop", the two that Llama's and Mistral's formats have; None while the answer goes on."""
    if finish_reason is None:
        return None
    return "length" if finish_reason == "length" else "stop"


def _logprobs(logprobs: Any) -> list[dict[str, float]] | None:
    """One single-entry object per generated token, token id (as a string) to logprob; None when there are none.

    Reads both forms that engines answer with: ``{"content": [{"token", "logprob", "id"?}]}`` (llama.cpp on both
    endpoints, OpenAI chat) and ``{"tokens": [...], "token_logprobs": [...]}`` (OpenAI completion). A token written
    "token_id:42" (vLLM) gives 42. Where the engine gives no id at all, the token's text is the key.
    """
    if not logprobs:
        return None
    content = logprobs.get("content")
    if content is not None:
        return [{_key(entry.get("id"), entry["token"]): entry["logprob"]} for entry in content]
    pairs = zip(logprobs.get("tokens") or [], logprobs.get("token_logprobs") or [], strict=True)
    return [{_key(None, token): logprob} for token, logprob in pairs]


def _key(token_id: int | None, token: str) -> str:
    return str(token_id) if token_id is not None else token.removeprefix(_TOKEN_ID_PREFIX)


BEDROCK_COMPLETION = BedrockCompletion()
