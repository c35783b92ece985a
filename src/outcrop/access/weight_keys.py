"""Master keys that data keys of models are wrapped with: from a file, the environment, or a key service's command.

A key is named as AWS names it (ARN, ``alias/…``, id) and has a source in the settings: ``file:PATH`` and
``env:VARIABLE`` hold 32 bytes in base64 or hexadecimal; ``command:PROGRAM ARGUMENTS`` is run with ``wrap`` or
``unwrap`` behind them, gets base64 on standard input and gives base64 back, so that the master key never leaves the
service. No shell runs it. Every use asks the source again: a key that is taken away there is gone here at once.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Struct

from outcrop.errors import BadSetting, InvalidRequest, KeyUnavailable

DEFAULT, ANY = "default", "*"
KEY_BYTES = 32
COMMAND_S = 20.0
SOURCES = ("file:", "env:", "command:")


class Envelope(Struct, frozen=True):
    """A data key, wrapped. *key_arn*: the master key that wrapped it. It is kept beside what it encrypts."""

    key_arn: str
    wrapped: str

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)


class WeightKeys:
    """*sources*: by name of the key; ``default`` is for imports that name none, ``*`` for keys not named here.

    Raises BadSetting for a source that is none.
    """

    def __init__(self, sources: Mapping[str, str], region: str) -> None:
        for name, source in sources.items():
            if not source.startswith(SOURCES) or not source.partition(":")[2].strip():
                raise BadSetting(
                    f"weight_keys gives {name!r} the source {source.partition(':')[0]!r}; use file:PATH, env:VARIABLE "
                    "or command:PROGRAM (OUTCROP_WEIGHT_KEYS)."
                )
        self._sources = dict(sources)
        self._region = region

    def chosen(self, key_id: str | None, account: str) -> str | None:
        """The ARN of the key that an import is encrypted with; None for none. Raises InvalidRequest for an unknown one.

        *key_id*: importedModelKmsKeyId. Where the settings have no keys at all, none is.
        """
        if key_id is None:
            return self.arn(DEFAULT, account) if DEFAULT in self._sources else None
        if not self._sources:
            return None
        arn = self.arn(key_id, account)
        if self._source(arn) is None:
            raise InvalidRequest(
                f"importedModelKmsKeyId names the key {key_id}, which this server has not. Its keys are "
                f"{', '.join(sorted(self._sources))} (OUTCROP_WEIGHT_KEYS)."
            )
        return arn

    def arn(self, key_id: str, account: str) -> str:
        """*key_id* (ARN, alias or id) as an ARN."""
        if key_id.startswith("arn:"):
            return key_id
        resource = (
            key_id if key_id.startswith("alias/") else f"alias/{DEFAULT}" if key_id == DEFAULT else f"key/{key_id}"
        )
        return f"arn:aws:kms:{self._region}:{account}:{resource}"

    async def wrap(self, arn: str, data_key: bytes, model_id: str) -> Envelope:
        """*data_key* of *model_id* under the key *arn*. Raises KeyUnavailable."""
        source = self._required(arn)
        if source.startswith("command:"):
            return Envelope(arn, await _run(arn, source, "wrap", base64.b64encode(data_key).decode(), model_id))
        nonce = os.urandom(12)
        sealed = nonce + AESGCM(_master(arn, source)).encrypt(nonce, data_key, _context(arn, model_id))
        return Envelope(arn, base64.b64encode(sealed).decode())

    async def unwrap(self, envelope: Envelope, model_id: str) -> bytes:
        """The data key in *envelope*. Raises KeyUnavailable when the key is gone, disabled or another one."""
        source = self._required(envelope.key_arn)
        if source.startswith("command:"):
            found = _decoded(await _run(envelope.key_arn, source, "unwrap", envelope.wrapped, model_id))
            if found is None or len(found) != KEY_BYTES:
                raise _unavailable(envelope.key_arn, "its command gave no data key")
            return found
        sealed = base64.b64decode(envelope.wrapped)
        cipher = AESGCM(_master(envelope.key_arn, source))
        try:
            return cipher.decrypt(sealed[:12], sealed[12:], _context(envelope.key_arn, model_id))
        except InvalidTag:
            raise _unavailable(
                envelope.key_arn, "its source holds another key than the weights were encrypted with"
            ) from None

    def _required(self, arn: str) -> str:
        source = self._source(arn)
        if source is None:
            raise _unavailable(arn, "the server's settings have it no more")
        return source

    def _source(self, arn: str) -> str | None:
        resource = arn.rpartition(":")[2]
        names = (arn, resource, resource.removeprefix("key/"), DEFAULT if resource == f"alias/{DEFAULT}" else arn, ANY)
        return next((self._sources[name] for name in names if name in self._sources), None)


def _master(arn: str, source: str) -> bytes:
    """The master key of a file or a variable, read now. Raises KeyUnavailable."""
    kind, _, place = source.partition(":")
    if kind == "env":
        text = os.environ.get(place)
        if text is None:
            raise _unavailable(arn, f"the variable {place} is not set")
        raw = text.encode()
    else:
        path = Path(place).expanduser()
        try:
            if path.stat().st_mode & 0o077:
                raise _unavailable(arn, f"{path} can be read by others; chmod 600 {path}")
            raw = path.read_bytes()
        except OSError as exc:
            raise _unavailable(arn, f"{path} cannot be read ({exc.strerror})") from None
    found = raw if len(raw) == KEY_BYTES else _decoded(raw.decode("ascii", errors="replace"))
    if found is None or len(found) != KEY_BYTES:
        raise _unavailable(arn, f"{place} holds no key of {KEY_BYTES} bytes in base64 or hexadecimal")
    return found


def _decoded(text: str) -> bytes | None:
    text = text.strip()
    try:
        return bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None


async def _run(arn: str, source: str, order: str, text: str, model_id: str) -> str:
    """What the key service's command says to *order* (``wrap`` or ``unwrap``). Raises KeyUnavailable."""
    argv = shlex.split(source.removeprefix("command:"))
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            *(order, arn, model_id),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise _unavailable(arn, f"{argv[0]} cannot be run ({exc.strerror})") from None
    try:
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate(text.encode() + b"\n")
    except TimeoutError:
        raise _unavailable(arn, f"{argv[0]} did not end within {COMMAND_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = err.decode(errors="replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
        raise _unavailable(arn, f"{argv[0]} refused to {order}: {said[0][:200]}")
    answer = out.decode("ascii", errors="replace").strip()
    if _decoded(answer) is None:
        raise _unavailable(arn, f"{argv[0]} answered to {order} what is no base64")
    return answer


def _context(arn: str, model_id: str) -> bytes:
    """What a wrapped key is bound to: it opens no other model."""
    return f"outcrop data key {arn} {model_id}".encode()


def _unavailable(arn: str, why: str) -> KeyUnavailable:
    return KeyUnavailable(f"The model's weights are encrypted with the key {arn}, which cannot be used: {why}.")
