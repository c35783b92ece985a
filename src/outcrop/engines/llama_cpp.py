"""llama.cpp, the CPU engine: how a copy is started, and the client of its OpenAI-shaped server."""

from __future__ import annotations

import asyncio
import base64
import math
import sys
import uuid
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from outcrop.engines import http1
from outcrop.engines.answer_text import Piece
from outcrop.engines.base import CopySpec, Endpoint
from outcrop.engines.choices import all_or_first_error, merged
from outcrop.engines.llama_cpp_request import CHAT, PLAIN, TEMPLATE_FIELDS, Plan, Template, plan, read_template
from outcrop.engines.occupancy import Occupancy, from_slots
from outcrop.engines.progress import from_prometheus
from outcrop.engines.prompt_logprobs import prompt_logprobs
from outcrop.engines.tool_text import joined
from outcrop.errors import EngineFault, EngineTimeout, InvalidRequest, PromptTooLong, ServiceError
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, Usage
from outcrop.inference.embeddings import Embeddings, EmbedRequest

T = TypeVar("T")

NAME = "llama.cpp"
EMBEDDINGS = "/v1/embeddings"
MOST_SLOTS = 32
MOST_TEMPLATES = 256  # copies whose templates are remembered; an older one is asked again
_CONNECT_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 5.0
_OCCUPANCY_TIMEOUT_S = 2.0
# The server drops a connection that idles for 5 s; reusing one later than this could race with that.
_KEEP_CONNECTION_S = 2.0
# Tokens that follow each other faster than this are handled together: each turn through the server costs as much as
# several tokens do, and nobody reads 250 tokens a second. The first token never waits.
_GATHER_S = 0.004


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
    reasoning: str | None = None  # vLLM's name for it
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # of vLLM: the stop sequence that matched, or the id of an end token
    logprobs: Any = None
    prompt_logprobs: list[Any] | None = None


class _Error(msgspec.Struct):
    code: int | str | None = 500
    message: str = ""
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _Verbose(msgspec.Struct):
    """What the engine says beside the answer when asked for more."""

    stop_type: str = ""
    stopping_word: str = ""


class _Timings(msgspec.Struct):
    predicted_ms: float | None = None


