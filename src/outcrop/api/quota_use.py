"""What quotas do not count themselves: models, jobs and copies of an account, and how many copies it may have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from outcrop.access.quotas import COPIES, JOBS, MODELS, Quotas
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.fleet import Fleet
from outcrop.serving.making_room import Allowance


class QuotaUse:
    def __init__(self, registry: Registry, catalogue: Catalogue, fleet: Fleet) -> None:
        self._registry = registry
        self._catalogue = catalogue
        self._fleet = fleet

    async def of(self, account: str) -> Callable[[str, str], int | None]:
        """How many there are now, by quota and id of a model; an empty id means all of *account*."""
        jobs = sum(job.account == account for job in await asyncio.to_thread(self._registry.unfinished_jobs))
        models = [str(served.record.model_id) for served in self._catalogue.all(account)]

        def counted(name: str, model: str) -> int | None:
            copies = sum(self._fleet.awake(each) for each in ([model] if model else models))
            return {COPIES: copies, JOBS: jobs, MODELS: jobs + len(models)}.get(name)

        return counted


def allowance(catalogue: Catalogue, quotas: Quotas) -> Callable[[str], Allowance | None]:
    """What the quotas say of the copies of a model; nothing of one that is only being imported."""

    def of(model_id: str) -> Allowance | None:
        served = catalogue.of_id(model_id)
        if served is None:
            return None
        account = served.record.account
        return Allowance(account, *quotas.copies(account, model_id))

    return of
