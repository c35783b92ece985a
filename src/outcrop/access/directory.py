"""Accounts, users, roles, keys and buckets: rows of the registry, held in memory with their policies compiled.

The event loop owns the memory; a change is written first and then takes effect at once, so a key that was disabled
is refused by the next request. What limits there are is AWS's (IAM User Guide, "IAM and AWS STS quotas").
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import structlog

from outcrop.access.identities import (
    ACTIVE,
    DELETED,
    INACTIVE,
    AccessKey,
    BearerKey,
    Identity,
    IdentityKind,
    Principal,
)
from outcrop.access.policy import Kind, Policy, compile_document, parse
from outcrop.access.sealing import Sealer
from outcrop.errors import DeleteConflict, EntityExists, InvalidRequest, LimitExceeded, MalformedPolicy, NoSuchEntity
from outcrop.registry.identity_records import IdentityRecords

log = structlog.get_logger(__name__)

SECRETS = "secret access keys"  # purpose of a sealed box
KEYS_PER_USER = 2  # one to use and one to rotate to
MAX_TAGS = 50
POLICY_CHARS = {IdentityKind.USER: 2048, IdentityKind.ROLE: 10_240}  # of all inline policies together, spaces apart
_UNREADABLE = compile_document(
    {"Version": "2012-10-17", "Statement": {"Effect": "Deny", "Action": "*", "Resource": "*"}},
    Kind.IDENTITY,
    "a policy that cannot be read",
)
_ID_PREFIX = {IdentityKind.USER: "AIDA", IdentityKind.ROLE: "AROA"}


@dataclass(frozen=True, slots=True)
class Bucket:
    """An embedded bucket: whose it is, and the policy that its owner put on it."""

    account: str
    policy: Policy | None = None
    document: str | None = None


def random_name(prefix: str) -> str:
    """An id of AWS's shape: *prefix* and sixteen capitals and digits."""
    return prefix + base64.b32encode(secrets.token_bytes(10)).decode()


