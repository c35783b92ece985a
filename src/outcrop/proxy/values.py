"""What goes into a customer's code and what comes out of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

JSON = "application/json"
EVENTS = "text/event-stream"
JSON_LINES = "application/jsonlines"
STREAMED = frozenset({EVENTS, JSON_LINES, "application/x-ndjson", "application/vnd.amazon.eventstream"})
CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"


class _Wishes(msgspec.Struct):
    stream: Any = False


_WISHES = msgspec.json.Decoder(_Wishes)


@dataclass(frozen=True, slots=True)
class Request:
    """One invocation. Header names are lower case."""

    body: bytes = field(repr=False)
    content_type: str = JSON
    accept: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    id: str = ""

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return _json(self.body)

    def text(self) -> str:
        """The body as UTF-8. Raises ValueError."""
        return self.body.decode()

    @property
    def custom_attributes(self) -> str:
        return self.headers.get(CUSTOM_ATTRIBUTES, "")

    @property
    def wants_stream(self) -> bool:
        """Whether the caller asked for the answer in parts: by Accept, or by ``"stream": true`` in a JSON body."""
        if self.accept.partition(";")[0].strip() in STREAMED:
            return True
        if b'"stream"' not in self.body or not self.content_type.startswith(JSON):
            return False
        try:
            return _WISHES.decode(self.body).stream is True
        except (msgspec.DecodeError, RecursionError):
            return False


@dataclass(slots=True)
class Response:
    """A whole answer."""

    body: bytes = field(repr=False)
    content_type: str = JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return _json(self.body)

    def text(self) -> str:
        """The body as UTF-8. Raises ValueError."""
        return self.body.decode()


@dataclass(slots=True)
class Streamed:
    """An answer in parts; the iterator is closed when the caller leaves."""

    parts: AsyncIterator[bytes] = field(repr=False)
    content_type: str = EVENTS
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except RecursionError:
        raise ValueError("JSON is nested too deeply") from None
