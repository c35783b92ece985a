"""What an account used, as rows: the CLI makes tables and bills of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import structs

from outcrop.access.identities import Principal
from outcrop.errors import InvalidRequest
from outcrop.ids import imported_model_resource
from outcrop.metering.ledger import Ledger
from outcrop.metering.meter import Meter
from outcrop.metering.usage import proxies_id
from outcrop.registry.store import Registry


class UsageDoor:
    def __init__(
        self, *, meter: Meter, ledger: Ledger, registry: Registry, endpoints: Callable[[str], Iterable[str]]
    ) -> None:
        """*endpoints*: the names of an account's endpoints, whose proxies are metered too."""
        self._endpoints = endpoints
        self._meter = meter
        self._ledger = ledger
        self._registry = registry

    async def between(self, principal: Principal, since: str, until: str) -> dict[str, Any]:
        """Rows of the hours that begin in [*since*, *until*), ms since the epoch, and what is known of their models."""
        try:
            since_ms, until_ms = int(since), int(until)
        except ValueError as exc:
            raise InvalidRequest(f"{since!r} to {until!r} is no period: give both in ms since the epoch.") from exc
        await self._meter.flush(self._ledger)
        return await asyncio.to_thread(self._read, principal.account, since_ms, until_ms)

    def _read(self, account: str, since_ms: int, until_ms: int) -> dict[str, Any]:
        rows = self._ledger.between(account, since_ms, until_ms)
        models: dict[str, dict[str, Any]] = {}
        for model in self._registry.all_models():
            if model.account == account:
                models[model.model_id] = {
                    "name": model.model_name,
                    "architecture": model.architecture,
                    "tags": self._registry.attachments.tags(account, imported_model_resource(model.model_id)),
                }
        for name in self._endpoints(account):
            models[proxies_id(name)] = {"name": f"proxies of {name}", "architecture": "", "tags": {}}
        return {
            "rows": [{**structs.asdict(key), **structs.asdict(usage)} for key, usage in rows.items()],
            "models": models,
        }
