"""Temporary credentials: a key pair, and a token that says all about it in a sealed box.

Any node that has the installation's key opens the token; no table is asked, and none has to be swept. What the role may
do is looked up in the directory with every request, so changing or deleting the role takes effect at once.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from outcrop.access.directory import random_name
from outcrop.access.identities import AccessKey, Identity, Principal, Session
from outcrop.access.policy import Kind, parse
from outcrop.access.sealing import BrokenBox, Sealer
from outcrop.errors import ExpiredCredentials, ServiceError, UnknownCredentials

TOKENS = "session tokens"  # purpose of a sealed box
INVALID = "The security token included in the request is invalid."
EXPIRED = "The security token included in the request is expired."
_REMEMBERED = 4096


class _Content(msgspec.Struct, array_like=True, frozen=True):
    """What a token holds. New fields go at the end, with a default."""

    access_key_id: str
    secret: str
    account: str
    role_id: str
    role_arn: str
    role_name: str
    session_name: str
    issued_at: float
    expires_at: float
    policies: tuple[str, ...]
    tags: dict[str, str]
    transitive: tuple[str, ...]
    source_identity: str
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Issued:
    """Temporary credentials as they are handed out once."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str = field(repr=False)
    principal: Principal
    expires_at: float


class Sessions:
    """Makes session tokens and opens them."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer
        self._opened: dict[str, AccessKey] = {}

    def issue(self, role: Identity, session: Session, documents: Sequence[str] = ()) -> Issued:
        """Credentials of *session*. *documents*: session policies as text, already checked."""
        content = _Content(
            access_key_id=random_name("ASIA"),
            secret=base64.b64encode(secrets.token_bytes(30)).decode(),
            account=role.account,
            role_id=role.identity_id,
            role_arn=role.arn,
            role_name=role.name,
            session_name=session.session_name,
            issued_at=session.issued_at,
            expires_at=session.expires_at,
            policies=tuple(documents),
            tags=dict(session.tags),
            transitive=session.transitive,
            source_identity=session.source_identity,
            facts=dict(session.facts),
        )
        token = self._sealer.seal(TOKENS, msgspec.msgpack.encode(content))
        key = _key(content)
        return Issued(key.access_key_id, key.secret_access_key, token, key.principal, session.expires_at)

    def key(self, access_key_id: str, token: str) -> AccessKey:
        """The key that *token* vouches for. Raises UnknownCredentials, ExpiredCredentials."""
        key = self._opened.get(token)
        if key is None:
            try:
                content = msgspec.msgpack.decode(self._sealer.open(TOKENS, token), type=_Content)
                key = _key(content)
            except (BrokenBox, msgspec.DecodeError, ServiceError) as exc:
                raise UnknownCredentials(INVALID) from exc
            if len(self._opened) >= _REMEMBERED:
                self._opened.clear()
            self._opened[token] = key
        session = key.principal.session
        if not secrets.compare_digest(key.access_key_id.encode(), access_key_id.encode()):
            raise UnknownCredentials(INVALID)
        if session is None or session.expires_at <= time.time():
            raise ExpiredCredentials(EXPIRED)
        return key


def session_arn(account: str, role_name: str, session_name: str) -> str:
    return f"arn:aws:sts::{account}:assumed-role/{role_name}/{session_name}"


def _key(content: _Content) -> AccessKey:
    session = Session(
        session_name=content.session_name,
        role_arn=content.role_arn,
        issued_at=content.issued_at,
        expires_at=content.expires_at,
        policies=tuple(parse(text, Kind.SESSION, "session policy") for text in content.policies),
        tags=content.tags,
        transitive=content.transitive,
        source_identity=content.source_identity,
        facts=content.facts,
    )
    arn = session_arn(content.account, content.role_name, content.session_name)
    principal = Principal(content.account, arn, content.role_id, session)
    return AccessKey(content.access_key_id, content.secret, principal, created_at=content.issued_at)
