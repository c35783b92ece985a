"""The event-stream framing (``application/vnd.amazon.eventstream``).

A frame is total length, header length, CRC-32 of those two, headers, payload, CRC-32 of all before; every number a
big-endian u32. A header is name length u8, name, type 7 (string), value length u16, value.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from zlib import crc32

import msgspec

_PRELUDE = struct.Struct(">II")
_U32 = struct.Struct(">I")


def encode_message(headers: Sequence[tuple[str, str]], payload: bytes) -> bytes:
    return _frame(_header_block(tuple(headers)), payload)


def encode_event(event_type: str, payload: bytes, content_type: str = "application/json") -> bytes:
    headers = ((":event-type", event_type), (":content-type", content_type), (":message-type", "event"))
    return _frame(_header_block(headers), payload)


def encode_chunk(content: bytes) -> bytes:
    """The ``chunk`` event of InvokeModelWithResponseStream around a piece of the model's JSON."""
    return encode_event("chunk", b'{"bytes":"' + base64.b64encode(content) + b'"}')


def encode_exception(exception_type: str, message: str, extra: Mapping[str, Any] | None = None) -> bytes:
    """A modelled failure inside an open stream; *exception_type* is camelCase, as SDKs expect it."""
    headers = (
        (":exception-type", exception_type),
        (":content-type", "application/json"),
        (":message-type", "exception"),
    )
    return _frame(_header_block(headers), msgspec.json.encode({"message": message, **(extra or {})}))


def _frame(headers: bytes, payload: bytes) -> bytes:
    prelude = _PRELUDE.pack(len(headers) + len(payload) + 16, len(headers))
    start = prelude + _U32.pack(crc32(prelude))
    body = start + headers + payload
    return body + _U32.pack(crc32(body))


@lru_cache(maxsize=256)
def _header_block(headers: tuple[tuple[str, str], ...]) -> bytes:
    block = b""
    for name, value in headers:
        raw_name, raw_value = name.encode(), value.encode()
        block += bytes([len(raw_name)]) + raw_name + b"\x07" + struct.pack(">H", len(raw_value)) + raw_value
    return block
