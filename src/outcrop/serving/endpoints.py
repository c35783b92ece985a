"""SageMaker-style endpoints: variants of copies, the split of requests between them, what becomes of them.

``variants`` owns the copies, ``rollout`` moves an endpoint from one configuration to the next, ``traffic`` chooses.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from outcrop.engines.http1 import Client
from outcrop.errors import InvalidRequest
from outcrop.serving.deployment import deployment_of
from outcrop.serving.invocation import Answerer
from outcrop.serving.proxies import ProxyProcess
from outcrop.serving.rollout import Endpoint, Fleet, Plan, Retained, Rollout, fleet_of
from outcrop.serving.traffic import choose, sticky_point
from outcrop.serving.variants import FAILED_START, Copies, Variant
from outcrop.serving.watch import Watch

log = structlog.get_logger(__name__)

_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Lent:
    """Who answers one invocation."""

    variant: Variant
    copy: Answerer


class Endpoints:
    """Every endpoint that runs here. *changed* is told of each change, to be kept.

    *settings_of* (account, endpoint): what its proxies reach the server with. *note* (account, endpoint, copy, state):
    told of every change of a copy; None when it has ended.
    """

    def __init__(
        self,
        *,
        folder: Path,
        logs: Path,
        buckets: Path,
        region: str,
        settings_of: Callable[[str, str], Awaitable[Mapping[str, str]]],
        changed: Callable[[Endpoint], Awaitable[None]],
        note: Callable[[str, str, str, str | None], None] = lambda *_: None,
        watch: Watch,
    ) -> None:
        self._buckets = buckets
        self._changed = changed
        self._given = settings_of
        self._url = ""
        self._all: dict[tuple[str, str], Endpoint] = {}
        self._ticker: asyncio.Task[None] | None = None
        self.watch = watch
        self.copies = Copies(
            folder=folder,
            logs=logs,
            region=region,
            object_path=self.object_path,
            settings_of=self._settings,
            note=note,
        )
        self._rollout = Rollout(self.copies, watch, changed)

    @property
    def client(self) -> Client:
        return self.copies.client

    async def _settings(self, account: str, endpoint: str) -> Mapping[str, str]:
        return {"OUTCROP_PROXY_ENDPOINT_URL": self._url, **await self._given(account, endpoint)}

    def start(self, url: str) -> None:
        """From now on proxies may be started: the server answers at *url*. What an earlier server unpacked goes."""
        self.copies.sweep()
        self._url = url
        self._ticker = asyncio.create_task(self._tick(), name="endpoints")

    def find(self, account: str, name: str) -> Endpoint | None:
        return self._all.get((account, name))

    def all(self, account: str | None = None) -> list[Endpoint]:
        """Every endpoint, of one account or of all."""
        return [endpoint for (owner, _), endpoint in self._all.items() if account in (None, owner)]

    def create(self, account: str, name: str, plan: Plan) -> Endpoint:
        """Begin to start an endpoint; its status tells how it goes."""
        endpoint = Endpoint(account=account, name=name, fleet=fleet_of(plan))
        self._all[account, name] = endpoint
        self._run(endpoint, self._create(endpoint))
        return endpoint

    def update(
        self,
        endpoint: Endpoint,
        plan: Plan,
        config: Mapping[str, Any] | None,
        retained: Retained = Retained(),  # noqa: B008
    ) -> None:
        """Begin an update as the DeploymentConfig *config* has it. Raises InvalidRequest."""
        wanted = [variant.wanted for variant in fleet_of(plan, endpoint.fleet, retained).variants]
        deployment = deployment_of(config, wanted)
        if missing := self.watch.missing(endpoint.account, deployment.alarms):
            raise InvalidRequest(
                f"AutoRollbackConfiguration names alarms that do not exist: {', '.join(missing)}. Make them with "
                "outcrop alarms set."
            )
        self._begin(endpoint, "Updating")
        endpoint.deployment = config
        self._run(endpoint, self._rollout.run(endpoint, plan, deployment, retained))

    def reweigh(self, endpoint: Endpoint, wanted: Mapping[str, tuple[float | None, int | None]]) -> None:
        """Set weights at once; begin to change instance counts. Raises InvalidRequest for an unknown variant."""
        known = {variant.name for variant in endpoint.fleet.everything}
        for name in wanted:
            if name not in known:
                raise InvalidRequest(f'The requested variant "{name}" does not exist in endpoint "{endpoint.name}".')
        self._begin(endpoint, "Updating")
        self._run(endpoint, self._reweigh(endpoint, wanted))

    def delete(self, endpoint: Endpoint) -> None:
        """Begin to end an endpoint; it is forgotten when its copies are gone."""
        if endpoint.task is not None and endpoint.status != "Creating":
            raise InvalidRequest(f'Cannot delete endpoint "{endpoint.name}" while it is {endpoint.status}.')
        was = endpoint.task
        endpoint.status = "Deleting"
        self._run(endpoint, self._delete(endpoint, was))

    @asynccontextmanager
    async def lent(
        self, endpoint: Endpoint, target: str | None, sticky: str | None, but: Collection[Answerer] = ()
    ) -> AsyncIterator[Lent]:
        """The copy for one invocation, counted until the end of the block; none of *but*, where there is another.

        Raises InvalidRequest while there is none at all, or for a *target* that the endpoint has not.
        """
        variant = self.chosen(endpoint, target, sticky)
        async with self.counted(endpoint, variant, but) as copy:
            yield Lent(variant, copy)

    @asynccontextmanager
    async def counted(
        self, endpoint: Endpoint, variant: Variant, but: Collection[Answerer] = ()
    ) -> AsyncIterator[Answerer]:
        """A copy of *variant*, counted until the end of the block."""
        copy = variant.chosen(but) or variant.chosen()
        if copy is None:
            raise InvalidRequest(f"Endpoint {endpoint.name} is {endpoint.status}; wait until it is InService.")
        begun = time.monotonic()
        variant.demand.arrived(begun)
        copy.requests += 1
        copy.in_flight += 1
        if copy.in_flight == 1:
            self.copies.note(endpoint.account, endpoint.name, copy)
        try:
            yield copy
        finally:
            copy.in_flight -= 1
            variant.active_at = time.monotonic()
            variant.demand.served(variant.active_at - begun, 0, 0.0)
            if not copy.in_flight:
                self.copies.note(endpoint.account, endpoint.name, copy)

    def chosen(self, endpoint: Endpoint, target: str | None, sticky: str | None) -> Variant:
        """The variant that answers. Raises InvalidRequest for one that the endpoint has not."""
        pool, coming = endpoint.fleet.variants, endpoint.coming
        if coming is not None and _point(f"{endpoint.name}/update", sticky) < endpoint.share:
            pool = coming.variants
        if target is not None:
            others = coming.variants if coming is not None and endpoint.share else []
            named = [variant for variant in [*pool, *endpoint.fleet.variants, *others] if variant.name == target]
            if named:
                return named[0]
            raise InvalidRequest(f"Variant {target} not found in endpoint {endpoint.name}.")
        if not pool:
            raise InvalidRequest(f"Endpoint {endpoint.name} is {endpoint.status}; it has no variant that runs.")
        found: Variant = pool[choose([variant.weight for variant in pool], _point(endpoint.name, sticky))]
        return found

    # -- what tasks do --------------------------------------------------------------------------------

    def _begin(self, endpoint: Endpoint, status: str) -> None:
        if endpoint.task is not None:
            raise InvalidRequest(
                f'Cannot update in-progress endpoint "{endpoint.name}" ({endpoint.status}). Wait until it is InService.'
            )
        endpoint.status = status

    def _run(self, endpoint: Endpoint, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("work on an endpoint failed", endpoint=endpoint.name)
                endpoint.failure = "The server failed on this; its log has the details."
                is_up = any(variant.copies for variant in endpoint.fleet.variants)
                endpoint.status = "InService" if is_up else "Failed"
            finally:
                if endpoint.task is asyncio.current_task():
                    endpoint.task = None

        endpoint.task = asyncio.create_task(run(), name=f"endpoint {endpoint.name}")

    async def _create(self, endpoint: Endpoint) -> None:
        try:
            await self._rollout.started(endpoint, endpoint.fleet)
            status, endpoint.failure = "InService", ""
        except FAILED_START as exc:
            await self.copies.stop(endpoint.fleet.everything, 0)
            status, endpoint.failure = "Failed", str(exc)
            endpoint.fleet = Fleet(config_name=endpoint.fleet.config_name)
            log.error("an endpoint does not start", endpoint=endpoint.name, reason=str(exc))
        await self._changed(endpoint)
        endpoint.status = status  # last: who reads it may update at once

    async def _reweigh(self, endpoint: Endpoint, wanted: Mapping[str, tuple[float | None, int | None]]) -> None:
        endpoint.failure = ""
        for variant in endpoint.fleet.everything:
            weight, instances = wanted.get(variant.name, (None, None))
            if weight is not None:
                variant.weight = weight
            if instances is None or instances == variant.wanted:
                continue
            count = max(1, instances)
            try:
                await self.copies.grow(endpoint.account, endpoint.name, variant, count)
            except FAILED_START as exc:
                endpoint.failure = f"The instance count of {variant.name} was not changed: {exc}"
                continue
            variant.wanted, variant.most = count, max(count, variant.most if variant.is_scaled else count)
            if not variant.is_scaled:
                self.copies.shrink(variant, count)
        await self._changed(endpoint)
        endpoint.status = "InService"

    async def _delete(self, endpoint: Endpoint, was: asyncio.Task[None] | None) -> None:
        if was is not None:
            was.cancel()
            await asyncio.gather(was, return_exceptions=True)
            endpoint.status = "Deleting"
        coming = endpoint.coming.everything if endpoint.coming is not None else []
        await self.copies.stop([*endpoint.fleet.everything, *coming], 30.0)
        endpoint.status = "Deleted"
        await self._changed(endpoint)
        self.watch.forget(endpoint.account, endpoint.name)
        self._all.pop((endpoint.account, endpoint.name), None)

    async def _tick(self) -> None:
        """Scale what is at rest; an update counts its copies itself."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            for endpoint in list(self._all.values()):
                if endpoint.task is None and endpoint.status == "InService":
                    for variant in endpoint.fleet.everything:
                        self.copies.scale(endpoint.account, endpoint.name, variant, now)

    # -- places ---------------------------------------------------------------------------------------

    def object_path(self, url: str) -> Path:
        """The file of an object in the server's own buckets. Raises InvalidRequest for any other place."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        path = (self._buckets / bucket / key).resolve()
        if not url.startswith("s3://") or not key or not path.is_relative_to(self._buckets.resolve() / bucket):
            raise InvalidRequest(f"{url} is not s3://bucket/key in a bucket of this server (folders of its home).")
        return path

    def status(self, account: str) -> list[dict[str, Any]]:
        """Every copy of the account's endpoints, for people."""
        now = time.monotonic()
        rows = []
        for endpoint in self.all(account):
            fleets = [endpoint.fleet, *([endpoint.coming] if endpoint.coming is not None else [])]
            for fleet in fleets:
                for variant in fleet.everything:
                    rows += [
                        {
                            "endpoint": endpoint.name,
                            "status": endpoint.status,
                            "config": fleet.config_name,
                            "variant": variant.name,
                            "weight": variant.weight,
                            "copy_id": copy.copy_id,
                            "state": str(copy.state) if isinstance(copy, ProxyProcess) else "forward",
                            "pid": copy.pid if isinstance(copy, ProxyProcess) else None,
                            "age_s": round(now - copy.born_at, 3) if isinstance(copy, ProxyProcess) else None,
                            "restarts": copy.restarts if isinstance(copy, ProxyProcess) else 0,
                            "in_flight": copy.in_flight,
                            "requests": copy.requests,
                            "wanted": variant.wanted,
                            "most": variant.most,
                        }
                        for copy in variant.copies
                    ]
        return rows

    async def close(self, grace_s: float) -> None:
        """End every copy."""
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        for endpoint in self._all.values():
            if endpoint.task is not None:
                endpoint.task.cancel()
                await asyncio.gather(endpoint.task, return_exceptions=True)
        fleets = [fleet for e in self._all.values() for fleet in (e.fleet, e.coming) if fleet is not None]
        await self.copies.stop([variant for fleet in fleets for variant in fleet.everything], grace_s)
        await self.copies.close()


def _point(salt: str, sticky: str | None) -> float:
    return random.random() if sticky is None else sticky_point(salt, sticky)  # noqa: S311  (a split, nothing secret)
