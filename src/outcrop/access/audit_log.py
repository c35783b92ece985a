"""The audit log's one writer: append, rotate, forget what is old enough, mend what a crash tore.

A record is in the operating system's hands (``write``) before the call is answered, so that a killed server loses none
of an answered call; it is on the disk (``fdatasync``) within SYNC_S. A write that fails loses the record, says so and
counts it; the next record that can be written is preceded by one that says how many were lost.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

from outcrop.access.audit_chain import GENESIS, HEAD, Entry, Head, files, line_of, mac_of, parse, read_head
from outcrop.errors import BadSetting

log = structlog.get_logger(__name__)

KEY_FILE = "audit.key"
SYNC_S = 1.0
_DAY_S = 86400.0
_EXPIRE_EVERY_S = 3600.0
_encode = msgspec.json.Encoder().encode


def load_key(path: Path, *, create: bool = False) -> bytes:
    """The chain's key. Raises BadSetting when it is absent (unless *create*), open to others or no key."""
    try:
        if create and not path.exists():
            part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        if path.stat().st_mode & 0o077:
            raise BadSetting(f"{path} can be read by others; make it private: chmod 600 {path}")
        found = bytes.fromhex(path.read_text().strip())
    except FileNotFoundError as exc:
        raise BadSetting(f"{path} does not exist; without it the audit log cannot be verified.") from exc
    except (OSError, ValueError) as exc:
        raise BadSetting(f"{path} cannot be read as a key of 64 hexadecimal digits: {exc}") from exc
    if len(found) != 32:
        raise BadSetting(f"{path} holds {len(found)} bytes; a key has 32 (64 hexadecimal digits).")
    return found


