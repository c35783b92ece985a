"""The operator's part of SageMaker endpoints in our own API: alarms, copies of proxies, their logs."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.errors import InvalidRequest, MalformedBody, NotFound
from outcrop.launchers.local import tail
from outcrop.registry.sagemaker_records import ALARM, SageMakerRecords
from outcrop.serving.alarms import Alarm, check
from outcrop.serving.endpoints import Endpoints

MOST_LOG_BYTES = 1_000_000
_NAME = re.compile(r"[\x21-\x7e]{1,63}")
_COPY_ID = re.compile(r"[a-z0-9-]{1,32}")


class EndpointOperations:
    def __init__(self, endpoints: Endpoints, records: SageMakerRecords) -> None:
        self._endpoints = endpoints
        self._records = records

    async def resume(self) -> None:
        """Know the alarms that were kept."""
        for row in await asyncio.to_thread(self._records.all, ALARM):
            self._endpoints.watch.put(row.account, row.name, msgspec.convert(row.body, Alarm))

    async def route(self, method: str, path: list[str], body: bytes, principal: Principal) -> dict[str, Any] | None:
        """Answer *path* (decoded parts below ``/outcrop/v1``); None when it is none of ours."""
        match method, path:
            case "GET", ["alarms"]:
                return await self.alarms(principal)
            case "GET", ["alarms", name]:
                return await self.alarm(principal, name)
            case "PUT", ["alarms", name]:
                return await self.put_alarm(principal, name, body)
            case "DELETE", ["alarms", name]:
                return await self.remove_alarm(principal, name)
            case "GET", ["endpoints"]:
                return {"copies": self._endpoints.status(principal.account)}
            case "GET", ["endpoints", name, "logs"]:
                return await self.logs(principal, name, None)
            case "GET", ["endpoints", name, "logs", copy_id]:
                return await self.logs(principal, name, copy_id)
        return None

    # -- alarms ---------------------------------------------------------------------------------------

    async def put_alarm(self, principal: Principal, name: str, body: bytes) -> dict[str, Any]:
        """Make an alarm, or replace the one of that name. Raises InvalidRequest with the field that makes no sense."""
        if not _NAME.fullmatch(name):
            raise InvalidRequest(f"{name[:80]!r} is no alarm name: 1 to 63 visible ASCII characters.", param="name")
        try:
            alarm = msgspec.json.decode(body, type=Alarm)
        except msgspec.ValidationError as exc:
            raise InvalidRequest(f"The alarm cannot be used: {exc}.") from exc
        except msgspec.DecodeError as exc:
            raise MalformedBody(f"The body is not valid JSON: {exc}") from exc
        check(alarm)
        plain = msgspec.to_builtins(alarm)
        if not await asyncio.to_thread(self._records.add, principal.account, ALARM, name, plain, {}):
            await asyncio.to_thread(self._records.change, principal.account, ALARM, name, body=plain)
        self._endpoints.watch.put(principal.account, name, alarm)
        return await self.alarm(principal, name)

    async def alarms(self, principal: Principal) -> dict[str, Any]:
        """Every alarm with its state now."""
        rows = await asyncio.to_thread(self._records.all, ALARM, principal.account)
        return {"alarms": [self._told(principal, row.name, row.body) for row in rows]}

    async def alarm(self, principal: Principal, name: str) -> dict[str, Any]:
        row = await asyncio.to_thread(self._records.get, principal.account, ALARM, name)
        if row is None:
            raise NotFound(f"There is no alarm {name[:80]}.")
        return self._told(principal, name, row.body)

    async def remove_alarm(self, principal: Principal, name: str) -> dict[str, Any]:
        if not await asyncio.to_thread(self._records.remove, principal.account, ALARM, name):
            raise NotFound(f"There is no alarm {name[:80]}.")
        self._endpoints.watch.remove(principal.account, name)
        return {}

    def _told(self, principal: Principal, name: str, body: Any) -> dict[str, Any]:
        finding = self._endpoints.watch.finding(principal.account, name)
        state = {} if finding is None else {"StateValue": finding.state, "StateReason": finding.reason}
        return {"AlarmName": name, **body, **state}

    # -- logs -----------------------------------------------------------------------------------------

    async def logs(self, principal: Principal, endpoint: str, copy_id: str | None) -> dict[str, Any]:
        """The end of the log of one copy, of the newest when none is named. Raises NotFound."""
        if self._endpoints.find(principal.account, endpoint) is None:
            raise NotFound(f"There is no endpoint {endpoint[:80]}.")
        if copy_id is not None and not _COPY_ID.fullmatch(copy_id):
            raise InvalidRequest(f"{copy_id!r} is no copy id: see outcrop status.")
        found = await asyncio.to_thread(self._log_files, principal.account, endpoint)
        chosen = [path for path in found if copy_id is None or _copy_of(path) == copy_id]
        if not chosen:
            raise NotFound(f"There is no log of {copy_id or 'a copy'} of endpoint {endpoint}.")
        text = await asyncio.to_thread(tail, chosen[-1], MOST_LOG_BYTES)
        return {"copy_id": _copy_of(chosen[-1]), "text": text, "copies": [_copy_of(path) for path in found]}

    def _log_files(self, account: str, endpoint: str) -> list[Path]:
        """Logs of the endpoint's copies, the oldest first."""
        folder = self._endpoints.copies.logs / account
        found = (path for path in folder.glob(f"{endpoint}.*.log") if path.name.startswith(f"{endpoint}."))
        return sorted(found, key=lambda path: path.stat().st_mtime)


def _copy_of(path: Path) -> str:
    return "px-" + path.stem.rpartition("-px-")[2]
