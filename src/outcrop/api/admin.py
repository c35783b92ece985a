"""Our own small API under ``/outcrop/v1``: what the AWS APIs have no word for. JSON, same credentials."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from msgspec import structs

from outcrop.access.identities import Principal
from outcrop.awswire.documents import decode_object
from outcrop.errors import InvalidRequest, ModelInUse
from outcrop.ids import imported_model_arn
from outcrop.importing.jobs import Importer
from outcrop.inference import fields
from outcrop.inference.route import DIALECTS
from outcrop.registry.records import ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.fleet import Fleet


class Admin:
    def __init__(
        self, *, region: str, registry: Registry, importer: Importer, catalogue: Catalogue, fleet: Fleet
    ) -> None:
        self._region = region
        self._registry = registry
        self._importer = importer
        self._catalogue = catalogue
        self._fleet = fleet

    async def import_job(self, principal: Principal, identifier: str) -> dict[str, Any]:
        """Phase, progress (0..1), seconds per phase, and what the job found out so far.

        ``detail``: ``report`` (the preflight), ``transfer`` (bytes, rate in bytes per s, time left in s), ``files``,
        ``scan``.
        """
        return _told(await asyncio.to_thread(self._registry.job, principal.account, identifier))

    async def cancel_import_job(self, principal: Principal, identifier: str) -> dict[str, Any]:
        """End a running job as Failed; what it brought is removed."""
        return _told(await self._importer.cancel(principal.account, identifier, principal.arn))

    async def model(self, principal: Principal, identifier: str) -> dict[str, Any]:
        """What GetImportedModel has no field for: sizes, engine, scan of the values, proof run, files."""
        model = await asyncio.to_thread(self._registry.model, principal.account, identifier)
        job = await asyncio.to_thread(self._registry.job_of, model)
        return {
            "model_id": model.model_id,
            "model_name": model.model_name,
            "model_arn": imported_model_arn(self._region, model.account, model.model_id),
            "architecture": model.architecture,
            "source": model.s3_uri,
            "model_units": model.model_units,
            "dialect": model.dialect,
            "engine": self._catalogue.engine_now(model),
            "facts": dict(model.facts),
            "timings": dict(job.timings) if job else {},
            "files": job.detail.get("files", []) if job else [],
        }

    async def store(self) -> dict[str, Any]:
        """What the weight store holds: ``importing.inventory``."""
        return await self._importer.inventory()

    async def collect_store(self) -> dict[str, Any]:
        """Remove what no model and no running job uses; ``freed_bytes``."""
        return {"freed_bytes": await self._importer.collect()}

    async def change_model(self, principal: Principal, identifier: str, raw: bytes) -> dict[str, Any]:
        """Set what is given in the body; the model after it.

        ``dialect``: null, ``llama``, ``mistral`` or ``openai``. ``engine``: the one to run the model on; null gives the
        choice back. Its copies are replaced one by one; every answer's headers name the engine that made it.
        """
        body = decode_object(raw)
        unknown = sorted(body.keys() - {"dialect", "engine"})
        if unknown or not body:
            raise InvalidRequest(f'the body may hold "dialect" and "engine", got {unknown or "nothing"}')
        if "dialect" in body:
            dialect = fields.one_of(body, "dialect", tuple(DIALECTS))
            record = await asyncio.to_thread(self._registry.set_dialect, principal.account, identifier, dialect)
            self._catalogue.add(record)
        if "engine" in body:
            engine = None if body["engine"] is None else fields.text(body, "engine")
            await self._put_on(principal, identifier, engine)
        return await self.model(principal, identifier)

    async def evict_model(self, principal: Principal, identifier: str) -> dict[str, Any]:
        """Give up the model's local files; the next request brings them back from where they came. ``freed_bytes``.

        Refused unless the source still serves what was imported, and while the model has to have copies.
        """
        served = self._catalogue.find(principal.account, identifier)
        if least := self._fleet.least_copies(served.record.model_id):
            raise ModelInUse(
                f"{served.record.model_name} cannot be evicted: its scaling asks for at least {least} copies now, "
                "which would bring its files back at once. Set min_copies to 0 first (outcrop scaling set), or wait "
                "for the end of its scheduled floor."
            )
        await self._importer.bucket.check(served.record)
        await self._fleet.rest(served.record.model_id)
        return {"freed_bytes": await self._importer.bucket.give_up(served.record)}

    async def _put_on(self, principal: Principal, identifier: str, engine: str | None) -> None:
        """Raises EngineMissing, and changes nothing, when that engine cannot run the model here."""
        model = await asyncio.to_thread(self._registry.model, principal.account, identifier)
        spec = self._catalogue.spec(replace(model, engine=engine))
        record = await asyncio.to_thread(self._registry.set_engine, principal.account, identifier, engine)
        self._catalogue.add(record)
        self._fleet.adopt(spec)

    def _served(self, entry: Served) -> dict[str, Any]:
        spec = self._fleet.spec_of(entry.spec)
        return {
            "model_name": entry.record.model_name,
            "model_arn": imported_model_arn(self._region, entry.record.account, entry.record.model_id),
            "context_tokens": spec.context_tokens,
            "slots": spec.slots,
            "threads": entry.spec.threads,
            "dialect": entry.facts.dialect,
            **structs.asdict(self._fleet.model_status(entry.spec)),
        }

    def status(self, principal: Principal) -> dict[str, Any]:
        """Copies of the account's models: state, age, requests."""
        served: dict[str, Served] = {entry.record.model_id: entry for entry in self._catalogue.all(principal.account)}
        copies = []
        for copy in self._fleet.status():
            entry = served.get(copy.model_id)
            if entry is None:
                continue
            copies.append({**structs.asdict(copy), "model_name": entry.record.model_name, "model_arn": entry.facts.arn})
        return {
            "server": {"region": self._region, "account": principal.account},
            "models": [self._served(entry) for entry in served.values()],
            "copies": copies,
        }


def _told(job: ImportJob) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "job_name": job.job_name,
        "model_name": job.model_name,
        "phase": job.phase,
        "progress": job.progress,
        "timings": dict(job.timings),
        "failure": job.failure,
        "detail": dict(job.detail),
    }
