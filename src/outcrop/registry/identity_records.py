"""Rows of accounts, users, roles, keys, policies and buckets. Their meaning is ``access.directory``'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from outcrop.registry.schema import (
    buckets,
    iam_access_keys,
    iam_accounts,
    iam_bearer_keys,
    iam_identities,
    iam_policies,
    quotas,
)
from outcrop.registry.store import Registry

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Everything there is, as rows by column name."""

    accounts: Sequence[Row]
    identities: Sequence[Row]
    policies: Sequence[Row]
    access_keys: Sequence[Row]
    bearer_keys: Sequence[Row]
    buckets: Sequence[Row]


class IdentityRecords:
    """Safe to call from several threads; each call is one transaction."""

    def __init__(self, registry: Registry) -> None:
        self._engine = registry.database

    def load(self) -> Loaded:
        with self._engine.connect() as db:

            def rows(table: sa.Table) -> Sequence[Row]:
                return [dict(row) for row in db.execute(sa.select(table)).mappings()]

            return Loaded(
                accounts=rows(iam_accounts),
                identities=rows(iam_identities),
                policies=rows(iam_policies),
                access_keys=rows(iam_access_keys),
                bearer_keys=rows(iam_bearer_keys),
                buckets=rows(buckets),
            )

    def put_account(self, account: str, created_at: float) -> None:
        with self._engine.begin() as db:
            _put(db, iam_accounts, {"account": account}, {"created_at": created_at})

    def put_identity(self, row: Row, policies: Mapping[str, str] | None = None) -> None:
        """Add or replace an identity, with its first *policies*."""
        with self._engine.begin() as db:
            values = dict(row)
            _put(db, iam_identities, {"identity_id": values.pop("identity_id")}, values)
            for name, document in (policies or {}).items():
                _put(db, iam_policies, {"identity_id": row["identity_id"], "name": name}, {"document": document})

    def delete_identity(self, identity_id: str) -> None:
        """With its policies and keys; of access keys the ids stay, so that none is used again."""
        with self._engine.begin() as db:
            db.execute(iam_identities.delete().where(iam_identities.c.identity_id == identity_id))
            db.execute(iam_policies.delete().where(iam_policies.c.identity_id == identity_id))
            db.execute(iam_bearer_keys.delete().where(iam_bearer_keys.c.identity_id == identity_id))
            keys = iam_access_keys.c.identity_id == identity_id
            db.execute(iam_access_keys.update().where(keys).values(status="Deleted", sealed_secret=""))

    def put_policy(self, identity_id: str, name: str, document: str) -> None:
        with self._engine.begin() as db:
            _put(db, iam_policies, {"identity_id": identity_id, "name": name}, {"document": document})

    def delete_policy(self, identity_id: str, name: str) -> None:
        table = iam_policies.c
        with self._engine.begin() as db:
            db.execute(iam_policies.delete().where(table.identity_id == identity_id, table.name == name))

    def put_access_key(self, row: Row) -> None:
        with self._engine.begin() as db:
            values = dict(row)
            _put(db, iam_access_keys, {"access_key_id": values.pop("access_key_id")}, values)

    def put_bearer_key(self, row: Row) -> None:
        with self._engine.begin() as db:
            values = dict(row)
            _put(db, iam_bearer_keys, {"key_hash": values.pop("key_hash")}, values)

    def delete_bearer_key(self, key_hash: str) -> None:
        with self._engine.begin() as db:
            db.execute(iam_bearer_keys.delete().where(iam_bearer_keys.c.key_hash == key_hash))

    def put_bucket(self, bucket: str, account: str, policy: str | None) -> None:
        with self._engine.begin() as db:
            _put(db, buckets, {"bucket": bucket}, {"account": account, "policy": policy})

    def quotas(self) -> Sequence[Row]:
        with self._engine.connect() as db:
            return [dict(row) for row in db.execute(sa.select(quotas)).mappings()]

    def put_quota(self, row: Row, value: int | None) -> None:
        """Set the quota of *row* (account, principal, model, name); None removes it."""
        with self._engine.begin() as db:
            if value is None:
                db.execute(quotas.delete().where(*(quotas.c[name] == text for name, text in row.items())))
            else:
                _put(db, quotas, row, {"value": value})


def _put(db: sa.Connection, table: sa.Table, key: Row, values: Row) -> None:
    """Update the row of *key*, or insert it: one way for every database."""
    where = sa.and_(*(table.c[name] == value for name, value in key.items()))
    if not db.execute(table.update().where(where).values(**values)).rowcount:
        db.execute(table.insert().values(**key, **values))