class Directory:
    """Everybody that this installation knows. A ``CredentialStore``."""

    def __init__(self, records: IdentityRecords, sealer: Sealer, *, account: str) -> None:
        self._records = records
        self._sealer = sealer
        self.account = account  # the installation's own, which everything that is nobody else's belongs to
        self._lock = asyncio.Lock()
        self._accounts: dict[str, float] = {}
        self._identities: dict[str, Identity] = {}
        self._by_name: dict[tuple[str, IdentityKind, str], str] = {}
        self._access_keys: dict[str, AccessKey] = {}
        self._key_ids: set[str] = set()  # those of deleted keys too
        self._bearer_keys: dict[str, BearerKey] = {}
        self._buckets: dict[str, Bucket] = {}

    def load(self) -> None:
        """Read everything, once, before the first request."""
        rows = self._records.load()
        self._accounts = {row["account"]: row["created_at"] for row in rows.accounts}
        policies: dict[str, dict[str, str]] = {}
        for row in rows.policies:
            policies.setdefault(row["identity_id"], {})[row["name"]] = row["document"]
        for row in rows.identities:
            kind = IdentityKind(row["kind"])
            self._remember(Identity(**{**row, "kind": kind, "policies": policies.get(row["identity_id"], {})}))
        for row in rows.access_keys:
            self._key_ids.add(row["access_key_id"])
            identity = self._identities.get(row["identity_id"])
            if row["status"] != DELETED and identity is not None:
                secret = self._sealer.open(SECRETS, row["sealed_secret"]).decode()
                self._access_keys[row["access_key_id"]] = AccessKey(
                    row["access_key_id"], secret, _principal(identity), row["status"] == ACTIVE, row["created_at"]
                )
        for row in rows.bearer_keys:
            if (identity := self._identities.get(row["identity_id"])) is not None:
                self._bearer_keys[row["key_hash"]] = BearerKey(
                    row["key_hash"],
                    _principal(identity),
                    None if row["expires_at"] is None else datetime.fromtimestamp(row["expires_at"], UTC),
                    row["status"] == ACTIVE,
                    row["key_id"],
                    row["created_at"],
                )
        for row in rows.buckets:
            self._buckets[row["bucket"]] = _bucket(row["account"], row["policy"])

    # -- asking ---------------------------------------------------------------------------------------

    def access_key(self, access_key_id: str) -> AccessKey | None:
        return self._access_keys.get(access_key_id)

    def bearer_key(self, key_hash: str) -> BearerKey | None:
        return self._bearer_keys.get(key_hash)

    def was_ever(self, access_key_id: str) -> bool:
        """Whether a key had this id, deleted ones included."""
        return access_key_id in self._key_ids

    def accounts(self) -> dict[str, float]:
        """When each account was made, in seconds since the epoch."""
        return dict(self._accounts)

    def identity(self, identity_id: str) -> Identity | None:
        return self._identities.get(identity_id)

    def find(self, account: str, kind: IdentityKind, name: str) -> Identity:
        """The user or role of this name. Raises NoSuchEntity."""
        found = self._identities.get(self._by_name.get((account, kind, name.lower()), ""))
        if found is None:
            raise NoSuchEntity(f"The {kind} with name {name} cannot be found.")
        return found

    def role(self, arn: str) -> Identity | None:
        """The role of this ARN, in whatever account."""
        account, _, resource = arn.removeprefix("arn:aws:iam::").partition(":role/")
        name = resource.rpartition("/")[2]
        found = self._identities.get(self._by_name.get((account, IdentityKind.ROLE, name.lower()), ""))
        return found if found is not None and found.arn == arn else None

    def all(self, account: str, kind: IdentityKind, path_prefix: str = "/") -> list[Identity]:
        """By name."""
        found = (each for each in self._identities.values() if each.account == account and each.kind is kind)
        return sorted((each for each in found if each.path.startswith(path_prefix)), key=lambda each: each.name)

    def access_keys_of(self, identity: Identity) -> list[AccessKey]:
        """The oldest first."""
        mine = (key for key in self._access_keys.values() if key.principal.identity_id == identity.identity_id)
        return sorted(mine, key=lambda key: key.created_at)

    def bearer_keys_of(self, identity: Identity) -> list[BearerKey]:
        """The oldest first."""
        mine = (key for key in self._bearer_keys.values() if key.principal.identity_id == identity.identity_id)
        return sorted(mine, key=lambda key: key.created_at)

    def bucket(self, name: str) -> Bucket:
        return self._buckets.get(name) or Bucket(self.account)

    def buckets(self, account: str) -> dict[str, Bucket]:
        """Buckets of *account* that a row says something of."""
        return {name: bucket for name, bucket in self._buckets.items() if bucket.account == account}

    # -- changing -------------------------------------------------------------------------------------

    async def create_account(self, account: str) -> None:
        """Raises EntityExists."""
        async with self._lock:
            if account in self._accounts:
                raise EntityExists(f"Account {account} already exists.")
            now = round(time.time(), 3)
            await asyncio.to_thread(self._records.put_account, account, now)
            self._accounts[account] = now

    async def create(self, account: str, kind: IdentityKind, name: str, **values: Any) -> Identity:
        """A new user or role; *values*: fields of ``Identity``. Raises EntityExists, MalformedPolicy, LimitExceeded."""
        async with self._lock:
            if (account, kind, name.lower()) in self._by_name:
                raise EntityExists(f"{kind.capitalize()} with name {name} already exists.")
            made = Identity(
                identity_id=random_name(_ID_PREFIX[kind]),
                account=account,
                kind=kind,
                name=name,
                created_at=round(time.time(), 3),
                **values,
            )
            check(made)
            await asyncio.to_thread(self._records.put_identity, _row(made), made.policies)
            return self._remember(made)

    async def change(self, identity: Identity, **values: Any) -> Identity:
        """*identity* with other fields, its policies apart. Raises MalformedPolicy, LimitExceeded."""
        async with self._lock:
            changed = replace(self._current(identity), **values)
            check(changed)
            await asyncio.to_thread(self._records.put_identity, _row(changed))
            return self._remember(changed)

    async def delete(self, identity: Identity) -> None:
        """Raises DeleteConflict for one that still has policies or keys, as IAM does."""
        async with self._lock:
            current = self._current(identity)
            if current.policies:
                raise DeleteConflict("Cannot delete entity, must delete policies first.")
            if self.access_keys_of(current):
                raise DeleteConflict("Cannot delete entity, must delete access keys first.")
            if self.bearer_keys_of(current):
                raise DeleteConflict("Cannot delete entity, must delete service-specific credentials first.")
            await asyncio.to_thread(self._records.delete_identity, current.identity_id)
            del self._identities[current.identity_id]
            del self._by_name[current.account, current.kind, current.name.lower()]

    async def put_policy(self, identity: Identity, name: str, document: str) -> Identity:
        """Raises MalformedPolicy, LimitExceeded."""
        async with self._lock:
            current = self._current(identity)
            changed = replace(current, policies={**current.policies, name: document})
            check(changed)
            await asyncio.to_thread(self._records.put_policy, current.identity_id, name, document)
            return self._remember(changed)

    async def delete_policy(self, identity: Identity, name: str) -> Identity:
        """Raises NoSuchEntity."""
        async with self._lock:
            current = self._current(identity)
            if name not in current.policies:
                raise NoSuchEntity(f"The {current.kind} policy with name {name} cannot be found.")
            await asyncio.to_thread(self._records.delete_policy, current.identity_id, name)
            kept = {key: text for key, text in current.policies.items() if key != name}
            return self._remember(replace(current, policies=kept))

    async def add_access_key(self, identity: Identity, key_id: str = "", secret: str = "") -> AccessKey:
        """A new key, its secret shown here and never again. Raises LimitExceeded."""
        async with self._lock:
            if len(self.access_keys_of(self._current(identity))) >= KEYS_PER_USER:
                raise LimitExceeded(f"Cannot exceed quota for AccessKeysPerUser: {KEYS_PER_USER}")
            key = AccessKey(
                key_id or random_name("AKIA"),
                secret or base64.b64encode(secrets.token_bytes(30)).decode(),
                _principal(identity),
                created_at=round(time.time(), 3),
            )
            await asyncio.to_thread(self._records.put_access_key, self._key_row(key, ACTIVE))
            self._access_keys[key.access_key_id] = key
            self._key_ids.add(key.access_key_id)
            return key

    async def set_access_key(self, identity: Identity, access_key_id: str, status: str) -> None:
        """Enable (Active), disable (Inactive) or delete (Deleted) a key, at once. Raises NoSuchEntity."""
        async with self._lock:
            key = self._access_keys.get(access_key_id)
            if key is None or key.principal.identity_id != identity.identity_id:
                raise NoSuchEntity(f"The Access Key with id {access_key_id} cannot be found.")
            await asyncio.to_thread(self._records.put_access_key, self._key_row(key, status))
            if status == DELETED:
                del self._access_keys[access_key_id]
            else:
                self._access_keys[access_key_id] = replace(key, is_active=status == ACTIVE)

    async def add_bearer_key(
        self, identity: Identity, make: Callable[[str], str], expires_at: datetime | None = None
    ) -> tuple[BearerKey, str]:
        """A new bearer key and, this once, its text, which *make* makes of its id. Raises LimitExceeded."""
        async with self._lock:
            if len(self.bearer_keys_of(self._current(identity))) >= KEYS_PER_USER:
                raise LimitExceeded(f"Cannot exceed quota for ServiceSpecificCredentialsPerUser: {KEYS_PER_USER}")
            key_id = random_name("ACCA")
            text = make(key_id)
            key = BearerKey(
                sha256(text.encode()).hexdigest(),
                _principal(identity),
                expires_at,
                key_id=key_id,
                created_at=round(time.time(), 3),
            )
            await asyncio.to_thread(self._records.put_bearer_key, _bearer_row(key, ACTIVE))
            self._bearer_keys[key.key_hash] = key
            return key, text

    async def set_bearer_key(self, identity: Identity, key_id: str, status: str) -> None:
        """Enable, disable or delete a bearer key, at once. Raises NoSuchEntity."""
        async with self._lock:
            key = next((each for each in self.bearer_keys_of(identity) if each.key_id == key_id), None)
            if key is None:
                raise NoSuchEntity(f"The service-specific credential with id {key_id} cannot be found.")
            if status == DELETED:
                await asyncio.to_thread(self._records.delete_bearer_key, key.key_hash)
                del self._bearer_keys[key.key_hash]
            else:
                await asyncio.to_thread(self._records.put_bearer_key, _bearer_row(key, status))
                self._bearer_keys[key.key_hash] = replace(key, is_active=status == ACTIVE)

    async def set_bucket(self, name: str, account: str, document: str | None) -> None:
        """Say whose an embedded bucket is and what its policy is. Raises MalformedPolicy, InvalidRequest."""
        async with self._lock:
            if account not in self._accounts:
                raise InvalidRequest(f"There is no account {account}; make it first (outcrop access accounts create).")
            if document is not None:
                parse(document, Kind.RESOURCE)
            await asyncio.to_thread(self._records.put_bucket, name, account, document)
            self._buckets[name] = _bucket(account, document)

    # -- within ---------------------------------------------------------------------------------------

    def _current(self, identity: Identity) -> Identity:
        found = self._identities.get(identity.identity_id)
        if found is None:
            raise NoSuchEntity(f"The {identity.kind} with name {identity.name} cannot be found.")
        return found

    def _remember(self, identity: Identity) -> Identity:
        compiled = replace(
            identity,
            compiled=tuple(_readable(text, Kind.IDENTITY, name) for name, text in sorted(identity.policies.items())),
            compiled_trust=None if identity.trust is None else _readable(identity.trust, Kind.TRUST, "trust policy"),
            compiled_boundary=None
            if identity.boundary is None
            else _readable(identity.boundary, Kind.BOUNDARY, "permissions boundary"),
        )
        self._identities[identity.identity_id] = compiled
        self._by_name[identity.account, identity.kind, identity.name.lower()] = identity.identity_id
        return compiled

    def _key_row(self, key: AccessKey, status: str) -> dict[str, Any]:
        sealed = "" if status == DELETED else self._sealer.seal(SECRETS, key.secret_access_key.encode())
        return {
            "access_key_id": key.access_key_id,
            "identity_id": key.principal.identity_id,
            "sealed_secret": sealed,
            "status": status,
            "created_at": key.created_at,
        }


