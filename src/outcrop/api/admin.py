"""Our own small API under ``/outcrop/v1``: what the AWS APIs have no word for. JSON, same credentials."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import structs

from outcrop.access.identities import Principal
from outcrop.ids import imported_model_arn
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.fleet import Fleet


class Admin:
    def __init__(self, *, region: str, registry: Registry, catalogue: Catalogue, fleet: Fleet) -> None:
        self._region = region
        self._registry = registry
        self._catalogue = catalogue
        self._fleet = fleet

    async def import_job(self, principal: Principal, identifier: str) -> dict[str, Any]:
        """Phase, progress (0..1) and seconds per phase of one import job."""
        job = await asyncio.to_thread(self._registry.job, principal.account, identifier)
        return {
            "job_id": job.job_id,
            "phase": job.phase,
            "progress": job.progress,
            "timings": dict(job.timings),
            "failure": job.failure,
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
            "models": [
                {
                    "model_name": entry.record.model_name,
                    "model_arn": imported_model_arn(self._region, entry.record.account, entry.record.model_id),
                    "context_tokens": entry.spec.context_tokens,
                    "slots": entry.spec.slots,
                    "threads": entry.spec.threads,
                }
                for entry in served.values()
            ],
            "copies": copies,
        }
