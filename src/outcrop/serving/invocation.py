"""One invocation of an endpoint on its way to whoever answers it, and that answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from outcrop.engines.http1 import Client

JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """*passed*: the headers of InvokeEndpoint that reach a container, by lower-case name."""

    body: bytes = field(repr=False)
    content_type: str = JSON
    accept: str = ""
    passed: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_stream: bool = False

    def lines(self) -> str:
        """Its header lines."""
        accept = f"Accept: {self.accept}\r\n" if self.accept else ""
        passed = "".join(f"{name}: {value}\r\n" for name, value in self.passed.items())
        return f"Content-Type: {self.content_type}\r\n{accept}{passed}"


class Reply(Protocol):
    """An answer that begins; read it whole or in parts, then close it."""

    @property
    def status(self) -> int: ...

    def headers(self) -> dict[str, str]: ...

    async def read(self) -> bytes: ...

    def parts(self) -> AsyncGenerator[bytes, None]: ...

    def close(self) -> None: ...


class Answerer(Protocol):
    """A copy of a variant, as an invocation sees it. *in_flight* is counted by who asks."""

    in_flight: int
    requests: int

    @property
    def copy_id(self) -> str: ...

    @property
    def is_ready(self) -> bool: ...

    async def send(self, client: Client, asked: Invocation) -> Reply:
        """The head of the answer. Raises OSError and TimeoutError."""

    async def stop(self, grace_s: float) -> None:
        """End it; what runs gets *grace_s*."""
