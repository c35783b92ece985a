"""Checksums of a file whose bytes pass by in order: our own SHA-256, and whatever its store vouches for."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from awscrt import checksums

from outcrop.errors import SourceChanged

# The store's own value is checked in this order of preference; one is enough.
_CRCS: Mapping[str, tuple[Callable[..., int], int]] = {
    "CRC64NVME": (checksums.crc64nvme, 8),
    "CRC32C": (checksums.crc32c, 4),
    "CRC32": (checksums.crc32, 4),
}
MD5_UP_TO_BYTES = 64 << 20  # at 0.7 GB/s it would halve the speed of weights, whose stores mostly offer better


class FileDigest:
    """``update`` with the bytes in order; then ``sha256`` and ``verify``. *vouched*: see SourceFile.checksums."""

    def __init__(self, name: str, size_bytes: int, vouched: Mapping[str, str]) -> None:
        self._name = name
        self._sha256 = hashlib.sha256()
        self._vouched = vouched
        self._kind = next((kind for kind in (*_CRCS, "SHA256") if kind in vouched), None)
        if self._kind is None and "MD5" in vouched and size_bytes <= MD5_UP_TO_BYTES:
            self._kind = "MD5"
        self._crc = 0
        self._md5: Any = hashlib.md5(usedforsecurity=False) if self._kind == "MD5" else None

    def update(self, body: memoryview) -> None:
        self._sha256.update(body)
        if self._kind is not None and self._kind in _CRCS:
            self._crc = _CRCS[self._kind][0](body, self._crc)
        if self._md5 is not None:
            self._md5.update(body)

    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def verify(self) -> str | None:
        """The algorithm by which the store's own value was confirmed; None when it gave none. Raises SourceChanged."""
        if self._kind is None:
            return None
        if self._kind in _CRCS:
            found = base64.b64encode(self._crc.to_bytes(_CRCS[self._kind][1], "big")).decode()
        elif self._kind == "SHA256":
            found = base64.b64encode(self._sha256.digest()).decode()
        else:
            found = self._md5.hexdigest()
        if found != (expected := self._vouched[self._kind]):
            raise SourceChanged(
                f"{self._name} arrived with another {self._kind} ({found}) than the store's ({expected}): it was "
                "damaged in the store or on the way. Upload it again, then import."
            )
        return self._kind
