"""How a benchmark speaks to an endpoint: Bedrock, SageMaker or OpenAI, whole answers or streams.

Signing is arithmetic with a remembered day key, not a client library: one process must hold hundreds of streams and
its own work must not show in what it measures.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

from msgspec import Struct

from outcrop.awswire import sigv4

METRICS = "amazon-bedrock-invocationMetrics"
ENGINE = "x-outcrop-engine"
UNKNOWN = "the answer has no known form"


class Ask(Struct, frozen=True):
    """One request. *forced*: exactly *tokens_out* tokens must be answered (``ignore_eos``), else at most so many."""

    prompt: str
    tokens_out: int
    forced: bool = False


@dataclass(slots=True)
class Heard:
    """What an answer said so far. Tokens are the server's own count; None until it gave one."""

    has_text: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None
    error: str | None = None
    message: str = ""


class Endpoint(Protocol):
    """Where requests go. *region* prices are looked up for; the rest is the wire."""

    name: str
    model: str

    def request(self, ask: Ask) -> tuple[str, dict[str, str], bytes]:
        """URL, headers and body of a POST."""

    def hear(self) -> Hearing:
        """A reader of one answer."""


class Hearing(Protocol):
    def feed(self, data: bytes, heard: Heard) -> None: ...

    def end(self, heard: Heard) -> None: ...


@dataclass(frozen=True, slots=True)
class Keys:
    """AWS credentials."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


class _Signer:
    def __init__(self, keys: Keys, region: str, service: str) -> None:
        self._keys = keys
        self._region = region
        self._service = service
        self._day = ""
        self._key = b""

    def headers(self, url: str, body: bytes, content_type: str) -> dict[str, str]:
        parts, now = urlsplit(url), datetime.now(UTC)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        scope = sigv4.Scope(self._keys.access_key_id, day, self._region, self._service)
        if day != self._day:
            self._day, self._key = day, sigv4.signing_key(self._keys.secret_access_key, scope)
        headers = {"content-type": content_type, "host": parts.netloc, "x-amz-date": stamp}
        if self._keys.session_token:
            headers["x-amz-security-token"] = self._keys.session_token
        signed = sorted(headers)
        canonical = sigv4.canonical_request(
            "POST",
            sigv4.canonical_path(parts.path.encode()),
            "",
            sigv4.canonical_headers(signed, headers),
            signed,
            sha256(body).hexdigest(),
        )
        text = sigv4.string_to_sign(stamp, scope, canonical)
        headers["authorization"] = (
            f"{sigv4.ALGORITHM} Credential={self._keys.access_key_id}/{scope.text}, "
            f"SignedHeaders={';'.join(signed)}, Signature={sigv4.signature(self._key, text)}"
        )
        return headers


class _Signed:
    """What Bedrock's and SageMaker's endpoints share: a path below a URL, a signature, AWS's event stream."""

    name: str
    _path: str  # with {model} and {action}
    _actions: tuple[str, str]  # of a whole answer, of a stream

    def __init__(self, url: str, model: str, keys: Keys, region: str, *, stream: bool) -> None:
        self.model = model
        self._stream = stream
        path = self._path.format(model=quote(model, safe=""), action=self._actions[stream])
        self._url = f"{url.rstrip('/')}{path}"
        self._signer = _Signer(keys, region, self.name)

    def request(self, ask: Ask) -> tuple[str, dict[str, str], bytes]:
        body = json.dumps(self._body(ask)).encode()
        return self._url, self._signer.headers(self._url, body, "application/json"), body

    def hear(self) -> Hearing:
        return _EventStream() if self._stream else _Whole()

    def _body(self, ask: Ask) -> dict[str, Any]:
        raise NotImplementedError


class Bedrock(_Signed):
    """InvokeModel and InvokeModelWithResponseStream with ``prompt`` and ``max_tokens``."""

    name = "bedrock"
    _path = "/model/{model}/{action}"
    _actions = ("invoke", "invoke-with-response-stream")

    def _body(self, ask: Ask) -> dict[str, Any]:
        wanted: dict[str, Any] = {"prompt": ask.prompt, "max_tokens": ask.tokens_out, "temperature": 0}
        return wanted | ({"ignore_eos": True} if ask.forced else {})


class SageMaker(_Signed):
    """InvokeEndpoint and its stream, with the chat body that large-model containers take."""

    name = "sagemaker"
    _path = "/endpoints/{model}/{action}"
    _actions = ("invocations", "invocations-response-stream")

    def _body(self, ask: Ask) -> dict[str, Any]:
        return _chat(ask, stream=self._stream)


class OpenAI:
    """Chat completions with a bearer key."""

    name = "openai"

    def __init__(self, url: str, model: str, key: str, *, stream: bool) -> None:
        self.model = model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
        self._stream = stream

    def request(self, ask: Ask) -> tuple[str, dict[str, str], bytes]:
        body = {"model": self.model, **_chat(ask, stream=self._stream)}
        return self._url, self._headers, json.dumps(body).encode()

    def hear(self) -> Hearing:
        return _Sse() if self._stream else _Whole()


def _chat(ask: Ask, *, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": ask.prompt}],
        "max_tokens": ask.tokens_out,
        "temperature": 0,
    }
    if ask.forced:
        body["ignore_eos"] = True
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


class _Whole:
    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes, heard: Heard) -> None:
        self._parts.append(data)

    def end(self, heard: Heard) -> None:
        _take(b"".join(self._parts), heard)
        if not heard.has_text and heard.tokens_out is None and heard.error is None:
            heard.error = UNKNOWN


