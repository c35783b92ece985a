"""Principals, the identities behind them and their keys, as values. Secrets mask themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from outcrop.access.policy import Policy

# Called with (s3:ListBucket or s3:GetObject, bucket, prefix or key) before that is read: raises SourceDenied.
Reader = Callable[[str, str, str], None]


class IdentityKind(StrEnum):
    USER = "user"
    ROLE = "role"


ACTIVE, INACTIVE, DELETED = "Active", "Inactive", "Deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user or a role with what it may do. *policies*: documents by name, as they were put; *compiled*: the same."""

    identity_id: str
    account: str
    kind: IdentityKind
    name: str
    created_at: float
    path: str = "/"
    description: str = ""
    trust: str | None = None
    boundary: str | None = None
    max_session_s: int = 3600
    tags: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)
    compiled: tuple[Policy, ...] = field(default=(), compare=False, repr=False)
    compiled_trust: Policy | None = field(default=None, compare=False, repr=False)
    compiled_boundary: Policy | None = field(default=None, compare=False, repr=False)

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{self.account}:{self.kind}{self.path}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A role as somebody assumed it. *policies*: documents that limit it. Times are seconds since the epoch."""

    session_name: str
    role_arn: str
    issued_at: float
    expires_at: float
    policies: tuple[Policy, ...] = field(default=(), compare=False, repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)
    transitive: tuple[str, ...] = ()  # keys of tags that stay through further sessions
    source_identity: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)  # further context keys: of a web identity


@dataclass(frozen=True, slots=True)
class Principal:
    """Who made a request: a user, or a session of a role. *bearer*: LONG_TERM or SHORT_TERM where a key was sent."""

    account: str
    arn: str
    identity_id: str = ""
    session: Session | None = field(default=None, compare=False, repr=False)
    bearer: str = field(default="", compare=False)

    @property
    def user_id(self) -> str:
        """``aws:userid``: the identity's id, and the session's name after it."""
        return self.identity_id if self.session is None else f"{self.identity_id}:{self.session.session_name}"


@dataclass(frozen=True, slots=True)
class AccessKey:
    access_key_id: str
    secret_access_key: str = field(repr=False)
    principal: Principal
    is_active: bool = True
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class BearerKey:
    """A bearer key by its SHA-256; the key itself is not kept here."""

    key_hash: str
    principal: Principal
    expires_at: datetime | None = None
    is_active: bool = True
    key_id: str = ""
    created_at: float = 0.0


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
