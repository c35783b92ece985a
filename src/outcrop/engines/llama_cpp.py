"""llama.cpp, the CPU engine: how a copy is started, and the client of its OpenAI-shaped server."""

from __future__ import annotations

import asyncio
import base64
import math
import sys
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import structs

from outcrop.engines import http1
from outcrop.engines.base import Asleep, CopySpec, Endpoint
from outcrop.engines.choices import all_or_first_error, merged
from outcrop.engines.llama_cpp_request import CHAT, PLAIN, TEMPLATE_FIELDS, Plan, Template, plan, read_template
from outcrop.engines.occupancy import Occupancy, from_slots
from outcrop.engines.openai_answers import Reading, Spent, decode_answer, fault, read, refusal, status_of, whole_choice
from outcrop.engines.progress import from_prometheus
from outcrop.engines.prompt_logprobs import prompt_logprobs
from outcrop.errors import EngineFault, EngineTimeout, InvalidRequest, ServiceError
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, Usage
from outcrop.inference.embeddings import Embeddings, EmbedRequest

T = TypeVar("T")

NAME = "llama.cpp"
EMBEDDINGS = "/v1/embeddings"
MOST_SLOTS = 32
OWN_BYTES = 4 << 30  # memory of a copy beside cache and weights, at most
MOST_TEMPLATES = 256  # copies whose templates are remembered; an older one is asked again
_CONNECT_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 5.0
_OCCUPANCY_TIMEOUT_S = 2.0
# The server drops a connection that idles for 5 s; reusing one later than this could race with that.
_KEEP_CONNECTION_S = 2.0


def default_slots(context_tokens: int, kv_bytes_per_token: int, memory_bytes: int) -> int:
    """Requests a copy runs at a time, such that their full contexts fit a quarter of memory; 1 to 32."""
    per_slot = max(1, context_tokens * kv_bytes_per_token)
    return max(1, min(MOST_SLOTS, memory_bytes // 4 // per_slot))


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Vector(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: Spent


class _Count(msgspec.Struct):
    input_tokens: int


class _Props(msgspec.Struct):
    chat_template: str = ""
    chat_template_caps: dict[str, bool] = {}


class _Prompt(msgspec.Struct):
    prompt: str


class _Text(msgspec.Struct):
    content: str


_decode_tokens = msgspec.json.Decoder(_Tokens).decode
_decode_vectors = msgspec.json.Decoder(_Vectors).decode
_decode_count = msgspec.json.Decoder(_Count).decode
_decode_props = msgspec.json.Decoder(_Props).decode
_decode_prompt = msgspec.json.Decoder(_Prompt).decode
_decode_text = msgspec.json.Decoder(_Text).decode
_encode = msgspec.json.Encoder().encode


class LlamaCpp:
    """Client of all llama.cpp copies. Make it inside the event loop that uses it."""

    name = NAME
    can_tokenize = True
    # Tokens that follow each other faster than this are handled together. Each turn through the server costs as much as
    # several tokens do, and here it takes the processor from the engine. The first token never waits.
    gather_s = 0.012
    takes_arguments = False

    def __init__(self, *, request_timeout_s: float) -> None:
        self._request_timeout_s = request_timeout_s
        self._http: http1.Client | None = None
        self._templates: dict[Endpoint, Template] = {}

    def fitted(self, spec: CopySpec) -> CopySpec:
        return spec

    def asleep(self, spec: CopySpec) -> Sequence[Asleep]:
        return ()

    async def sleep(self, endpoint: Endpoint, level: int) -> None:
        raise EngineFault(f"{self.name} cannot sleep")

    async def wake(self, endpoint: Endpoint, level: int) -> None:
        raise EngineFault(f"{self.name} cannot sleep")

    def slots(self, spec: CopySpec, log: str) -> int | None:
        return None  # each of its slots has its own part of the cache

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
            # Beside cache and, where it packs them anew, weights: buffers of a batch, threads, prompts.
            "data_bytes": 2 * spec.kv_bytes + spec.weight_bytes + OWN_BYTES,
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
            answer = read(decode_answer, await response.read())
        if answer.error is not None:
            raise fault(status_of(answer.error), answer.error)
        if answer.usage is None or not answer.choices:
            raise EngineFault("the engine's answer has no token counts")
        usage = Usage(answer.usage.prompt_tokens, answer.usage.completion_tokens)
        said = answer.prompt_logprobs or answer.choices[0].prompt_logprobs  # of an engine that knows the field
        decode_ms = answer.timings.predicted_ms if answer.timings is not None else None
        return Completion(
            choices=[whole_choice(answer, how, index)],
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
        chunks_of = Reading(how, index).chunks
        async with self._ask(endpoint, how.path, body, reuse=False) as response:
            rest = b""
            async for data in response.parts(gather_s=self.gather_s, end=b"data: [DONE]"):
                *events, rest = (rest + data).split(b"\n\n")
                batch: list[Chunk] = []
                for event in events:
                    if not event.startswith(b"data: "):
                        continue  # a comment that keeps the connection open
                    if event == b"data: [DONE]":
                        if batch:
                            yield batch
                        return
                    answer = read(decode_answer, event[6:])
                    if answer.error is not None:
                        if batch:
                            yield batch
                        raise fault(status_of(answer.error), answer.error)
                    batch += chunks_of(answer)
                if batch:
                    yield batch
        raise EngineFault("the engine ended the stream before it was complete")

    async def count_tokens(self, endpoint: Endpoint, request: GenerateRequest) -> int:
        how = await self._plan(endpoint, request)
        if how.path == CHAT:
            async with self._ask(endpoint, CHAT + "/input_tokens", how.body) as response:
                return read(_decode_count, await response.read()).input_tokens
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
            found = _embeddings(read(_decode_vectors, await response.read()))
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
                props = read(_decode_props, await response.read())
            takes_tools = props.chat_template_caps.get("supports_tools", False)
            known = read_template(props.chat_template, takes_tools=takes_tools)
            while len(self._templates) >= MOST_TEMPLATES:
                self._templates.pop(next(iter(self._templates)))
            self._templates[endpoint] = known
        return known

    async def _rendered(self, endpoint: Endpoint, body: dict[str, Any]) -> str:
        """The text that the chat template makes of messages and tools."""
        async with self._ask(endpoint, "/apply-template", body) as response:
            return read(_decode_prompt, await response.read()).prompt

    async def tokenize(self, endpoint: Endpoint, text: str, *, add_special: bool = False) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        async with self._ask(endpoint, "/tokenize", body) as response:
            return read(_decode_tokens, await response.read()).tokens

    async def detokenize(self, endpoint: Endpoint, tokens: list[int]) -> str:
        async with self._ask(endpoint, "/detokenize", {"tokens": tokens}) as response:
            return read(_decode_text, await response.read()).content

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
                    raise refusal(response.status, await response.read())
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
