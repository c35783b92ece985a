"""Principals and their keys as values. Secrets mask themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Principal:
    """Who made a request."""

    account: str
    arn: str


@dataclass(frozen=True, slots=True)
class AccessKey:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    principal: Principal
    is_active: bool = True


@dataclass(frozen=True, slots=True)
class BearerKey:
    """A bearer key by its SHA-256; the key itself is not kept here."""

    key_hash: str
    principal: Principal
    expires_at: datetime | None = None
    is_active: bool = True


class CredentialStore(Protocol):
    def access_key(self, access_key_id: str) -> AccessKey | None: ...

    def bearer_key(self, key_hash: str) -> BearerKey | None: ...


class MemoryCredentials:
    """Keys held in memory."""

    def __init__(self, access_keys: list[AccessKey], bearer_keys: list[BearerKey]) -> None:
        self._access_keys = {key.access_key_id: key for key in access_keys}
        self._bearer_keys = {key.key_hash: key for key in bearer_keys}

    def access_key(self, access_key_id: str) -> AccessKey | None:
        return self._access_keys.get(access_key_id)

    def bearer_key(self, key_hash: str) -> BearerKey | None:
        return self._bearer_keys.get(key_hash)
