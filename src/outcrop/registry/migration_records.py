"""Migrations of traffic, each one row: what was asked, and how far it is. (Alembic's migrations: ``migrations``.)"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from outcrop.registry.schema import traffic_migrations
from outcrop.registry.store import Registry


class MigrationRecords:
    """Rows beside a registry's; safe to call from several threads."""

    def __init__(self, registry: Registry, wall: Callable[[], float] = time.time) -> None:
        self._database = registry.database
        self._wall = wall

    def all(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Account, name and body of every migration, the oldest first."""
        with self._database.connect() as db:
            rows = db.execute(sa.select(traffic_migrations).order_by(traffic_migrations.c.created_at))
            return [(row.account, row.name, row.body) for row in rows]

    def put(self, account: str, name: str, body: Mapping[str, Any]) -> None:
        """Keep *body* in place of what was kept, at once or not at all."""
        now = self._wall()
        mine = sa.and_(traffic_migrations.c.account == account, traffic_migrations.c.name == name)
        with self._database.begin() as db:
            changed = db.execute(traffic_migrations.update().where(mine).values(body=dict(body), modified_at=now))
            if not changed.rowcount:
                row = {"account": account, "name": name, "body": dict(body), "created_at": now, "modified_at": now}
                db.execute(traffic_migrations.insert().values(**row))

    def remove(self, account: str, name: str) -> None:
        table = traffic_migrations.c
        with self._database.begin() as db:
            db.execute(traffic_migrations.delete().where(table.account == account, table.name == name))