def check(identity: Identity) -> None:
    """Whether what *identity* holds may be put. Raises MalformedPolicy, LimitExceeded."""
    for name, text in identity.policies.items():
        parse(text, Kind.IDENTITY, name)
    total = sum(len("".join(text.split())) for text in identity.policies.values())
    if total > POLICY_CHARS[identity.kind]:
        raise LimitExceeded(
            f"Maximum policy size of {POLICY_CHARS[identity.kind]} bytes exceeded for {identity.kind} {identity.name}"
        )
    if identity.trust is not None:
        parse(identity.trust, Kind.TRUST)
    if identity.boundary is not None:
        parse(identity.boundary, Kind.BOUNDARY)
    if len(identity.tags) > MAX_TAGS:
        raise LimitExceeded(f"The number of tags has reached the maximum limit: {MAX_TAGS}")


def _readable(text: str, kind: Kind, name: str) -> Policy:
    """The compiled policy; one that can no longer be read denies everything, which is seen and can be mended."""
    try:
        return parse(text, kind, name)
    except MalformedPolicy as exc:
        log.error("a stored policy cannot be read and denies everything", policy=name, reason=exc.message)
        return _UNREADABLE


def _principal(identity: Identity) -> Principal:
    return Principal(identity.account, identity.arn, identity.identity_id)


def _bucket(account: str, document: str | None) -> Bucket:
    policy = None if document is None else _readable(document, Kind.RESOURCE, "bucket policy")
    return Bucket(account, policy, document)


def _row(identity: Identity) -> Mapping[str, Any]:
    return {
        "identity_id": identity.identity_id,
        "account": identity.account,
        "kind": str(identity.kind),
        "name": identity.name,
        "path": identity.path,
        "description": identity.description,
        "trust": identity.trust,
        "boundary": identity.boundary,
        "max_session_s": identity.max_session_s,
        "tags": dict(identity.tags),
        "created_at": identity.created_at,
    }


def _bearer_row(key: BearerKey, status: str) -> Mapping[str, Any]:
    return {
        "key_hash": key.key_hash,
        "key_id": key.key_id,
        "identity_id": key.principal.identity_id,
        "status": status,
        "created_at": key.created_at,
        "expires_at": None if key.expires_at is None else key.expires_at.timestamp(),
    }


def document_of(*statements: Mapping[str, Any]) -> str:
    """A policy document as text."""
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)}, separators=(",", ":"))


__all__ = ["ACTIVE", "DELETED", "INACTIVE", "Bucket", "Directory", "check", "document_of", "random_name"]
