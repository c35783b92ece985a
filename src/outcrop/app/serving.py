"""What serves: the models in memory, the fleet of copies, the importer that feeds both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from outcrop.access.authorizer import Authorizer
from outcrop.access.directory import Directory
from outcrop.access.import_roles import ImportRoles
from outcrop.access.quotas import Quotas
from outcrop.access.weight_keys import WeightKeys
from outcrop.api.quota_use import allowance
from outcrop.app.observers import Observers
from outcrop.engines.base import Engine
from outcrop.engines.hardware import Hardware
from outcrop.engines.installed import Installed
from outcrop.importing.jobs import Importer
from outcrop.importing.weights import WeightStore
from outcrop.launchers import machine
from outcrop.launchers.local import LocalLauncher
from outcrop.registry.records import ImportedModel
from outcrop.registry.serving_records import ServingRecords
from outcrop.registry.store import Registry
from outcrop.serving.aliases import Aliases
from outcrop.serving.catalogue import Catalogue, proven_start
from outcrop.serving.fleet import Fleet
from outcrop.serving.schedule import Scaling
from outcrop.serving.starts import Tier
from outcrop.serving.unsealed import Unsealer
from outcrop.settings import Settings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    records: ServingRecords
    fleet: Fleet
    aliases: Aliases
    keys: WeightKeys

    async def remember(self, catalogue: Catalogue) -> None:
        """Give serving back what it knew: starts that were measured (the proof run's at least), scaling, aliases."""
        seen = await asyncio.to_thread(self.records.starts)
        scaling = await asyncio.to_thread(self.records.scaling)
        self.aliases.load(await asyncio.to_thread(self.records.aliases))
        for served in catalogue.everything():
            model_id = served.record.model_id
            self.fleet.learned(model_id, proven_start(served.record))
            self.fleet.learned(model_id, [(Tier(tier), seconds) for tier, seconds in seen.get(model_id, ())])
            if model_id in scaling:
                found = msgspec.json.decode(scaling[model_id], type=Scaling)
                self.fleet.configure(model_id, found)
                catalogue.limit_context(model_id, found.context_tokens)
                self.fleet.adopt(served.spec)


def make_serving(
    settings: Settings,
    registry: Registry,
    catalogue: Catalogue,
    observers: Observers,
    engines: Sequence[Engine],
    hardware: Hardware,
    quotas: Quotas,
) -> Serving:
    records = ServingRecords(registry)
    keys = WeightKeys(settings.weight_keys, settings.region)
    fleet = Fleet(
        engines,
        LocalLauncher(settings.run),
        settings=settings,
        memory_bytes=settings.memory_bytes or int(machine.memory_bytes() * machine.MEMORY_SHARE),
        cores=settings.cpu_cores or machine.cores(),
        on_start=lambda model_id, tier, seconds: _in_background(records.add_start, model_id, tier, seconds),
        on_removed=lambda: observers.forget_gone(catalogue),
        model_count=catalogue.count,
        gpus=len(hardware.gpus),
        allowance=allowance(catalogue, quotas),
        events=observers.metrics,
        meter=observers.meter,
        unsealer=Unsealer(keys),
    )
    observers.metrics.watch(lambda: fleet.readings(catalogue.by_id()))
    aliases = Aliases(catalogue=catalogue, fleet=fleet, records=records)
    return Serving(records=records, fleet=fleet, aliases=aliases, keys=keys)


def make_importer(
    settings: Settings,
    registry: Registry,
    catalogue: Catalogue,
    serving: Serving,
    engines: Sequence[Installed],
    *,
    store: WeightStore,
    directory: Directory,
    authorizer: Authorizer,
) -> Importer:
    """The importer: what it has brought is served, what it takes away is drained."""
    fleet = serving.fleet

    def on_model(model: ImportedModel) -> None:
        catalogue.add(model)
        fleet.learned(model.model_id, proven_start(model))

    async def on_withdrawn(model: ImportedModel) -> None:
        catalogue.remove(model)
        await fleet.remove(model.model_id)

    importer = Importer(
        settings=settings,
        registry=registry,
        store=store,
        fleet=fleet,
        engines=engines,
        roles=ImportRoles(directory, authorizer, region=settings.region),
        spec=catalogue.spec,
        on_model=on_model,
        on_withdrawn=on_withdrawn,
        keys=serving.keys,
    )
    fleet.brings_back_with(importer.bucket.bring_back)
    return importer


def _in_background(work: Callable[..., None], *args: Any) -> None:
    """Run *work* on a thread; what it remembers is of use, not of need."""

    def run() -> None:
        try:
            work(*args)
        except Exception:
            log.warning("something could not be remembered", exc_info=True)

    asyncio.get_running_loop().run_in_executor(None, run)
