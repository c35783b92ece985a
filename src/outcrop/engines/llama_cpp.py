"""llama.cpp, the CPU engine: how a copy is started, and the client of its OpenAI-shaped server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from outcrop.engines import http1
from outcrop.engines.base import CopySpec, Endpoint
from outcrop.errors import EngineFault, EngineTimeout, InvalidRequest, PromptTooLong, ServiceError
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, Usage

T = TypeVar("T")

MOST_SLOTS = 32
_CONNECT_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 5.0
# The server drops a connection that idles for 5 s; reusing one later than this could race with that.
_KEEP_CONNECTION_S = 2.0
_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}


def default_slots(context_tokens: int, kv_bytes_per_token: int, memory_bytes: int) -> int:
    """Requests a copy runs at a time, such that their full contexts fit a quarter of memory; 1 to 32."""
    per_slot = max(1, context_tokens * kv_bytes_per_token)
    return max(1, min(MOST_SLOTS, memory_bytes // 4 // per_slot))


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Error(msgspec.Struct):
    code: int = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Answer(msgspec.Struct):
    """An answer or a streamed event, of chats and completions both."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_encode = msgspec.json.Encoder().encode


class LlamaCpp:
    """Client of all llama.cpp copies. Make it inside the event loop that uses it."""

    name = "llama.cpp"
    can_tokenize = True
    _extra_body: Mapping[str, Any] = {"cache_prompt": True}

    def __init__(self, *, request_timeout_s: float) -> None:
        self._request_timeout_s = request_timeout_s
        self._http: http1.Client | None = None

    def command(self, spec: CopySpec) -> list[str]:
        # -P: a file in the working directory must not shadow a module.
        return [sys.executable, "-P", "-m", "outcrop.engines.llama_cpp_child"]

    def child_config(self, spec: CopySpec, secret: str) -> bytes:
        config = {
            "model": str(spec.artifact),
            "secret": secret,
            "context_tokens": spec.context_tokens,
            "slots": spec.slots,
            "threads": spec.threads,
            "kv_f32": spec.kv_f32,
        }
        return _encode(config) + b"\n"

    async def is_ready(self, endpoint: Endpoint) -> bool:
        return await self._answers(endpoint, "/health") == 200

    async def complete(self, endpoint: Endpoint, request: GenerateRequest) -> Completion:
        body = {**self._extra_body, **request.body, "stream": False}
        async with self._post(endpoint, _PATHS[request.kind], body) as response:
            answer = _read(_decode_answer, await response.read())
        if answer.error is not None:
            raise _fault(answer.error.code, answer.error)
        if answer.usage is None:
            raise EngineFault("the engine's answer has no token counts")
        return Completion(
            choices=[_whole_choice(choice) for choice in answer.choices],
            usage=Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens),
        )

    async def stream(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        body = {**self._extra_body, **request.body, "stream": True, "stream_options": {"include_usage": True}}
        async with self._post(endpoint, _PATHS[request.kind], body, reuse=False) as response:
            rest = b""
            # One turn of the loop per network read, however many events it brought.
            async for data in response.parts():
                *events, rest = (rest + data).split(b"\n\n")
                for event in events:
                    if not event.startswith(b"data: "):
                        continue  # a comment that keeps the connection open
                    if event == b"data: [DONE]":
                        return
                    answer = _read(_decode_answer, event[6:])
                    if answer.error is not None:
                        raise _fault(answer.error.code, answer.error)
                    for chunk in _chunks(answer):
                        yield chunk
        raise EngineFault("the engine ended the stream before it was complete")

    async def tokenize(self, endpoint: Endpoint, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": True}
        async with self._post(endpoint, "/tokenize", body) as response:
            return _read(_decode_tokens, await response.read()).tokens

    async def aclose(self) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def _answers(self, endpoint: Endpoint, path: str) -> int:
        """The status of a GET of *path*; 0 when the copy cannot be reached."""
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                answer = await self._client().request("GET", endpoint.base_url, path, bearer=endpoint.secret)
                try:
                    await answer.read()
                finally:
                    answer.close()
        except (OSError, TimeoutError):
            return 0
        return answer.status

    def _client(self) -> http1.Client:
        if self._http is None:
            self._http = http1.Client(
                connect_timeout_s=_CONNECT_TIMEOUT_S,
                read_timeout_s=self._request_timeout_s,
                keep_s=_KEEP_CONNECTION_S,
            )
        return self._http

    @asynccontextmanager
    async def _post(
        self, endpoint: Endpoint, path: str, body: Mapping[str, Any], *, reuse: bool = True
    ) -> AsyncIterator[http1.Answer]:
        """A good response; the seam where every client exception and every error status becomes ours.

        Without *reuse* the connection ends with the answer. llama.cpp closes it after a stream although it says
        keep-alive, and a client that believed it would write its next request into a closed socket.
        """
        try:
            response = await self._client().request(
                "POST", endpoint.base_url, path, bearer=endpoint.secret, body=_encode(body), reuse=reuse
            )
            try:
                if response.status != 200:
                    raise _refusal(response.status, await response.read())
                yield response
            finally:
                # A response that was read to its end gives its connection back; closing any other one is what tells
                # the engine to stop generating.
                response.close()
        except TimeoutError as exc:
            raise EngineTimeout(f"the engine sent nothing for {self._request_timeout_s:g} s") from exc
        except OSError as exc:
            raise EngineFault(f"the connection to the engine broke: {exc or type(exc).__name__}") from exc


def _read(decode: Callable[[bytes], T], data: bytes) -> T:
    try:
        return decode(data)
    except msgspec.MsgspecError as exc:
        raise EngineFault(f"the engine's answer could not be read: {exc}") from exc


def _refusal(status: int, data: bytes) -> ServiceError:
    try:
        error = _decode_answer(data).error
    except msgspec.MsgspecError:
        error = None
    return _fault(status, error or _Error(code=status, message=data[:500].decode(errors="replace")))


def _fault(status: int, error: _Error) -> ServiceError:
    if error.type == "exceed_context_size_error":
        return PromptTooLong(
            f"The prompt has {error.n_prompt_tokens} tokens; this model's context holds {error.n_ctx} tokens. "
            "Shorten the prompt."
        )
    if status == 400:
        return InvalidRequest(error.message)
    return EngineFault(f"the engine answered {status}: {error.message}", engine_status=status)


def _whole_choice(choice: _Choice) -> Choice:
    message = choice.message or _Message(content=choice.text)
    return Choice(
        index=choice.index,
        text=message.content or "",
        finish_reason=choice.finish_reason,
        logprobs=choice.logprobs,
        tool_calls=message.tool_calls or None,
        reasoning=message.reasoning_content,
    )


def _chunks(answer: _Answer) -> list[Chunk]:
    usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else None
    if not answer.choices:
        return [Chunk(usage=usage)] if usage else []
    found = []
    for choice in answer.choices:
        delta = choice.delta or _Message(content=choice.text)
        chunk = Chunk(
            text=delta.content or "",
            finish_reason=choice.finish_reason,
            usage=usage,
            index=choice.index,
            logprobs=choice.logprobs,
            tool_calls=delta.tool_calls or None,
            reasoning=delta.reasoning_content,
        )
        if chunk != Chunk(index=choice.index):  # the first event only names the role
            found.append(chunk)
        usage = None
    return found
