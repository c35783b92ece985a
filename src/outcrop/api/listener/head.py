"""The head of a message, as bytes: what HTTP/1.1 answers begin with, and what a request's target says. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_FIRST_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def encode_head(status: int, *headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Status line and *headers*. Raises ValueError for a header that would begin another one."""
    lines = [_FIRST_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    for some in headers:
        for name, value in some:
            lines.append(b"%b: %b\r\n" % (name, value))
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise ValueError(f"a header of the answer holds a control character: {head[:200]!r}")
    return head


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Raw path and raw query of a request's target, also where it names scheme and host (RFC 9112, 3.2.2)."""
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and b"://" in path:
        _, _, rest = path.partition(b"://")
        _, slash, after = rest.partition(b"/")
        path = slash + after or b"/"
    return path, query
