"""What operators look at, as resources of our own API: requests explained after the fact, the live view, metrics."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any
from urllib.parse import parse_qs

import msgspec

from outcrop.access.identities import Principal
from outcrop.engines.occupancy import Occupancy
from outcrop.errors import InvalidRequest, NotFound
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.copies import CopyStatus
from outcrop.serving.fleet import Fleet
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metrics import Reading
from outcrop.telemetry.recorder import WINDOW_S, Recorder
from outcrop.telemetry.requests import RequestRecord
from outcrop.telemetry.timeline import steps

OCCUPANCY_S = 1.0  # what the engines said is good for this long: two scrapers cost no more than one
MOST_LISTED = 1000
# What OpenAI answers call their id (inference.openai_chat, openai_completion), before the request's own.
_ANSWER_ID = ("chatcmpl-", "cmpl-")


class Observability:
    def __init__(self, *, recorder: Recorder, catalogue: Catalogue, fleet: Fleet) -> None:
        self._recorder = recorder
        self._catalogue = catalogue
        self._fleet = fleet
        self._occupancies: dict[str, list[Occupancy]] = {}
        self._asked_at = -math.inf
        recorder.metrics.watch(self._readings)

    async def metrics(self) -> bytes:
        """The page that Prometheus scrapes."""
        await self._ask_engines()
        return await asyncio.to_thread(self._recorder.metrics.page())

    async def route(self, method: str, path: list[str], query: bytes, principal: Principal) -> dict[str, Any] | None:
        """Answer *path* (decoded parts below ``/outcrop/v1``); None when it is none of ours."""
        match method, path:
            case "GET", ["requests"]:
                return await self.requests(principal, query)
            case "GET", ["requests", request_id]:
                return await self.request(principal, request_id)
            case "GET", ["top"]:
                return await self.top(principal)
        return None

    async def request(self, principal: Principal, request_id: str) -> dict[str, Any]:
        """One request: its record, its steps in time, other attempts of the same invocation. Raises NotFound."""
        for prefix in _ANSWER_ID:
            request_id = request_id.removeprefix(prefix)
        record = self._recorder.running(request_id) or await self._recorder.requests.find(request_id)
        if record is None or record.account != principal.account:
            raise NotFound(
                f"No request {request_id[:80]} is remembered. Its id is the header x-amzn-requestid; the oldest "
                "records give way to new ones (OUTCROP_REQUEST_LOG_BYTES)."
            )
        others: list[RequestRecord] = []
        if record.invocation_id is not None:
            found = self._recorder.requests.attempts_of(record.invocation_id, record.account)
            others = [other for other in found if other.request_id != record.request_id]
        return {
            "request": msgspec.to_builtins(record),
            "steps": [msgspec.to_builtins(step) for step in steps(record)],
            "other_attempts": [_row(other) for other in others],
        }

    async def requests(self, principal: Principal, query: bytes) -> dict[str, Any]:
        """The last requests in memory, the newest first, or by ``order=slowest``; ``model`` and ``limit`` narrow it."""
        asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
        limit = asked.get("limit", "20")
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_LISTED:
            raise InvalidRequest(f"limit={limit[:20]} is no number from 1 to {MOST_LISTED}.", param="limit")
        if asked.get("order", "newest") not in ("newest", "slowest"):
            raise InvalidRequest(f"order={asked['order'][:20]} is neither newest nor slowest.", param="order")
        model_id = None
        if "model" in asked:
            model_id = self._catalogue.find(principal.account, asked["model"]).facts.model_id

        def chosen() -> list[dict[str, Any]]:
            mine = (record for record in self._recorder.requests.recent() if record.account == principal.account)
            found = [record for record in mine if model_id in (None, record.model_id)]
            if asked.get("order") == "slowest":
                found.sort(key=lambda record: record.total_s, reverse=True)
            return [_row(record) for record in found[: int(limit)]]

        return {"requests": await asyncio.to_thread(chosen)}

    async def top(self, principal: Principal) -> dict[str, Any]:
        """What goes on now, by model. ``generated_tokens`` only grows, so two looks give a rate."""
        await self._ask_engines()
        mine = self._catalogue.all(principal.account)
        copies = self._fleet.status()
        return {
            "at": time.time(),
            "models": [
                self._model(served, [c for c in copies if c.model_id == served.spec.model_id]) for served in mine
            ],
            "copies": [
                {**msgspec.structs.asdict(copy), "model_name": served.record.model_name}
                for served in mine
                for copy in copies
                if copy.model_id == served.spec.model_id
            ],
        }

    def _model(self, served: Served, copies: list[CopyStatus]) -> dict[str, Any]:
        model_id = served.spec.model_id
        activity = self._recorder.activity(model_id)
        live = [facts for facts in self._recorder.live() if facts.model_id == model_id]
        since = time.monotonic() - WINDOW_S
        recent = [(first, total) for at, first, total in list(activity.recent) if at >= since]
        kv = [occupancy.kv_use for occupancy in self._occupancies.get(model_id, ()) if occupancy.kv_use is not None]
        ready = [copy for copy in copies if copy.state in ("ready", "evictable")]
        return {
            "model_name": served.record.model_name,
            "state": self._fleet.model_status(served.spec).state,
            "copies": len(copies),
            "ready": len(ready),
            "slots": sum(copy.slots for copy in ready),
            "busy": sum(copy.in_flight for copy in copies),
            "waiting": sum(1 for facts in live if facts.attempts and facts.attempts[-1].placed_s is None),
            "live": len(live),
            "answered": activity.answered,
            "failed": activity.failed,
            "input_tokens": activity.input_tokens,
            # Chunks of running streams are about a token each; at their end the engine's count takes their place.
            "generated_tokens": activity.output_tokens + sum(facts.chunks for facts in live),
            "first_token_p50_s": _percentile([first for first, _ in recent if first is not None], 0.5),
            "first_token_p95_s": _percentile([first for first, _ in recent if first is not None], 0.95),
            "total_p50_s": _percentile([total for _, total in recent], 0.5),
            "total_p95_s": _percentile([total for _, total in recent], 0.95),
            "kv_use": round(sum(kv) / len(kv), 4) if kv else None,
        }

    async def _ask_engines(self) -> None:
        if time.monotonic() - self._asked_at >= OCCUPANCY_S:
            self._asked_at = time.monotonic()
            self._occupancies = await self._fleet.occupancies()
            self._recorder.forget({model_id for model_id, _ in self._catalogue.by_id()})

    def _readings(self) -> list[Reading]:
        found: list[Reading] = []
        for model_id, occupancies in self._occupancies.items():
            known = [occupancy.kv_use for occupancy in occupancies if occupancy.kv_use is not None]
            name = self._catalogue.name_of(model_id)
            if known and name is not None:
                found.append((table.KV_USE, (name,), sum(known) / len(known)))
        return found


def _row(record: RequestRecord) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "at": record.at,
        "operation": record.operation,
        "model": record.model,
        "outcome": record.outcome,
        "status": record.status,
        "copy_id": record.copy_id,
        "held_s": record.held_s,
        "queued_s": record.queued_s,
        "first_token_s": record.first_token_s,
        "total_s": record.total_s,
        "output_tokens": record.output_tokens,
    }


def _percentile(values: list[float], share: float) -> float | None:
    ordered = sorted(values)
    return round(ordered[math.ceil(share * len(ordered)) - 1], 6) if ordered else None