class AuditLog:
    """Used by one thread, the event loop's; only syncing is done by others.

    *file_bytes*: size from which a new file is begun. *keep_days*, *most_bytes*: age and size in all from which whole
    files are removed, the oldest first; 0: never.
    """

    def __init__(
        self, folder: Path, key: bytes, *, file_bytes: int, keep_days: float = 0, most_bytes: int = 0, account: str = ""
    ) -> None:
        self._folder = folder
        self._key = key
        self._file_bytes = file_bytes
        self._keep_days = keep_days
        self._most_bytes = most_bytes
        self._account = account
        self._n, self._mac = 0, GENESIS
        self._base = (0, GENESIS)
        self._handle = -1
        self._size = 0
        self._retired: list[int] = []  # files that are full, not synced yet
        self._head_n = -1
        self._head_lock = threading.Lock()
        self._unsaid = 0  # records lost since the last one that was written
        self.written = self.lost = 0
        self._open()

    # -- writing -----------------------------------------------------------------------------------

    def append(self, record: dict[str, Any]) -> None:
        """Add one record of CloudTrail's shape. Never raises: what cannot be written is lost and counted."""
        self.append_encoded(_encode(record))

    def note(self, name: str, more: dict[str, Any]) -> None:
        """Add a record of the server about itself."""
        self.append(self._own(name, more))

    def append_encoded(self, record: bytes) -> None:
        """``append`` for a record that is one JSON object already."""
        if self._unsaid:
            lost = self._unsaid
            if not self._write(_encode(self._own("AuditRecordsLost", {"records": lost}))):
                self._lose()
                return
            self._unsaid = 0
        if not self._write(record):
            self._lose()
        elif self._size >= self._file_bytes:
            self._rotate()

    def _write(self, record: bytes) -> bool:
        n = self._n + 1
        mac = mac_of(self._key, n, self._mac, record)
        line = line_of(n, self._mac, mac, record)
        try:
            if self._handle < 0:
                self._begin_file()
            if os.write(self._handle, line) != len(line):
                os.ftruncate(self._handle, self._size)
                return False
        except OSError:
            return False
        self._n, self._mac = n, mac
        self._size += len(line)
        self.written += 1
        return True

    def _lose(self) -> None:
        if not self._unsaid:
            log.error("audit records cannot be written", folder=str(self._folder))
        self._unsaid += 1
        self.lost += 1

    def _own(self, name: str, more: dict[str, Any]) -> dict[str, Any]:
        """A record of the log about itself."""
        return {
            "eventVersion": "1.11",
            "userIdentity": {"type": "AWSService", "invokedBy": "outcrop"},
            "eventTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "eventSource": "outcrop",
            "eventName": name,
            "eventID": str(uuid.uuid4()),
            "readOnly": False,
            "eventType": "AwsServiceEvent",
            "managementEvent": True,
            "recipientAccountId": self._account,
            "eventCategory": "Management",
            "additionalEventData": more,
        }

    # -- files -------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Find the end of the chain; cut a torn last line off; note what is not as the head says."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        head = read_head(self._folder)
        is_foreign = head is not None and not head.is_sealed_by(self._key)
        if head is None or is_foreign:
            head = Head()
        self._base = (head.base_n, head.base_mac)
        last, torn = self._mend()
        if last is not None:
            self._n, self._mac = last.n, last.mac
        elif head.base_n:
            self._n, self._mac = self._base
        told: dict[str, Any] = {"tornBytes": torn} if torn else {}
        if is_foreign:
            told["headOfAnotherKey"] = True
        if self._n < head.n:
            # Numbers go on behind the head, so that the gap shows for ever.
            told |= {"missingFrom": self._n + 1, "missingTo": head.n}
            self._n, self._mac = head.n, head.mac
            log.error("audit records are missing", first=told["missingFrom"], last=told["missingTo"])
        if torn:
            log.warning("the last line of the audit log was torn and is cut off", bytes=torn)
        self.append(self._own("AuditLogOpened", told))
        self.sync()

    def _mend(self) -> tuple[Entry | None, int]:
        """The last whole record, and how many torn bytes behind it were removed."""
        torn = 0
        for path in reversed(files(self._folder)):
            with path.open("r+b") as file:
                content = _tail(file)
                whole = content.rfind(b"\n") + 1
                if whole < len(content):
                    torn += len(content) - whole
                    file.truncate(path.stat().st_size - (len(content) - whole))
                lines = content[:whole].splitlines()
            if lines:
                self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                self._size = path.stat().st_size
                last = next((entry for line in reversed(lines) if (entry := parse(line))), None)
                if last is None or parse(lines[-1]) is None:  # somebody's doing; verify will say where
                    log.error("the audit log ends with lines that are no records", file=path.name)
                return last, torn
            path.unlink()
        return None, torn

    def _begin_file(self) -> None:
        path = self._folder / f"{self._n + 1:016d}.jsonl"
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._handle).st_size

    def _rotate(self) -> None:
        self._retired.append(self._handle)
        self._handle = -1
        log.info("audit head", head=f"{self._n}:{self._mac}")  # wherever this log goes, the chain is held there too
        self.expire(time.time())

    def expire(self, now: float) -> int:
        """Remove whole files that are too old at *now* (seconds since the epoch) or too many; how many went."""
        found = files(self._folder)
        current = found[-1] if found and self._handle >= 0 else None
        sizes = {path: path.stat().st_size for path in found}
        going = []
        for path in found:
            if path == current:
                break
            is_old = self._keep_days > 0 and path.stat().st_mtime < now - self._keep_days * _DAY_S
            is_too_much = self._most_bytes > 0 and sum(sizes.values()) > self._most_bytes
            if not (is_old or is_too_much):
                break
            going.append(path)
            del sizes[path]
        if going:
            with going[-1].open("rb") as file:
                lines = _tail(file).splitlines()
            last = parse(lines[-1]) if lines else None
            if last is None:  # broken: it stays as evidence
                log.error("an audit file that should go is broken and stays", file=going[-1].name)
                return 0
            self._base = (last.n, last.mac)
            self._write_head(
                self._head()
            )  # first: a crash then leaves files too many, not a chain without its beginning
            for path in going:
                path.unlink()
            self.append(self._own("AuditFilesRemoved", {"through": last.n, "files": len(going)}))
        return len(going)

    def sync(self) -> None:
        """Bring what was written to the disk, and the head after it. Blocks."""
        self._sync(*self._snapshot())

    def _snapshot(self) -> tuple[list[int], Head]:
        """Files to sync and to close, and the head that is true then."""
        handles, self._retired = self._retired, []
        if self._handle >= 0:
            handles.append(os.dup(self._handle))
        return handles, self._head()

    def _head(self) -> Head:
        base_n, base_mac = self._base
        return Head(n=self._n, mac=self._mac, base_n=base_n, base_mac=base_mac)

    def _sync(self, handles: list[int], head: Head) -> None:
        try:
            for handle in handles:
                os.fdatasync(handle)
            self._write_head(head)
        except OSError as exc:
            log.error("the audit log cannot be synced", reason=str(exc))
        finally:
            for handle in handles:
                os.close(handle)

    def _write_head(self, head: Head) -> None:
        with self._head_lock:
            if head.n < self._head_n:
                return
            part = self._folder / f"{HEAD}.part"
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_encode(head.sealed(self._key)))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._folder / HEAD)
            self._head_n = head.n

    async def run(self) -> None:
        """Sync every SYNC_S seconds and expire every hour, until cancelled."""
        expire_at = time.monotonic()
        while True:
            if time.monotonic() >= expire_at:
                self.expire(time.time())
                expire_at = time.monotonic() + _EXPIRE_EVERY_S
            await asyncio.sleep(SYNC_S)
            if self._n > self._head_n:
                await asyncio.to_thread(self._sync, *self._snapshot())

    def close(self) -> None:
        self.append(self._own("AuditLogClosed", {}))
        self.sync()
        log.info("audit head", head=f"{self._n}:{self._mac}")
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _tail(file: Any) -> bytes:
    """The end of *file*, from the beginning of its last whole line at least."""
    end = file.seek(0, os.SEEK_END)
    size = 1 << 16
    while True:
        file.seek(max(0, end - size))
        content: bytes = file.read()
        if size >= end:
            return content
        if content.count(b"\n") >= 2:
            return content[content.find(b"\n") + 1 :]
        size *= 4
