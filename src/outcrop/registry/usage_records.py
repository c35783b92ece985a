"""The ledger of what was used: one row per hour, model and principal, added to in numbered batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import sqlalchemy as sa

from outcrop.registry.schema import usage_hours, usage_writers
from outcrop.registry.store import Registry

WRITERS_KEPT_S = 7 * 86400.0
PEAKS = frozenset({"peak_copies"})  # the larger one stays; every other number is a sum
KEY = ("hour_ms", "account", "model_id", "principal")
COUNTED = tuple(column.name for column in usage_hours.columns if column.name not in KEY)

Row = Mapping[str, int | str]


class UsageRecords:
    """Rows beside a registry's; safe to call from several threads and servers."""

    def __init__(self, registry: Registry, wall: Callable[[], float] = time.time) -> None:
        self._database = registry.database
        self._wall = wall

    def add(self, writer: str, number: int, rows: Iterable[Row]) -> None:
        """Add *rows* (columns of ``usage_hours``) in one transaction, once per *writer* and *number*, which rises."""
        with self._database.begin() as db:
            if not self._takes(db, writer, number):
                return
            for row in rows:
                key = sa.and_(*(usage_hours.c[name] == row[name] for name in KEY))
                values = {name: _merged(name, row[name]) for name in COUNTED if row[name]}
                found = db.execute(usage_hours.update().where(key).values(**values)) if values else None
                if found is not None and not found.rowcount:
                    db.execute(usage_hours.insert().values(**row))

    def between(self, account: str, since_ms: int, until_ms: int) -> list[dict[str, int | str]]:
        """Rows of the hours that begin at or after *since_ms* and before *until_ms*, the oldest first."""
        table = usage_hours.c
        query = sa.select(usage_hours).where(
            table.account == account, table.hour_ms >= since_ms, table.hour_ms < until_ms
        )
        with self._database.connect() as db:
            ordered = query.order_by(table.hour_ms, table.model_id, table.principal)
            return [dict(row._mapping) for row in db.execute(ordered)]

    def _takes(self, db: sa.Connection, writer: str, number: int) -> bool:
        now = self._wall()
        mine = usage_writers.c.writer == writer
        last = db.execute(sa.select(usage_writers.c.last_batch).where(mine)).scalar_one_or_none()
        if last is None:
            db.execute(usage_writers.delete().where(usage_writers.c.at < now - WRITERS_KEPT_S))
            db.execute(usage_writers.insert().values(writer=writer, last_batch=number, at=now))
            return True
        if last >= number:
            return False
        db.execute(usage_writers.update().where(mine).values(last_batch=number, at=now))
        return True


def _merged(name: str, value: int | str) -> sa.ColumnElement[int]:
    column = usage_hours.c[name]
    if name in PEAKS:
        return sa.case((column < value, value), else_=column)
    merged: sa.ColumnElement[int] = column + value
    return merged