class _Answer(msgspec.Struct):
    """An answer or a streamed event, of chats and completions both."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    timings: _Timings | None = None
    verbose: _Verbose | None = msgspec.field(default=None, name="__verbose")
    prompt_logprobs: list[Any] | None = None


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Vector(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage


class _Count(msgspec.Struct):
    input_tokens: int


class _Props(msgspec.Struct):
    chat_template: str = ""
    chat_template_caps: dict[str, bool] = {}


class _Prompt(msgspec.Struct):
    prompt: str


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_decode_props = msgspec.json.Decoder(_Props).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_encode = msgspec.json.Encoder().encode


class LlamaCpp:
    """Client of all llama.cpp copies. Make it inside the event loop that uses it."""

    name = NAME
    can_tokenize = True

    def __init__(self, *, request_timeout_s: float) -> None:
        self._request_timeout_s = request_timeout_s
        self._http: http1.Client | None = None
        self._templates: dict[Endpoint, Template] = {}

    def fitted(self, spec: CopySpec) -> CopySpec:
        return spec

    def asleep(self, spec: CopySpec) -> CopySpec | None:
        return None

    async def sleep(self, endpoint: Endpoint) -> None:
        raise EngineFault(f"{self.name} cannot sleep")

    async def wake(self, endpoint: Endpoint) -> None:
        raise EngineFault(f"{self.name} cannot sleep")

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
            "pooling": spec.pooling,
        }
        return _encode(config) + b"\n"

    def stage(self, log: str) -> str | None:
        return None

    def stage_seconds(self, log: str) -> dict[str, float]:
        return {}

    async def is_ready(self, endpoint: Endpoint) -> bool:
        return await self._answers(endpoint, "/health") == 200

    async def progress(self, endpoint: Endpoint) -> float | None:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S), self._ask(endpoint, "/metrics") as response:
                return from_prometheus((await response.read()).decode(errors="replace"))
        except TimeoutError as exc:
            raise EngineTimeout(f"the engine said nothing for {_PROBE_TIMEOUT_S:g} s") from exc
        except EngineFault as exc:
            if exc.engine_status is None:
                raise
            return None  # it answers, but has no such page
        except InvalidRequest:
            return None

    async def complete(self, endpoint: Endpoint, request: GenerateRequest) -> Completion:
        how = await self._plan(endpoint, request)
        whole = await self._complete_choices(endpoint, how, request.width)
        top = request.body.get("prompt_logprobs")
        # Afterwards, so that the answer is the same with and without them.
        return whole if top is None else await self._with_prompt_logprobs(endpoint, how, whole, top)

    async def _complete_choices(self, endpoint: Endpoint, how: Plan, width: int) -> Completion:
        if how.choices == 1:
            return await self._complete(endpoint, how, 0)
        # Each choice is a request of its own: the engine would count the tokens of one only.
        each = await all_or_first_error([self._complete(endpoint, how, index) for index in range(how.choices)], width)
        return Completion(
            choices=[whole.choices[0] for whole in each],
            usage=Usage(each[0].usage.prompt_tokens, sum(whole.usage.completion_tokens for whole in each)),
            prompt_logprobs=each[0].prompt_logprobs,
            decode_s=max((whole.decode_s for whole in each if whole.decode_s is not None), default=None),
        )

    async def _with_prompt_logprobs(self, endpoint: Endpoint, how: Plan, whole: Completion, top: int) -> Completion:
        tokens = await self._prompt_tokens(endpoint, how)
        if len(tokens) != whole.usage.prompt_tokens:
            raise EngineFault(f"the engine read {whole.usage.prompt_tokens} tokens of a prompt of {len(tokens)}")
        (writable, *_) = await self.tokenize(endpoint, "a")
        ask = partial(self._ask, endpoint, reuse=False)
        found = await prompt_logprobs(ask, tokens, top, writable=writable)
        return structs.replace(whole, prompt_logprobs=found)

    async def _prompt_tokens(self, endpoint: Endpoint, how: Plan) -> list[int]:
        """What the engine reads for *how*."""
        if how.path == CHAT:
            template = {key: how.body[key] for key in TEMPLATE_FIELDS if key in how.body}
            prompt: str | list[int] = await self._rendered(endpoint, template)
        else:
            prompt = how.body["prompt"]
        return prompt if isinstance(prompt, list) else await self.tokenize(endpoint, prompt, add_special=True)

    async def _complete(self, endpoint: Endpoint, how: Plan, index: int) -> Completion:
        async with self._ask(endpoint, how.path, how.of_choice(index) | {"stream": False}) as response:
            answer = _read(_decode_answer, await response.read())
        if answer.error is not None:
            raise _fault(_status(answer.error), answer.error)
        if answer.usage is None or not answer.choices:
            raise EngineFault("the engine's answer has no token counts")
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        said = answer.prompt_logprobs or answer.choices[0].prompt_logprobs  # of an engine that knows the field
        decode_ms = answer.timings.predicted_ms if answer.timings is not None else None
        return Completion(
            choices=[_whole_choice(answer, how, index)],
            usage=usage,
            prompt_logprobs=said,
            decode_s=None if decode_ms is None else decode_ms / 1000,
        )

    def stream(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
        is_one = (request.body.get("n") or 1) == 1
        return self._stream(endpoint, request) if is_one else self._stream_several(endpoint, request)

    async def _stream_several(self, endpoint: Endpoint, request: GenerateRequest) -> AsyncGenerator[list[Chunk], None]:
        how = await self._plan(endpoint, request)
        prompt_tokens, completion_tokens = 0, 0
        streams = [self._stream(endpoint, request, how, index) for index in range(how.choices)]
        async with aclosing(merged(streams, request.width)) as batches:
            async for batch in batches:
                kept = []
                for chunk in batch:
                    if chunk.usage is not None:
                        prompt_tokens = chunk.usage.prompt_tokens
                        completion_tokens += chunk.usage.completion_tokens
                        chunk = structs.replace(chunk, usage=None)
                    if chunk != Chunk(index=chunk.index):
                        kept.append(chunk)
                if kept:
                    yield kept
        yield [Chunk(usage=Usage(prompt_tokens, completion_tokens))]

    async def _stream(
        self, endpoint: Endpoint, request: GenerateRequest, how: Plan | None = None, index: int = 0
    ) -> AsyncGenerator[list[Chunk], None]:
        """Choice *index* of *request*, asked as *how* says, by default as planned here."""
        how = how or await self._plan(endpoint, request)
        body = how.of_choice(index) | {"stream": True, "stream_options": {"include_usage": True}}
        chunks_of = _Reading(how, index).chunks
        async with self._ask(endpoint, how.path, body, reuse=False) as response:
            rest = b""
            async for data in response.parts(gather_s=_GATHER_S, end=b"data: [DONE]"):
                *events, rest = (rest + data).split(b"\n\n")
                batch: list[Chunk] = []
                for event in events:
                    if not event.startswith(b"data: "):
                        continue  # a comment that keeps the connection open
                    if event == b"data: [DONE]":
                        if batch:
                            yield batch
                        return
                    answer = _read(_decode_answer, event[6:])
                    if answer.error is not None:
                        if batch:
                            yield batch
                        raise _fault(_status(answer.error), answer.error)
                    batch += chunks_of(answer)
                if batch:
                    yield batch
        raise EngineFault("the engine ended the stream before it was complete")

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        how = await self._plan(endpoint, request)
        if how.path == CHAT:
            async with self._ask(endpoint, CHAT + "/input_tokens", how.body) as response:
                return _read(_decode_count, await response.read()).input_tokens
        return len(await self._prompt_tokens(endpoint, how))

    async def embed(self, endpoint: Endpoint, request: EmbedRequest, *, normalize: bool) -> Embeddings:
        """So many inputs at a time as there are slots for: each takes one of the engine's."""
        vectors: list[bytes] = []
        tokens = 0
        # 2 is the Euclidean norm; llama.cpp reads it beside OpenAI's own fields.
        body = {"encoding_format": "base64", "embd_normalize": 2 if normalize else -1}
        for begin in range(0, len(request.inputs), request.width):
            some = request.inputs[begin : begin + request.width]
            found = await self._vectors(endpoint, body | {"input": some}, len(some))
            vectors += found.vectors
            tokens += found.prompt_tokens
        return Embeddings(vectors=vectors, prompt_tokens=tokens)

    async def _vectors(self, endpoint: Endpoint, body: Mapping[str, Any], count: int) -> Embeddings:
        async with self._ask(endpoint, EMBEDDINGS, body) as response:
            found = _embeddings(_read(_decode_vectors, await response.read()))
        if len(found.vectors) != count:
            raise EngineFault(f"the engine gave {len(found.vectors)} embeddings for {count} inputs")
        return found

    async def _plan(self, endpoint: Endpoint, request: GenerateRequest) -> Plan:
        template = await self._template(endpoint) if request.kind == "chat" else PLAIN
        how = plan(request, template)
        return how if how.template is None else how.rendered(await self._rendered(endpoint, how.template))

    async def _template(self, endpoint: Endpoint) -> Template:
        """What the copy's chat template says; asked once of each copy."""
        known = self._templates.get(endpoint)
        if known is None:
            async with self._ask(endpoint, "/props") as response:
                props = _read(_decode_props, await response.read())
            takes_tools = props.chat_template_caps.get("supports_tools", False)
            known = read_template(props.chat_template, takes_tools=takes_tools)
            while len(self._templates) >= MOST_TEMPLATES:
                self._templates.pop(next(iter(self._templates)))
            self._templates[endpoint] = known
        return known

    async def _rendered(self, endpoint: Endpoint, body: dict[str, Any]) -> str:
        """The text that the chat template makes of messages and tools."""
        async with self._ask(endpoint, "/apply-template", body) as response:
            return _read(_decode_prompt, await response.read()).prompt

    async def tokenize(self, endpoint: Endpoint, text: str, *, add_special: bool = False) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        async with self._ask(endpoint, "/tokenize", body) as response:
            return _read(_decode_tokens, await response.read()).tokens

    async def occupancy(self, endpoint: Endpoint) -> Occupancy | None:
        page = await self._page(endpoint, "/slots")
        return None if page is None else from_slots(page)

    async def _page(self, endpoint: Endpoint, path: str) -> bytes | None:
        """The body of a GET of *path*; None when it is refused, late or unreachable."""
        try:
            async with asyncio.timeout(_OCCUPANCY_TIMEOUT_S), self._ask(endpoint, path) as response:
                return await response.read()
        except (ServiceError, TimeoutError):
            return None

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
    async def _ask(
        self, endpoint: Endpoint, path: str, body: Mapping[str, Any] | None = None, *, reuse: bool = True
    ) -> AsyncIterator[http1.Answer]:
        """A good response; the seam where every client exception and every error status becomes ours.

        Without *body* a GET. Without *reuse* the connection ends with the answer: llama.cpp closes it after a stream
        although it says keep-alive, and a client that believed it would write its next request into a closed socket.
        """
        try:
            method, data = ("GET", b"") if body is None else ("POST", _encode(body))
            response = await self._client().request(
                method, endpoint.base_url, path, bearer=endpoint.secret, body=data, reuse=reuse
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


def _embeddings(answer: _Vectors) -> Embeddings:
    vectors = [
        base64.b64decode(item.embedding) if isinstance(item.embedding, str) else array("f", item.embedding).tobytes()
        for item in sorted(answer.data, key=lambda item: item.index)
    ]
    if not all(math.isfinite(value) for vector in vectors for value in array("f", vector)):
        raise EngineFault("the engine's embedding is not a number: the weights are damaged or overflow")
    return Embeddings(vectors=vectors, prompt_tokens=answer.usage.prompt_tokens)


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


def _status(error: _Error) -> int:
    """The HTTP status that an error inside an answer stands for; other engines write words there."""
    return error.code if isinstance(error.code, int) else 500


def _fault(status: int, error: _Error) -> ServiceError:
    if error.type == "exceed_context_size_error":
        return PromptTooLong(
            f"The prompt has {error.n_prompt_tokens} tokens; this model's context holds {error.n_ctx} tokens. "
            "Shorten the prompt."
        )
    if status == 400 and "maximum context length" in error.message:  # vLLM and SGLang
        return PromptTooLong(f"{error.message.rstrip('.')}. Shorten the prompt.")
    # What the template or the reader of messages minds comes as a 500, but is the caller's.
    if status == 400 or error.message.startswith(("Failed to parse messages", "Failed to parse tools")):
        _, refused, why = error.message.partition("Jinja Exception: ")
        return InvalidRequest(f"The model's chat template refuses the messages: {why}" if refused else error.message)
    return EngineFault(f"the engine answered {status}: {error.message}", engine_status=status)


# What a token that ends within a character is shown as. An answer that its length cuts there ends before it.
_HALF_CHARACTER = "\ufffd"


def _whole_choice(answer: _Answer, how: Plan, index: int) -> Choice:
    choice = answer.choices[0]
    message = choice.message or _Message(content=choice.text)
    text, calls, finish_reason = message.content or "", message.tool_calls or [], choice.finish_reason
    if finish_reason == "length":
        text = text.rstrip(_HALF_CHARACTER)
    reasoning = message.reasoning_content or message.reasoning
    reader = how.reader()
    if reader is not None:
        read = _joined([reader.feed(text), reader.finish()])
        text, calls, reasoning = read.text, joined(_with_ids(read.calls)), read.reasoning or None
        finish_reason = _finish_reason(finish_reason, called_tools=bool(calls))
    return Choice(
        index=index,
        text=text,
        finish_reason=finish_reason,
        logprobs=_trimmed(choice.logprobs, how.top_logprobs),
        tool_calls=calls or None,
        reasoning=reasoning,
        stop_sequence=_stop_sequence(answer),
    )


def _joined(pieces: list[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        [call for piece in pieces for call in piece.calls],
        "".join(piece.reasoning for piece in pieces),
    )


class _Reading:
    """Turns the events of one streamed answer into chunks."""

    def __init__(self, how: Plan, index: int) -> None:
        self._index = index
        self._top_logprobs = how.top_logprobs
        self._reader = how.reader()
        self._called_tools = False
        self._held = ""  # half a character at the end: part of the answer only when something follows

    def chunks(self, answer: _Answer) -> list[Chunk]:
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else None
        if not answer.choices:
            return [Chunk(usage=usage, index=self._index)] if usage else []
        choice = answer.choices[0]
        delta = choice.delta or _Message(content=choice.text)
        text, calls, finish_reason = delta.content or "", delta.tool_calls, choice.finish_reason
        reasoning = delta.reasoning_content or delta.reasoning
        if self._held or text.endswith(_HALF_CHARACTER):
            text = self._held + text
            whole = text.rstrip(_HALF_CHARACTER)
            self._held, text = (text[len(whole) :], whole) if finish_reason in (None, "length") else ("", text)
        if self._reader is not None:
            read = self._reader.feed(text)
            if finish_reason is not None:
                read = _joined([read, self._reader.finish()])
            text, calls, reasoning = read.text, _with_ids(read.calls), read.reasoning or None
            self._called_tools |= bool(calls)
            finish_reason = _finish_reason(finish_reason, called_tools=self._called_tools)
        chunk = Chunk(
            text=text,
            finish_reason=finish_reason,
            usage=usage,
            index=self._index,
            logprobs=_trimmed(choice.logprobs, self._top_logprobs),
            tool_calls=calls or None,
            reasoning=reasoning,
            stop_sequence=_stop_sequence(answer),
        )
        return [chunk] if text or chunk != Chunk(index=self._index) else []  # the first event only names the role


def _with_ids(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """*calls* with an id where a call begins; later deltas of it have none."""
    return [{"id": f"call_{uuid.uuid4().hex[:24]}", **call} if "type" in call else call for call in calls]


def _finish_reason(reason: str | None, *, called_tools: bool) -> str | None:
    return "tool_calls" if called_tools and reason == "stop" else reason


def _stop_sequence(answer: _Answer) -> str | None:
    matched = answer.choices[0].stop_reason
    if isinstance(matched, str):
        return matched
    verbose = answer.verbose
    return verbose.stopping_word if verbose is not None and verbose.stop_type == "word" else None


def _from_older(logprobs: Mapping[str, Any]) -> dict[str, Any]:
    """The form of chats, of what engines other than llama.cpp say in OpenAI's older form of completions."""
    tokens, values = logprobs.get("tokens") or [], logprobs.get("token_logprobs") or []
    alternatives = logprobs.get("top_logprobs") or [None] * len(tokens)
    content = [
        {
            **_entry(token, value),
            "top_logprobs": [_entry(other, logprob) for other, logprob in (others or {}).items()],
        }
        for token, value, others in zip(tokens, values, alternatives, strict=False)
    ]
    return {"content": content}


def _entry(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _trimmed(logprobs: Any, top: int | None) -> Any:
    """*logprobs* with *top* alternatives a token; the engine cannot be asked for none."""
    if not logprobs or top is None:
        return None
    if "content" not in logprobs:
        logprobs = _from_older(logprobs)
    content = [{**entry, "top_logprobs": entry.get("top_logprobs", [])[:top]} for entry in logprobs["content"]]
    return {"content": content}
