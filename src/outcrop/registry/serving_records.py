"""What serving remembers between runs: measured starts, aliases, scaling that an operator set."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from outcrop.registry.schema import cold_starts, model_aliases, model_scaling
from outcrop.registry.store import Registry

STARTS_KEPT = 20  # per model and tier


class ServingRecords:
    """Rows beside a registry's; safe to call from several threads. Times are seconds since the epoch."""

    def __init__(self, registry: Registry, wall: Callable[[], float] = time.time) -> None:
        self._database = registry.database
        self._wall = wall

    def add_start(self, model_id: str, tier: str, seconds: float) -> None:
        """Remember one start and forget all but the last of its model and tier."""
        mine = sa.and_(cold_starts.c.model_id == model_id, cold_starts.c.tier == tier)
        with self._database.begin() as db:
            db.execute(cold_starts.insert().values(model_id=model_id, tier=tier, seconds=seconds, at=self._wall()))
            kept = sa.select(cold_starts.c.start_id).where(mine).order_by(cold_starts.c.start_id.desc())
            ids = [row[0] for row in db.execute(kept.limit(STARTS_KEPT))]
            db.execute(cold_starts.delete().where(mine, cold_starts.c.start_id < min(ids)))

    def starts(self) -> dict[str, list[tuple[str, float]]]:
        """Tier and seconds of the remembered starts by model, the oldest first."""
        found: dict[str, list[tuple[str, float]]] = {}
        with self._database.connect() as db:
            for row in db.execute(sa.select(cold_starts).order_by(cold_starts.c.start_id)):
                found.setdefault(row.model_id, []).append((row.tier, row.seconds))
        return found

    def aliases(self) -> list[tuple[str, str, str]]:
        """Account, alias and model id of every alias."""
        with self._database.connect() as db:
            return [(row.account, row.alias, row.model_id) for row in db.execute(sa.select(model_aliases))]

    def set_alias(self, account: str, alias: str, model_id: str | None) -> None:
        """Point *alias* at a model; None removes it."""
        mine = sa.and_(model_aliases.c.account == account, model_aliases.c.alias == alias)
        with self._database.begin() as db:
            db.execute(model_aliases.delete().where(mine))
            if model_id is not None:
                row = {"account": account, "alias": alias, "model_id": model_id, "modified_at": self._wall()}
                db.execute(model_aliases.insert().values(**row))

    def scaling(self) -> dict[str, bytes]:
        """JSON of what an operator set, by model."""
        with self._database.connect() as db:
            return {row.model_id: msgspec.json.encode(row.scaling) for row in db.execute(sa.select(model_scaling))}

    def set_scaling(self, model_id: str, scaling: bytes) -> None:
        """Replace what is set for a model with this JSON."""
        with self._database.begin() as db:
            db.execute(model_scaling.delete().where(model_scaling.c.model_id == model_id))
            db.execute(model_scaling.insert().values(model_id=model_id, scaling=msgspec.json.decode(scaling)))
