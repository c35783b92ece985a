"""Variants that are answered elsewhere: by an endpoint of SageMaker (AWS's or another server's), or by an OpenAI API.

No script runs for them and no process: bodies go on as they are. So the old way of a migration stays reachable behind
the same endpoint name as the new one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import msgspec

from outcrop.awswire.eventstream import BrokenFrame, Decoder
from outcrop.awswire.sigv4 import Keys, Scope, head
from outcrop.engines.http1 import Answer, Client
from outcrop.errors import InvalidRequest
from outcrop.ids import random_id
from outcrop.serving.invocation import JSON, Invocation, Reply
from outcrop.serving.urls import http_url

TARGET, TARGET_URL = "OUTCROP_PROXY_TARGET", "OUTCROP_PROXY_ENDPOINT_URL"  # of a variant that runs a proxy
TO = "OUTCROP_FORWARD_TO"
URL = "OUTCROP_FORWARD_URL"
REGION = "OUTCROP_FORWARD_REGION"
KEY = "OUTCROP_FORWARD_KEY"
_KINDS = ("sagemaker", "openai")
_KEEP_S, _CONNECT_S, _READ_S = 30.0, 5.0, 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a variant's invocations go. *name*: an endpoint, or the model that an OpenAI API is asked for."""

    kind: str
    name: str
    url: str
    region: str
    keys: Keys


def destination(environment: Mapping[str, str], region: str) -> Destination | None:
    """What a model's Environment names as its destination; None for one that forwards to an imported model.

    *region*: the server's, unless the Environment names another. Raises InvalidRequest for what makes no sense.
    """
    told = environment.get(TO)
    if not told:
        return None
    kind, _, name = told.partition(":")
    if kind not in _KINDS or not name:
        raise InvalidRequest(f"{TO}={told} is neither sagemaker:<endpoint> nor openai:<model>.")
    region = environment.get(REGION, region)
    keys = Keys(
        environment.get("AWS_ACCESS_KEY_ID", ""),
        environment.get("AWS_SECRET_ACCESS_KEY", ""),
        environment.get("AWS_SESSION_TOKEN", ""),
        environment.get(KEY, ""),
    )
    url = environment.get(URL, f"https://runtime.sagemaker.{region}.amazonaws.com" if kind == "sagemaker" else "")
    parts = http_url(url)
    if parts is None or parts.query or parts.fragment:
        raise InvalidRequest(f"{URL}={url or '(nothing)'} is no http(s) base URL, which {TO}={kind}:... needs.")
    if kind == "sagemaker" and not (keys.bearer or (keys.access_key_id and keys.secret_access_key)):
        raise InvalidRequest(f"{TO}={told} needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the Environment.")
    return Destination(kind=kind, name=name, url=url.rstrip("/"), region=region, keys=keys)


class Forward:
    """One destination as a copy of a variant."""

    def __init__(self, to: Destination) -> None:
        self.to = to
        self.in_flight = 0
        self.requests = 0
        self.copy_id = f"fw-{random_id(9)}"
        self.is_ready = True
        tls = ssl.create_default_context() if to.url.startswith("https") else None
        self._client = Client(connect_timeout_s=_CONNECT_S, read_timeout_s=_READ_S, keep_s=_KEEP_S, tls=tls)
        parts = urlsplit(to.url)
        self._base, self._host, self._prefix = f"{parts.scheme}://{parts.netloc}", parts.netloc, parts.path

    async def send(self, client: Client, asked: Invocation) -> Reply:
        """See ``Answerer``; *client* is for loopback only and not used."""
        if self.to.kind == "openai":
            return await self._openai(asked)
        return await self._sagemaker(asked)

    async def _openai(self, asked: Invocation) -> Reply:
        body, path = asked.body, "/chat/completions"
        try:
            found = msgspec.json.decode(body)
        except msgspec.DecodeError:
            found = None
        if isinstance(found, dict):
            if "messages" not in found:
                path = "/completions"
            body = msgspec.json.encode({**found, "model": self.to.name})
        key = f"Authorization: Bearer {self.to.keys.bearer}\r\n" if self.to.keys.bearer else ""
        trace = "".join(f"{n}: {v}\r\n" for n, v in asked.passed.items() if n in ("traceparent", "tracestate"))
        lines = f"{key}Content-Type: {JSON}\r\n{trace}"
        return await self._client.send("POST", self._base, self._prefix + path, head=lines, body=body)

    async def _sagemaker(self, asked: Invocation) -> Reply:
        operation = "invocations-response-stream" if asked.is_stream else "invocations"
        path = f"{self._prefix}/endpoints/{quote(self.to.name, safe='')}/{operation}"
        timestamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        signed = head(
            self.to.keys,
            method="POST",
            host=self._host,
            raw_path=path,
            content_type=asked.content_type,
            body=asked.body,
            timestamp=timestamp,
            scope=Scope(self.to.keys.access_key_id, timestamp[:8], self.to.region, "sagemaker"),
        )
        accept = "X-Amzn-SageMaker-Accept" if asked.is_stream else "Accept"
        lines = f"{signed}{accept}: {asked.accept}\r\n" if asked.accept else signed
        lines += "".join(f"{name}: {value}\r\n" for name, value in asked.passed.items())
        answer = await self._client.send("POST", self._base, path, head=lines, body=asked.body)
        if answer.status != 200:
            return await _container_answer(answer)
        return _Unwrapped(answer) if asked.is_stream else answer

    async def stop(self, grace_s: float) -> None:
        await self._client.aclose()


class _Whole:
    """An answer that was read."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self._headers = headers
        self._body = body

    def headers(self) -> dict[str, str]:
        return self._headers

    async def read(self) -> bytes:
        return self._body

    async def parts(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    def close(self) -> None:
        return None


async def _container_answer(answer: Answer) -> Reply:
    """An error of the endpoint as the one that its container gave, where it says so; else as it is."""
    try:
        body, headers = await answer.read(), answer.headers()
    finally:
        answer.close()
    try:
        found = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.MsgspecError:
        found = {}
    status = found.get("OriginalStatusCode")
    if answer.status == 424 and isinstance(status, int) and 400 <= status < 600:
        return _Whole(status, {"content-type": JSON}, str(found.get("OriginalMessage", "")).encode())
    return _Whole(answer.status, headers, body)


class _Unwrapped:
    """The bytes inside an event stream of SageMaker."""

    def __init__(self, answer: Answer) -> None:
        self.status = 200
        self._answer = answer

    def headers(self) -> dict[str, str]:
        said = self._answer.headers()
        return {**said, "content-type": said.get("x-amzn-sagemaker-content-type", JSON)}

    async def read(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def parts(self) -> AsyncGenerator[bytes, None]:
        decoder = Decoder()
        try:
            async with aclosing(self._answer.parts()) as parts:
                async for part in parts:
                    for message in decoder.feed(part):
                        if message.headers.get(":message-type") != "event":
                            raise ConnectionError("the endpoint broke its stream off")
                        yield message.payload
        except BrokenFrame as exc:
            raise ConnectionError(f"the endpoint's stream cannot be read: {exc}") from exc

    def close(self) -> None:
        self._answer.close()
