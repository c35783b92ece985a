"""What hangs on resources and accounts: tags, resource policies, the invocation logging configuration.

A resource is named by the end of its ARN (``imported-model/abcdef123456``). What is attached goes with its resource:
``put_tags`` and ``drop`` run inside the transactions that make and delete jobs and models.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from outcrop.errors import PolicyNotFound, TooManyTags
from outcrop.registry.schema import invocation_logging, resource_policies, resource_tags

MAX_TAGS = 50  # per resource; botocore bedrock/2023-04-20: TooManyTagsException


def put_tags(db: sa.Connection, account: str, resource: str, tags: Mapping[str, str]) -> None:
    """Add *tags* to *resource*, replacing those of the same key. Raises TooManyTags; then nothing was written."""
    if not tags:
        return
    kept = _tags(db, account, resource)
    if len(kept.keys() | tags.keys()) > MAX_TAGS:
        raise TooManyTags(
            f"{resource} would have {len(kept.keys() | tags.keys())} tags; a resource has at most {MAX_TAGS}. "
            "Remove tags that are not needed."
        )
    _drop_tags(db, account, resource, tags.keys())
    rows = [
        {"account": account, "resource": resource, "tag_key": key, "tag_value": value} for key, value in tags.items()
    ]
    db.execute(resource_tags.insert(), rows)


def drop(db: sa.Connection, account: str, resource: str) -> None:
    """Take everything off *resource*, which is going."""
    for table in (resource_tags, resource_policies):
        db.execute(table.delete().where(table.c.account == account, table.c.resource == resource))


def tag_map(tags: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags of the API (``[{"key": .., "value": ..}]``) by key."""
    return {tag["key"]: tag["value"] for tag in tags}


class Attachments:
    """Tags, policies and logging of one registry; safe to call from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.policies_version = 0  # grows with every change of a resource policy

    def all_policies(self) -> tuple[int, dict[tuple[str, str], str]]:
        """Every resource policy by account and resource, and the version that this is at least."""
        version = self.policies_version
        with self._engine.connect() as db:
            rows = db.execute(sa.select(resource_policies)).all()
        return version, {(row.account, row.resource): row.policy for row in rows}

    def tags(self, account: str, resource: str) -> dict[str, str]:
        with self._engine.connect() as db:
            return _tags(db, account, resource)

    def put_tags(self, account: str, resource: str, tags: Mapping[str, str]) -> None:
        """Add or replace tags. Raises TooManyTags."""
        with self._engine.begin() as db:
            put_tags(db, account, resource, tags)

    def drop_tags(self, account: str, resource: str, keys: Collection[str]) -> None:
        """Remove the tags of *keys*; a key that is not there is no error."""
        with self._engine.begin() as db:
            _drop_tags(db, account, resource, keys)

    def policy(self, account: str, resource: str) -> str:
        """The policy document of *resource* as it was put. Raises PolicyNotFound."""
        table = resource_policies.c
        query = sa.select(table.policy).where(table.account == account, table.resource == resource)
        with self._engine.connect() as db:
            found = db.execute(query).scalar_one_or_none()
        if found is None:
            raise PolicyNotFound(f"{resource} has no resource policy. Put one first.")
        return str(found)

    def put_policy(self, account: str, resource: str, policy: str) -> None:
        with self._engine.begin() as db:
            _delete_policy(db, account, resource)
            db.execute(resource_policies.insert().values(account=account, resource=resource, policy=policy))
        self.policies_version += 1

    def delete_policy(self, account: str, resource: str) -> None:
        """Raises PolicyNotFound."""
        with self._engine.begin() as db:
            if not _delete_policy(db, account, resource):
                raise PolicyNotFound(f"{resource} has no resource policy.")
        self.policies_version += 1

    def logging(self, account: str) -> dict[str, Any] | None:
        """The invocation logging configuration of *account*; None when there is none."""
        query = sa.select(invocation_logging.c.config).where(invocation_logging.c.account == account)
        with self._engine.connect() as db:
            return db.execute(query).scalar_one_or_none()

    def all_logging(self) -> dict[str, dict[str, Any]]:
        """Every invocation logging configuration, by account."""
        with self._engine.connect() as db:
            return {row.account: row.config for row in db.execute(sa.select(invocation_logging))}

    def put_logging(self, account: str, config: Mapping[str, Any] | None) -> None:
        """Replace the configuration of *account*; None deletes it."""
        with self._engine.begin() as db:
            db.execute(invocation_logging.delete().where(invocation_logging.c.account == account))
            if config is not None:
                db.execute(invocation_logging.insert().values(account=account, config=dict(config)))


def _tags(db: sa.Connection, account: str, resource: str) -> dict[str, str]:
    table = resource_tags.c
    query = sa.select(table.tag_key, table.tag_value).where(table.account == account, table.resource == resource)
    return {row.tag_key: row.tag_value for row in db.execute(query.order_by(table.tag_key))}


def _drop_tags(db: sa.Connection, account: str, resource: str, keys: Collection[str]) -> None:
    table = resource_tags.c
    db.execute(
        resource_tags.delete().where(table.account == account, table.resource == resource, table.tag_key.in_(keys))
    )


def _delete_policy(db: sa.Connection, account: str, resource: str) -> int:
    table = resource_policies.c
    return db.execute(resource_policies.delete().where(table.account == account, table.resource == resource)).rowcount
