"""The last requests: the newest in memory, more of them in two files of bounded size.

A record is one line of JSON (``RequestRecord``). Lines reach the file once a second, written by a thread; a server that
is killed loses those of its last second. When the current file has half the bytes that are granted, it becomes the
older one (``.1``) and the one before that goes.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from outcrop.telemetry.requests import RequestRecord

log = structlog.get_logger(__name__)

FLUSH_S = 1.0
MOST_PENDING = 20_000  # lines that wait for the disk; more are dropped and counted

_decode = msgspec.json.Decoder(RequestRecord).decode
_encode = msgspec.json.Encoder().encode


class RequestLog:
    """*path*: the current file; None or no *most_bytes* keeps records in memory only. *kept*: of them in memory."""

    def __init__(self, path: Path | None, *, most_bytes: int, kept: int) -> None:
        self._path = path if most_bytes > 0 else None
        self._most_bytes = most_bytes
        self._most_kept = kept
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._pending: list[bytes] = []
        self._is_failing = False
        self._may_be_torn = True
        self.dropped = 0  # records that no file holds although one should

    def keep(self, record: RequestRecord) -> None:
        line = _encode(record)
        self._kept[record.request_id] = line
        if len(self._kept) > self._most_kept:
            self._kept.popitem(last=False)
        if self._path is not None:
            if len(self._pending) < MOST_PENDING:
                self._pending.append(line)
            else:
                self.dropped += 1

    def recent(self) -> Iterator[RequestRecord]:
        """Records in memory, the newest first."""
        return map(_decode, reversed(self._kept.values()))

    async def find(self, request_id: str) -> RequestRecord | None:
        """The record of that id, from memory or the files."""
        line = self._kept.get(request_id)
        if line is None and self._path is not None:
            line = await asyncio.to_thread(self._search, request_id)
        return None if line is None else _decode(line)

    def attempts_of(self, invocation_id: str, account: str) -> list[RequestRecord]:
        """Records in memory of one invocation, which an SDK may have tried several times; the oldest first."""
        wanted = _encode(invocation_id)
        found = (_decode(line) for line in list(self._kept.values()) if wanted in line)
        return [record for record in found if record.invocation_id == invocation_id and record.account == account]

    async def run(self) -> None:
        """Write what has come, once a second, until it is cancelled; then write the rest."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                await self.flush()
        finally:
            self._write(self._taken())

    async def flush(self) -> None:
        if self._pending:
            await asyncio.to_thread(self._write, self._taken())

    def _taken(self) -> list[bytes]:
        taken, self._pending = self._pending, []
        return taken

    def _write(self, lines: list[bytes]) -> None:
        if not lines or self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "ab") as file:
                # What a full disk or a crash cut off ends here.
                file.write(b"\n" * (self._may_be_torn and file.tell() > 0) + b"\n".join(lines) + b"\n")
                size = file.tell()
            if size >= self._most_bytes // 2:
                self._path.replace(self._older)
            self._is_failing = self._may_be_torn = False
        except OSError as exc:
            self.dropped += len(lines)
            self._may_be_torn = True
            if not self._is_failing:
                self._is_failing = True
                log.warning("request records cannot be written", path=str(self._path), reason=str(exc))

    @property
    def _older(self) -> Path:
        assert self._path is not None
        return self._path.with_name(self._path.name + ".1")

    def _search(self, request_id: str) -> bytes | None:
        assert self._path is not None
        wanted = b'"request_id":' + _encode(request_id)
        for path in (self._path, self._older):
            with suppress(OSError), path.open("rb") as file:
                for line in file:
                    if wanted in line:
                        with suppress(msgspec.MsgspecError):
                            if _decode(line).request_id == request_id:
                                return line
        return None
