"""The event-stream framing (``application/vnd.amazon.eventstream``).

A frame is total length, header length, CRC-32 of those two, headers, payload, CRC-32 of all before; every number a
big-endian u32. A header is name length u8, name, type 7 (string), value length u16, value.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


class BrokenFrame(ValueError):
    """Bytes that are not an event stream: a checksum or a length does not fit."""


@dataclass(frozen=True, slots=True)
class Message:
    """One frame as it was read; of its headers those that are strings."""

    headers: Mapping[str, str]
    payload: bytes


class Decoder:
    """Frames out of bytes that arrive in parts of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The frames that *data* completes. Raises BrokenFrame."""
        self._buffer += data
        found = []
        while len(self._buffer) >= 12:
            total, header_length = _PRELUDE.unpack_from(self._buffer)
            if crc32(self._buffer[:8]) != _U32.unpack_from(self._buffer, 8)[0]:
                raise BrokenFrame("the checksum of a frame's beginning does not fit")
            if total < header_length + 16:
                raise BrokenFrame(f"a frame of {total} bytes cannot hold {header_length} bytes of headers")
            if len(self._buffer) < total:
                break
            frame = bytes(self._buffer[:total])
            del self._buffer[:total]
            if crc32(frame[:-4]) != _U32.unpack_from(frame, total - 4)[0]:
                raise BrokenFrame("the checksum of a frame does not fit")
            found.append(Message(_read_headers(frame[12 : 12 + header_length]), frame[12 + header_length : -4]))
        return found


# Sizes in bytes of header values by type; strings and byte arrays carry their own.
_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


def _read_headers(block: bytes) -> dict[str, str]:
    found, at = {}, 0
    try:
        while at < len(block):
            end = at + 1 + block[at]
            name, kind, at = block[at + 1 : end].decode(), block[end], end + 1
            if kind in _VALUE_BYTES:
                at += _VALUE_BYTES[kind]
                continue
            (length,) = struct.unpack_from(">H", block, at)
            if kind == 7:
                found[name] = block[at + 2 : at + 2 + length].decode()
            at += 2 + length
    except (IndexError, struct.error, UnicodeDecodeError) as exc:
        raise BrokenFrame(f"the headers of a frame do not parse: {exc}") from exc
    return found
