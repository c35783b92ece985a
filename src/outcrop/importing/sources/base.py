"""What a source owes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file under a prefix. *etag* changes whenever the content does; every read is tied to it.

    *checksums*: base64 values over the whole file that the store vouches for, by AWS's algorithm names
    (``CRC64NVME``, ``CRC32C``, ``CRC32``, ``SHA256``) and ``MD5`` in hexadecimal. *path*: where the file lies when
    it is on this machine, so that it can be linked instead of read.
    """

    name: str
    size_bytes: int
    etag: str
    checksums: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None


class Source(Protocol):
    """The files of one prefix. Every failure leaves as an error of ``outcrop.errors``."""

    @property
    def uri(self) -> str: ...

    @property
    def place(self) -> str:
        """The address of the object store; empty for this machine's own disks."""
        ...

    async def files(self) -> dict[str, SourceFile]:
        """The files directly under the prefix by name, without checksums. Raises SourceMissing when there are none."""
        ...

    async def vouched(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        """*files* with what the store says of their whole content. Raises SourceChanged when one is another by now."""
        ...

    async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        """Bytes *start* to *end* (exclusive) of exactly that *file*; tried again while that may help."""
        ...

    async def aclose(self) -> None: ...
