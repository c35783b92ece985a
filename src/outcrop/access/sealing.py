"""Secrets at rest, and tokens that any node can open: authenticated boxes under one key of the installation.

The key is 32 random bytes in a file that only its owner can read. A key of its own is derived for each purpose, and
the purpose is part of what a box proves, so that none can be passed off as another.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from functools import cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from outcrop.errors import BadSetting

FILE = "secret.key"
KEY_BYTES = 32
_NONCE_BYTES = 12


class BrokenBox(Exception):
    """Not a box of this key and purpose, or changed since it was made."""


class Sealer:
    """Makes and opens boxes (AES-256-GCM, random nonce) as URL-safe text."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._cipher = cache(self._made)

    def seal(self, purpose: str, content: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        box = nonce + self._cipher(purpose).encrypt(nonce, content, purpose.encode())
        return base64.urlsafe_b64encode(box).decode().rstrip("=")

    def open(self, purpose: str, box: str) -> bytes:
        """What was sealed. Raises BrokenBox."""
        try:
            raw = base64.b64decode(box + "=" * (-len(box) % 4), altchars=b"-_", validate=True)
            return self._cipher(purpose).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], purpose.encode())
        except (binascii.Error, ValueError, InvalidTag) as exc:
            raise BrokenBox from exc

    def _made(self, purpose: str) -> AESGCM:
        info = f"outcrop {purpose}".encode()
        return AESGCM(HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(self._key))


def load_or_create(path: Path) -> Sealer:
    """The sealer of the key in *path*, which is made when absent. Raises BadSetting."""
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64encode(secrets.token_bytes(KEY_BYTES)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(part)  # fails when another start was first, whose key then counts
        except FileExistsError:
            pass
        finally:
            part.unlink()
    try:
        if path.stat().st_mode & 0o077:
            raise BadSetting(f"{path} can be read by others; make it private: chmod 600 {path}")
        key = base64.b64decode(path.read_bytes().strip(), validate=True)
    except (OSError, binascii.Error) as exc:
        raise BadSetting(f"the key file {path} cannot be read: {exc}") from exc
    if len(key) != KEY_BYTES:
        raise BadSetting(f"the key file {path} must hold {KEY_BYTES} bytes in base64; it holds {len(key)}")
    return Sealer(key)
