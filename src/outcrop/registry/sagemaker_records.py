"""SageMaker's models, endpoint configurations and endpoints, each as the call that made it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from outcrop.registry.schema import sagemaker_resources
from outcrop.registry.store import Registry

MODEL, CONFIG, ENDPOINT = "model", "endpoint-config", "endpoint"
ALARM = "alarm"  # serving.alarms.Alarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One row. *body* is JSON; times are seconds since the epoch."""

    account: str
    kind: str
    name: str
    body: Mapping[str, Any]
    tags: Mapping[str, str]
    created_at: float
    modified_at: float


class SageMakerRecords:
    """Rows beside a registry's; safe to call from several threads."""

    def __init__(self, registry: Registry, wall: Callable[[], float] = time.time) -> None:
        self._database = registry.database
        self._wall = wall

    def get(self, account: str, kind: str, name: str) -> Resource | None:
        with self._database.connect() as db:
            row = db.execute(sa.select(sagemaker_resources).where(_is(account, kind, name))).first()
        return None if row is None else Resource(**row._mapping)

    def all(self, kind: str, account: str | None = None) -> list[Resource]:
        """Every resource of a kind, of one account or of all, the oldest first."""
        wanted = sa.select(sagemaker_resources).where(sagemaker_resources.c.kind == kind)
        if account is not None:
            wanted = wanted.where(sagemaker_resources.c.account == account)
        with self._database.connect() as db:
            rows = db.execute(wanted.order_by(sagemaker_resources.c.created_at, sagemaker_resources.c.name))
            return [Resource(**row._mapping) for row in rows]

    def add(self, account: str, kind: str, name: str, body: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
        """Whether it was added; not when the name is taken."""
        now = round(self._wall(), 3)
        row = {"account": account, "kind": kind, "name": name, "body": dict(body), "tags": dict(tags)}
        try:
            with self._database.begin() as db:
                db.execute(sagemaker_resources.insert().values(**row, created_at=now, modified_at=now))
        except sa.exc.IntegrityError:
            return False
        return True

    def change(
        self,
        account: str,
        kind: str,
        name: str,
        *,
        body: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Replace what is given; a row that is gone meanwhile stays gone."""
        values: dict[str, Any] = {"modified_at": round(self._wall(), 3)}
        if body is not None:
            values["body"] = dict(body)
        if tags is not None:
            values["tags"] = dict(tags)
        with self._database.begin() as db:
            db.execute(sagemaker_resources.update().where(_is(account, kind, name)).values(**values))

    def remove(self, account: str, kind: str, name: str) -> bool:
        """Whether there was one."""
        with self._database.begin() as db:
            return bool(db.execute(sagemaker_resources.delete().where(_is(account, kind, name))).rowcount)


def _is(account: str, kind: str, name: str) -> Any:
    table = sagemaker_resources.c
    return sa.and_(table.account == account, table.kind == kind, table.name == name)
