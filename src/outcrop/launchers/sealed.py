"""Encrypted files, and the process that makes and opens them: ``python -m outcrop.launchers.sealed``.

A file is a header of 48 bytes (magic, chunk size u32, plain size u64, file id of 16 bytes, zeros; numbers
little-endian) and records: AES-256-GCM of each chunk of the plain file with its tag of 16 bytes. The key is
HMAC-SHA-256 of the model's data key over the file id, the nonce the record's number, the associated data the header: so
no record can be changed, moved, dropped or taken from another file, and none can be cut off the end.

The work is a process's of its own: it would hold the interpreter's lock, and what a crash leaves of its memory is not
the server's. It gets the key on standard input, never as an argument or in its environment.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

MAGIC = b"OUTCROP\x01"
CHUNK_BYTES = 1 << 20
TAG_BYTES = 16
HEADER = struct.Struct("<8sIQ16s12x")
_LONGEST_CHUNK = 64 << 20


class NotOpened(Exception):
    """The file is not one of ours, was changed, or the key is another one's."""


def plain_bytes(path: Path) -> int:
    """The size of what *path* holds. Raises NotOpened."""
    with path.open("rb") as file:
        return _header(file.read(HEADER.size), path)[1]


def seal(source: Path, target: Path, key: bytes) -> None:
    """Write *source* encrypted to *target*, which must not exist, and bring it to the disk."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    size = source.stat().st_size
    file_id = os.urandom(16)
    header = HEADER.pack(MAGIC, CHUNK_BYTES, size, file_id)
    cipher = AESGCM(_file_key(key, file_id))
    chunk = memoryview(bytearray(CHUNK_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        writer.write(header)
        done = 0
        for number, length in enumerate(_lengths(size, CHUNK_BYTES)):
            _fill(reader.readinto, chunk[:length], source)
            _write(writer.fileno(), cipher.encrypt(_nonce(number), chunk[:length], header))
            done += length
        if reader.read(1):
            raise NotOpened(f"{source} grew while it was encrypted")
        os.fsync(writer.fileno())


def unseal(source: Path, target: int, key: bytes) -> int:
    """Write what *source* holds to the file descriptor *target*; its bytes. Raises NotOpened."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    with source.open("rb", buffering=0) as reader:
        header = reader.read(HEADER.size)
        chunk_bytes, size, file_id = _header(header, source)
        cipher = AESGCM(_file_key(key, file_id))
        record = memoryview(bytearray(chunk_bytes + TAG_BYTES))
        plain = memoryview(bytearray(chunk_bytes))
        for number, length in enumerate(_lengths(size, chunk_bytes)):
            _fill(reader.readinto, record[: length + TAG_BYTES], source)
            try:
                cipher.decrypt_into(_nonce(number), record[: length + TAG_BYTES], header, plain[:length])
            except InvalidTag:
                raise NotOpened(f"{source} was changed, or its key is another one (record {number})") from None
            _write(target, plain[:length])
        if reader.read(1):
            raise NotOpened(f"{source} is longer than it says")
    return size


def _header(raw: bytes, path: Path) -> tuple[int, int, bytes]:
    if len(raw) != HEADER.size or not raw.startswith(MAGIC):
        raise NotOpened(f"{path} is not an encrypted file of the weight store")
    _, chunk_bytes, size, file_id = HEADER.unpack(raw)
    if not 0 < chunk_bytes <= _LONGEST_CHUNK:
        raise NotOpened(f"{path} has a broken header")
    return chunk_bytes, size, file_id


def _file_key(key: bytes, file_id: bytes) -> bytes:
    return hmac.digest(key, b"outcrop sealed file " + file_id, "sha256")


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")


def _lengths(size: int, chunk: int) -> Iterator[int]:
    """Of the chunks of *size* bytes; an empty file has one that is empty, so that it is authenticated too."""
    yield min(size, chunk)
    for begin in range(chunk, size, chunk):
        yield min(chunk, size - begin)


def _fill(read_into: object, buffer: memoryview, path: Path) -> None:
    done = 0
    while done < len(buffer):
        count = read_into(buffer[done:])  # type: ignore[operator]
        if not count:
            raise NotOpened(f"{path} is cut off")
        done += count


def _write(handle: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]


def main() -> int:
    """One job, a line of JSON on standard input: ``{"key": hex, "files": [[source, target or descriptor], ...]}``."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would hold the key
    job = json.loads(sys.stdin.buffer.readline())
    key = bytes.fromhex(job["key"])
    try:
        for source, target in job["files"]:
            if isinstance(target, int):
                unseal(Path(source), target, key)
            else:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                seal(Path(source), Path(target), key)
    except (NotOpened, OSError) as exc:
        sys.stdout.write(json.dumps({"error": str(exc), "errno": getattr(exc, "errno", None)}))
        return 1
    sys.stdout.write("{}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
