"""Names that move from one model to another without a failed request.

The new model is proven ready before the name moves; the old one then drains. Where both do not fit the node, the name
moves first: its requests are held while the old copies drain and the new one starts, and a model that cannot start
gives the name back.
"""

from __future__ import annotations

import asyncio
import re
from weakref import WeakValueDictionary

import structlog

from outcrop.errors import InvalidRequest, ModelNotFound, NameTaken, ServiceError
from outcrop.registry.serving_records import ServingRecords
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.fleet import Fleet

log = structlog.get_logger(__name__)

ALIAS = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,62})")
READY_WITHIN_S = 600.0


class Aliases:
    def __init__(self, *, catalogue: Catalogue, fleet: Fleet, records: ServingRecords) -> None:
        self._catalogue = catalogue
        self._fleet = fleet
        self._records = records
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def load(self, rows: list[tuple[str, str, str]]) -> None:
        for account, alias, model_id in rows:
            self._catalogue.point(account, alias, model_id)

    async def set(self, account: str, alias: str, identifier: str) -> Served:
        """Point *alias* at a model; returns once requests reach it. Raises as ``Fleet.acquire`` does."""
        if not ALIAS.fullmatch(alias):
            raise InvalidRequest(f"{alias!r} cannot be an alias: 1 to 63 letters, digits, dots, dashes, underscores.")
        if alias in self._catalogue.names(account):
            raise NameTaken(f"{alias!r} is the name of an imported model. Choose another alias.")
        async with self._turn(account, alias):
            new = self._catalogue.find(account, identifier)
            old = self._current(account, alias)
            if old is None or not self._fleet.serving(old.record.model_id):
                await self._point(account, alias, new)
            elif old.record.model_id != new.record.model_id:
                await self._switch(account, alias, old, new)
            return new

    async def remove(self, account: str, alias: str) -> None:
        """Take the alias away. Raises ModelNotFound when there is none."""
        async with self._turn(account, alias):
            if alias not in self._catalogue.aliases(account):
                raise ModelNotFound(f"There is no alias {alias!r}.")
            await asyncio.to_thread(self._records.set_alias, account, alias, None)
            self._catalogue.point(account, alias, None)

    def _turn(self, account: str, alias: str) -> asyncio.Lock:
        """One change of a name at a time; a move that waits for its model keeps no other name waiting."""
        return self._turns.setdefault((account, alias), asyncio.Lock())

    async def _switch(self, account: str, alias: str, old: Served, new: Served) -> None:
        both_fit = self._fleet.serving(new.record.model_id) or self._fleet.has_room(new.spec)
        if both_fit:
            await self._fleet.warm(new.spec, wait_s=READY_WITHIN_S)
            await self._point(account, alias, new)
            self._fleet.retire(old.record.model_id)
            log.info("alias moved", alias=alias, model_id=new.record.model_id, held=False)
            return
        await self._point(account, alias, new)
        self._fleet.retire(old.record.model_id)
        try:
            await self._fleet.warm(new.spec, wait_s=READY_WITHIN_S)
        except ServiceError:
            await self._point(account, alias, old)
            log.exception("alias moved back: the new model did not start", alias=alias, model_id=new.record.model_id)
            raise
        log.info("alias moved", alias=alias, model_id=new.record.model_id, held=True)

    async def _point(self, account: str, alias: str, model: Served) -> None:
        model_id = model.record.model_id
        await asyncio.to_thread(self._records.set_alias, account, alias, model_id)
        if self._catalogue.of_id(model_id) is None:  # deleted meanwhile, with all its names but this one
            before = self._current(account, alias)
            named = None if before is None else before.record.model_id
            await asyncio.to_thread(self._records.set_alias, account, alias, named)
            raise ModelNotFound("The model was deleted.")
        self._catalogue.point(account, alias, model_id)

    def _current(self, account: str, alias: str) -> Served | None:
        model_id = self._catalogue.aliases(account).get(alias)
        try:
            return self._catalogue.find(account, model_id) if model_id else None
        except ModelNotFound:
            return None