class _Sse:
    """Server-sent events; comments, which are heartbeats, are nothing."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, heard: Heard) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line.strip() != b"data: [DONE]":
                _take(line[5:], heard)

    def end(self, heard: Heard) -> None:
        # A first token may be one that has no text; then the count tells that it came.
        if not heard.has_text and not heard.tokens_out and heard.error is None:
            heard.error = "the stream ended before its first token"


class _EventStream:
    """AWS's event stream, by botocore's own decoder; an event of a type that no model names is a heartbeat."""

    def __init__(self) -> None:
        from botocore.eventstream import EventStreamBuffer

        self._buffer = EventStreamBuffer()
        self._sse = _Sse()

    def feed(self, data: bytes, heard: Heard) -> None:
        self._buffer.add_data(data)
        for event in self._buffer:
            headers, payload = event.headers, event.payload
            if headers.get(":message-type") in ("exception", "error"):
                heard.error = str(headers.get(":exception-type") or headers.get(":error-code"))
            elif headers.get(":event-type") == "chunk":
                _take(base64.b64decode(json.loads(payload)["bytes"]), heard)
            elif headers.get(":event-type") == "PayloadPart":
                self._part(payload, heard)

    def end(self, heard: Heard) -> None:
        self._sse.end(heard)

    def _part(self, payload: bytes, heard: Heard) -> None:
        """SageMaker wraps what the container streams: server-sent events, or JSON lines."""
        if payload.lstrip().startswith((b"data:", b":")) or not payload.lstrip().startswith(b"{"):
            self._sse.feed(payload, heard)
        else:
            _take(payload, heard)


def _take(raw: bytes, heard: Heard) -> None:
    """What one JSON document of an answer says, in whichever of the known forms it is."""
    try:
        said = json.loads(raw)
    except ValueError:
        heard.error = "the answer is not JSON"
        return
    if not isinstance(said, dict):
        heard.error = UNKNOWN
        return
    if said.get("error"):
        heard.error = "error in the answer"
    heard.has_text = heard.has_text or any(map(_is_text, _texts(said)))
    usage, metrics = _object(said.get("usage")), _object(said.get(METRICS))
    for field, found in (
        ("tokens_in", usage.get("prompt_tokens", metrics.get("inputTokenCount", said.get("prompt_token_count")))),
        (
            "tokens_out",
            usage.get("completion_tokens", metrics.get("outputTokenCount", said.get("generation_token_count"))),
        ),
    ):
        if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
            setattr(heard, field, found)


def _texts(said: dict[str, Any]) -> Iterator[Any]:
    yield said.get("generation")
    choices = said.get("choices")
    for choice in map(_object, choices if isinstance(choices, list) else ()):
        yield choice.get("text")
        for place in ("delta", "message"):
            yield _object(choice.get(place)).get("content")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


async def ask_once(session: Any, endpoint: Endpoint, ask: Ask, timeout_s: float) -> Answer:
    """Send *ask* on an aiohttp session and read the answer. Never raises for what the endpoint does."""
    import aiohttp
    from botocore.eventstream import ParserError
    from yarl import URL

    url, headers, body = endpoint.request(ask)
    heard, reader, sent = Heard(), endpoint.hear(), time.perf_counter()
    first: float | None = None
    status, engine = 0, ""
    try:
        target, limit = URL(url, encoded=True), aiohttp.ClientTimeout(total=timeout_s)
        async with session.post(target, data=body, headers=headers, timeout=limit) as response:
            status, engine = response.status, response.headers.get(ENGINE, "")
            if status != 200:
                refusal = await response.read()
                heard.error, heard.message = _named(response.headers, refusal, status), _message(refusal)
            else:
                async for piece in _pieces(response):
                    reader.feed(piece, heard)
                    if first is None and heard.has_text:
                        first = time.perf_counter()
                reader.end(heard)
    except TimeoutError:
        heard.error = "timeout"
    except aiohttp.ClientError as exc:
        heard.error = type(exc).__name__
    except (ParserError, ValueError, KeyError, TypeError):  # frames and events that are none
        heard.error = UNKNOWN
    return Answer(sent, first, time.perf_counter(), status, heard, engine)


async def _pieces(response: Any) -> AsyncIterator[bytes]:
    async for piece in response.content.iter_any():
        yield piece


def _named(headers: Any, body: bytes, status: int) -> str:
    """The error's own name, as each of the APIs gives it."""
    if kind := headers.get("x-amzn-errortype"):
        return str(kind).partition(":")[0]
    try:
        error = json.loads(body).get("error") or {}
        return str(error.get("code") or error.get("type") or f"HTTP {status}")
    except (ValueError, AttributeError):
        return f"HTTP {status}"


def _message(body: bytes) -> str:
    """What a person is told of the error."""
    try:
        said = json.loads(body)
        error = said.get("error")
        found = error.get("message") if isinstance(error, dict) else said.get("message") or said.get("Message")
    except (ValueError, AttributeError):
        found = None
    return str(found or "")[:300]


@dataclass(frozen=True, slots=True)
class Answer:
    """Times on ``time.perf_counter``; *first*: the first content token of a stream.

    *engine*: what a server of ours says of answers that no model made (``simulated``).
    """

    sent: float
    first: float | None
    last: float
    status: int
    heard: Heard
    engine: str = ""
