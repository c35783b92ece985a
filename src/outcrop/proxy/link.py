"""Messages between the front and its workers over one socket pair each.

A frame is its length (big-endian u32) and a MessagePack array. Bodies cross whole; parts of a stream are bounded by
credit, so that a caller who reads slowly holds the script back and nothing piles up in between.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

_LENGTH = struct.Struct(">I")
WINDOW_BYTES = 262_144  # of one stream that may be on their way


class Begin(msgspec.Struct, array_like=True, tag="begin"):
    """To a worker, first of all: what to load and whom to forward to."""

    config: dict[str, Any]


class Sign(msgspec.Struct, array_like=True, tag="sign"):
    """To a worker: the keys to sign with from now on."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    bearer: str


class Invoke(msgspec.Struct, array_like=True, tag="invoke"):
    """To a worker: run this. *left_s* until the caller's deadline, and until that of a stream."""

    id: int
    request_id: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    left_s: float
    stream_left_s: float


class Cancel(msgspec.Struct, array_like=True, tag="cancel"):
    """To a worker: nobody waits for this one any more."""

    id: int


class Credit(msgspec.Struct, array_like=True, tag="credit"):
    """To a worker: so many bytes of this stream were taken."""

    id: int
    size: int


class Ready(msgspec.Struct, array_like=True, tag="ready"):
    """From a worker: the script is loaded."""

    dialect: str
    seconds: float


class Broken(msgspec.Struct, array_like=True, tag="broken"):
    """From a worker: the script cannot be loaded; it ends now."""

    message: str


class Whole(msgspec.Struct, array_like=True, tag="whole"):
    """From a worker: an answer. *target_s* of its time was spent waiting for the target.

    *is_cut*: the deadline passed; Gone follows once nothing runs for it any more.
    """

    id: int
    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    target_s: float
    error: str = ""
    is_cut: bool = False


class Head(msgspec.Struct, array_like=True, tag="head"):
    """From a worker: an answer in parts begins."""

    id: int
    status: int
    headers: Sequence[tuple[str, str]]


class Part(msgspec.Struct, array_like=True, tag="part"):
    id: int
    body: bytes


class End(msgspec.Struct, array_like=True, tag="end"):
    """From a worker: an answer in parts is over; *error* when it broke."""

    id: int
    target_s: float
    error: str
    is_cut: bool = False


class Gone(msgspec.Struct, array_like=True, tag="gone"):
    """From a worker: nothing runs for this cancelled invocation any more."""

    id: int


Message = Begin | Sign | Invoke | Cancel | Credit | Ready | Broken | Whole | Head | Part | End | Gone
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Message)


class Link(asyncio.Protocol):
    """One end of the socket pair. *heard* gets every message, *lost* is called once at the end."""

    def __init__(self, heard: Callable[[Any], None], lost: Callable[[], None]) -> None:
        self._heard = heard
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()

    def send(self, message: Message) -> None:
        """Write *message*; silently nothing when the other end is gone, which ``lost`` tells."""
        if self._transport is not None and not self._transport.is_closing():
            data = _ENCODER.encode(message)
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= 4:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            if len(self._buffer) - at - 4 < length:
                break
            message = _DECODER.decode(memoryview(self._buffer)[at + 4 : at + 4 + length])
            at += 4 + length
            self._heard(message)
        if at:
            del self._buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost()
