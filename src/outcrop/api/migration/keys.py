"""Keys for calls to other services: found as AWS's SDKs find them, or read from a file; renewed while they are used."""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outcrop.awswire.sigv4 import Keys
from outcrop.errors import InvalidRequest
from outcrop.serving.migration.plan import Side

_GOOD_FOR_S = 20.0  # botocore renews temporary keys 10 to 15 minutes before their end; this only asks it


@dataclass(slots=True)
class _Found:
    keys: Keys
    at: float


class Keyring:
    """Keys by side. *clock*: monotonic seconds."""

    def __init__(self) -> None:
        self._sessions: dict[str, Any] = {}
        self._found: dict[tuple[str, str], _Found] = {}

    async def keys(self, side: Side) -> Keys:
        """Raises InvalidRequest naming what is missing."""
        place = side.profile, side.key_file
        found = self._found.get(place)
        if found is None or time.monotonic() - found.at > _GOOD_FOR_S:
            keys = await asyncio.to_thread(self._read, side)
            found = self._found[place] = _Found(keys, time.monotonic())
        return found.keys

    def _read(self, side: Side) -> Keys:
        if side.kind == "openai":
            try:
                key = Path(side.key_file).read_text().strip()
            except OSError as exc:
                raise InvalidRequest(f"the key file {side.key_file} cannot be read: {exc.strerror}.") from exc
            if not key or not key.isprintable():
                raise InvalidRequest(f"the key file {side.key_file} must hold a bearer key and nothing else.")
            return Keys(bearer=key)
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        try:
            session = self._sessions.get(side.profile)
            if session is None:
                session = self._sessions[side.profile] = Session(profile=side.profile or None)
            credentials = session.get_credentials()
        except BotoCoreError as exc:
            raise InvalidRequest(f"the AWS configuration cannot be used: {exc}") from exc
        if credentials is None:
            raise InvalidRequest(
                "the server has no AWS credentials to sign calls with: name a section of its AWS configuration files "
                "(profile=NAME), or give the server a role or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        frozen = credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")


def tls_context() -> ssl.SSLContext:
    """The authorities of the system and those of AWS's configuration (``AWS_CA_BUNDLE``)."""
    from botocore.session import Session

    context = ssl.create_default_context()
    if bundle := Session().get_config_variable("ca_bundle"):
        context.load_verify_locations(bundle)
    return context
