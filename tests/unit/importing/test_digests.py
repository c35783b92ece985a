"""Checksums over whole files, fed in pieces: equal to the stores' own, and loud when they are not."""

from __future__ import annotations

import base64
import hashlib
import zlib

import pytest

from outcrop.errors import SourceChanged
from outcrop.importing.digests import FileDigest

BODY = b"123456789"
# The check values of the CRC catalogue (Cook) for "123456789".
OFFERED = {
    "CRC64NVME": base64.b64encode(bytes.fromhex("ae8b14860a799888")).decode(),
    "CRC32C": base64.b64encode(bytes.fromhex("e3069283")).decode(),
    "CRC32": base64.b64encode(zlib.crc32(BODY).to_bytes(4, "big")).decode(),
    "SHA256": base64.b64encode(hashlib.sha256(BODY).digest()).decode(),
    "MD5": hashlib.md5(BODY).hexdigest(),
}


def digested(vouched: dict[str, str], body: bytes = BODY, *, size: int | None = None) -> FileDigest:
    digest = FileDigest("x.bin", len(body) if size is None else size, vouched)
    for begin in range(0, len(body), 4):
        digest.update(memoryview(body)[begin : begin + 4])
    return digest


@pytest.mark.parametrize("kind", OFFERED)
def test_each_algorithm_is_verified(kind: str) -> None:
    digest = digested({kind: OFFERED[kind]})

    assert digest.verify() == kind
    assert digest.sha256() == hashlib.sha256(BODY).hexdigest()


@pytest.mark.parametrize("kind", OFFERED)
def test_a_damaged_byte_is_named_with_both_values(kind: str) -> None:
    with pytest.raises(SourceChanged, match=rf"x\.bin arrived with another {kind}") as damaged:
        digested({kind: OFFERED[kind]}, b"123456780").verify()
    assert OFFERED[kind] in str(damaged.value)


def test_the_strongest_offer_for_whole_objects_is_taken() -> None:
    assert digested(OFFERED).verify() == "CRC64NVME"
    assert digested({}).verify() is None


def test_md5_is_for_small_files_only() -> None:
    assert digested({"MD5": OFFERED["MD5"]}, size=1 << 30).verify() is None
