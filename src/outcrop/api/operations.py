"""The operator's part of our own API: warm a model, set and explain its scaling, read its logs, move an alias."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from outcrop.access.identities import Principal
from outcrop.api.endpoint_operations import EndpointOperations
from outcrop.api.usage import UsageDoor
from outcrop.errors import InvalidRequest, MalformedBody, NotFound
from outcrop.launchers.local import tail
from outcrop.registry.serving_records import ServingRecords
from outcrop.serving.aliases import Aliases
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.fleet import Fleet
from outcrop.serving.schedule import Scaling, check
from outcrop.settings import Settings

MOST_LOG_BYTES = 1_000_000
_COPY_ID = re.compile(r"[a-z0-9-]{1,32}")


class Operations:
    def __init__(
        self,
        *,
        catalogue: Catalogue,
        fleet: Fleet,
        aliases: Aliases,
        records: ServingRecords,
        settings: Settings,
        usage: UsageDoor,
        endpoints: EndpointOperations,
    ) -> None:
        self._catalogue = catalogue
        self._fleet = fleet
        self._aliases = aliases
        self._records = records
        self._settings = settings
        self._usage = usage
        self._endpoints = endpoints

    async def route(self, method: str, path: list[str], body: bytes, principal: Principal) -> dict[str, Any] | None:
        """Answer *path* (decoded parts below ``/outcrop/v1``); None when it is none of ours."""
        match method, path:
            case "POST", ["models", model, "warm"]:
                return await self.warm(principal, model)
            case "GET", ["models", model, "decisions"]:
                return self.decisions(principal, model)
            case "GET", ["models", model, "logs"]:
                return await self.logs(principal, model, None)
            case "GET", ["models", model, "logs", copy_id]:
                return await self.logs(principal, model, copy_id)
            case "GET", ["models", model, "scaling"]:
                return self.scaling(principal, model)
            case "PUT", ["models", model, "scaling"]:
                return await self.set_scaling(principal, model, body)
            case "GET", ["usage", since, until]:
                return await self._usage.between(principal, since, until)
            case "GET", ["aliases"]:
                return self.aliases(principal)
            case "PUT", ["aliases", alias]:
                return await self.set_alias(principal, alias, body)
            case "DELETE", ["aliases", alias]:
                await self._aliases.remove(principal.account, alias)
                return {}
        return await self._endpoints.route(method, path, body, principal)

    async def warm(self, principal: Principal, model: str) -> dict[str, Any]:
        """Start a copy when there is none; answers once one is ready."""
        served = self._catalogue.find(principal.account, model)
        await self._fleet.warm(served.spec, wait_s=self._settings.hold_limit_s)
        return {"model_name": served.record.model_name, "copies": self._fleet.serving(served.record.model_id)}

    def decisions(self, principal: Principal, model: str) -> dict[str, Any]:
        """The last scaling decisions with the facts they saw, the oldest first."""
        served = self._catalogue.find(principal.account, model)
        found = self._fleet.decisions(served.record.model_id)
        return {"model_name": served.record.model_name, "decisions": [structs.asdict(each) for each in found]}

    async def logs(self, principal: Principal, model: str, copy_id: str | None) -> dict[str, Any]:
        """The end of the engine's log of one copy, of the newest when none is named. Raises NotFound."""
        served = self._catalogue.find(principal.account, model)
        if copy_id is not None and not _COPY_ID.fullmatch(copy_id):
            raise InvalidRequest(f"{copy_id!r} is no copy id: see outcrop status.")
        found = await asyncio.to_thread(self._fleet.logs_of, served.record.model_id)
        chosen = [path for path in found if copy_id is None or _copy_of(path) == copy_id]
        if not chosen:
            raise NotFound(f"There is no log of {copy_id or 'a copy'} of {served.record.model_name}.")
        text = await asyncio.to_thread(tail, chosen[-1], MOST_LOG_BYTES)
        return {"copy_id": _copy_of(chosen[-1]), "text": text, "copies": [_copy_of(path) for path in found]}

    def scaling(self, principal: Principal, model: str) -> dict[str, Any]:
        """What is set for the model; a value that is null follows the server's default."""
        served = self._catalogue.find(principal.account, model)
        found: dict[str, Any] = msgspec.to_builtins(self._fleet.scaling(served.record.model_id))
        return found

    async def set_scaling(self, principal: Principal, model: str, body: bytes) -> dict[str, Any]:
        """Replace what is set for the model. Raises InvalidRequest with the field that makes no sense."""
        served = self._catalogue.find(principal.account, model)
        try:
            scaling = msgspec.json.decode(body, type=Scaling)
        except msgspec.ValidationError as exc:
            raise InvalidRequest(f"The scaling cannot be used: {exc}.") from exc
        except msgspec.DecodeError as exc:
            raise MalformedBody(f"The body is not valid JSON: {exc}") from exc
        check(scaling)
        self._check_copies(served, scaling)
        await asyncio.to_thread(self._records.set_scaling, served.record.model_id, msgspec.json.encode(scaling))
        self._fleet.configure(served.record.model_id, scaling)
        self._catalogue.limit_context(served.record.model_id, scaling.context_tokens)
        self._fleet.adopt(served.spec)
        return self.scaling(principal, model)

    def _check_copies(self, served: Served, scaling: Scaling) -> None:
        """Raises InvalidRequest for what the model's engine cannot do."""
        own = served.spec.context_tokens
        if scaling.context_tokens is not None and scaling.context_tokens > own:
            raise InvalidRequest(f"context_tokens={scaling.context_tokens} is more than the model's own {own}.")
        if scaling.arguments and not self._fleet.takes_arguments(served.spec.engine):
            raise InvalidRequest(
                f"arguments={list(scaling.arguments)} reach no command line: the model runs on {served.spec.engine}."
            )

    def aliases(self, principal: Principal) -> dict[str, Any]:
        names: dict[str, str] = {
            served.record.model_id: served.record.model_name for served in self._catalogue.all(principal.account)
        }
        rows = self._catalogue.aliases(principal.account).items()
        return {"aliases": [{"alias": alias, "model_name": names.get(model_id)} for alias, model_id in sorted(rows)]}

    async def set_alias(self, principal: Principal, alias: str, body: bytes) -> dict[str, Any]:
        """Move an alias; answers once requests reach the new model."""
        try:
            asked = msgspec.json.decode(body, type=dict[str, str])
        except msgspec.MsgspecError as exc:
            raise MalformedBody(f"The body must be a JSON object with a model: {exc}") from exc
        if "model" not in asked:
            raise InvalidRequest("model is required: the name or ARN of an imported model.")
        served = await self._aliases.set(principal.account, alias, asked["model"])
        return {"alias": alias, "model_name": served.record.model_name, "model_arn": served.facts.arn}


def _copy_of(path: Path) -> str:
    return path.stem.partition("-")[2]
