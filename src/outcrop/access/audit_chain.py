"""How audit records hang together: one line each, chained by a keyed hash. Pure but for reading files line by line.

A line is ``{"n":12,"prev":"<mac>","mac":"<mac>","record":{...}}``: *n* counts from 1 without gaps over all files, *mac*
is HMAC-SHA-256 of number, previous mac and the record's bytes. Whoever changes, removes, adds or reorders lines without
the key breaks the chain at the first of them. The end is held by the head, kept beside the files and sealed with the
same key, and by any ``n:mac`` that was written down elsewhere.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

GENESIS = "0" * 64
HEAD = "head.json"
_LINE = re.compile(rb'\{"n":(\d+),"prev":"([0-9a-f]{64})","mac":"([0-9a-f]{64})","record":(\{.*\})\}')


class Head(Struct, frozen=True, kw_only=True):
    """The end of the chain, and its beginning once retention removed files: the last record that went."""

    n: int = 0
    mac: str = GENESIS
    base_n: int = 0
    base_mac: str = GENESIS
    seal: str = ""

    def sealed(self, key: bytes) -> Head:
        return msgspec.structs.replace(self, seal=self._seal(key))

    def is_sealed_by(self, key: bytes) -> bool:
        return hmac.compare_digest(self.seal, self._seal(key))

    def _seal(self, key: bytes) -> str:
        return hmac.digest(key, f"head {self.n} {self.mac} {self.base_n} {self.base_mac}".encode(), "sha256").hex()


class Entry(Struct, frozen=True):
    """One line as it was read."""

    n: int
    prev: str
    mac: str
    record: bytes

    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self.record)
        return found


def mac_of(key: bytes, n: int, prev: str, record: bytes) -> str:
    return hmac.digest(key, b"%d %s " % (n, prev.encode()) + record, "sha256").hex()


def line_of(n: int, prev: str, mac: str, record: bytes) -> bytes:
    return b'{"n":%d,"prev":"%s","mac":"%s","record":%s}\n' % (n, prev.encode(), mac.encode(), record)


def parse(line: bytes) -> Entry | None:
    """The entry that *line* (without its newline) is; None when it is none."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    return Entry(int(found[1]), found[2].decode(), found[3].decode(), found[4])


def files(folder: Path) -> list[Path]:
    """The files of the log, the oldest first: each is named by the number of its first record."""
    return sorted(path for path in folder.glob("*.jsonl") if path.stem.isdigit())


def read_head(folder: Path) -> Head | None:
    """The head as it is kept; None when there is none that can be read."""
    try:
        return msgspec.json.decode((folder / HEAD).read_bytes(), type=Head)
    except (OSError, msgspec.MsgspecError):
        return None


class Broken(Struct, frozen=True):
    """The first thing that is wrong: *n* is the record's number as it should be."""

    n: int
    place: str
    reason: str


class Verdict(Struct, kw_only=True):
    """What a verification found. *head*: the last good record, ``n:mac``, to be written down elsewhere."""

    records: int = 0
    files: int = 0
    first_n: int = 0
    head: str = ""
    broken: Broken | None = None
    notes: list[str] = []


def verify(folder: Path, key: bytes, *, anchors: dict[int, str] | None = None) -> Verdict:
    """Check the chain from its beginning to its head. *anchors*: macs by number that were kept elsewhere."""
    verdict = Verdict()
    wanted = dict(anchors or {})
    head = read_head(folder)
    if head is None or not head.is_sealed_by(key):
        state = "is missing or unreadable" if head is None else "was not sealed with this key"
        verdict.broken = Broken(0, HEAD, f"the head {state}")
        return verdict
    n, mac = head.base_n, head.base_mac
    is_first = True
    for path, number, line in _lines(folder):
        place = f"{path.name}:{number}"
        entry = parse(line)
        if entry is None:
            verdict.broken = Broken(n + 1, place, "the line is no record")
            return verdict
        if is_first:
            is_first = False
            verdict.first_n = entry.n
            if entry.n <= head.base_n:  # files that retention had given up, and a crash left
                n, mac = entry.n - 1, entry.prev
        if entry.n != n + 1:
            missing = f"records {n + 1} to {entry.n - 1} are missing" if entry.n > n else "it is out of order"
            verdict.broken = Broken(n + 1, place, f"record {entry.n} stands here: {missing}")
        elif entry.prev != mac:
            verdict.broken = Broken(entry.n, place, "it does not follow the record before it")
        elif not hmac.compare_digest(entry.mac, mac_of(key, entry.n, entry.prev, entry.record)):
            verdict.broken = Broken(entry.n, place, "its content was changed")
        elif wanted.pop(entry.n, entry.mac) != entry.mac:
            verdict.broken = Broken(entry.n, place, "it is not the record that was written down elsewhere")
        elif entry.n == head.base_n and entry.mac != head.base_mac:
            verdict.broken = Broken(entry.n, place, "it is not the record that retention kept the hash of")
        elif entry.n == head.n and entry.mac != head.mac:
            verdict.broken = Broken(entry.n, place, "it is not the record that the head names")
        if verdict.broken is not None:
            return verdict
        n, mac = entry.n, entry.mac
        verdict.records += 1
    verdict.files = len(files(folder))
    verdict.head = f"{n}:{mac}"
    if n < max(head.n, *wanted, 0):
        last = max(head.n, *wanted, 0)
        verdict.broken = Broken(n + 1, "end", f"the log was cut off: records {n + 1} to {last} are missing")
    return verdict


def entries(folder: Path) -> Iterator[Entry]:
    """Every record that can be read, the oldest first; for questions, not for proof."""
    for _, _, line in _lines(folder):
        entry = parse(line)
        if entry is not None:
            yield entry


def _lines(folder: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Whole lines by file and number; an unfinished one at the very end is still being written, or will be mended."""
    found = files(folder)
    for path in found:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield path, number, line[:-1]
                elif path != found[-1]:
                    yield path, number, line
