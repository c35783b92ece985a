"""SageMaker-style endpoints: variants behind proxies, the split between them, updates that shift it.

One proxy per variant, with as many workers as the variant has instances; it forwards to an imported model of this
server. An update makes new proxies beside the old ones, waits until they answer, moves the traffic in the steps that
were asked for and ends the old ones; one that fails leaves the old ones as they were.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from outcrop.engines.http1 import Client
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.serving.proxies import ProxyProcess
from outcrop.serving.traffic import choose, steps, sticky_point

log = structlog.get_logger(__name__)

START_S = 240.0  # SageMaker's own limit until the first ping that is answered
_GIB = 1 << 30


@dataclass(slots=True, kw_only=True)
class Variant:
    """One variant as it runs. *model*: the body of the call that made its model."""

    name: str
    weight: float
    instances: int
    spec: Mapping[str, Any]
    model: Mapping[str, Any]
    proxy: ProxyProcess
    folder: Path
    in_flight: int = 0


@dataclass(slots=True, kw_only=True)
class Endpoint:
    """One endpoint. *coming* takes *share* of the traffic during an update."""

    account: str
    name: str
    config_name: str
    status: str = "Creating"
    failure: str = ""
    variants: list[Variant] = field(default_factory=list)
    coming: list[Variant] = field(default_factory=list)
    share: float = 0.0
    deployment: Mapping[str, Any] | None = None
    task: asyncio.Task[None] | None = None

    def chosen(self, target: str | None, sticky: str | None, point: Callable[[], float]) -> Variant:
        """The variant that answers. Raises InvalidRequest for one that the endpoint has not."""
        pool = self.variants
        if self.coming and (not pool or _point(f"{self.name}/update", sticky, point) < self.share):
            pool = self.coming
        if target is not None:
            for variant in (*pool, *self.variants, *self.coming):
                if variant.name == target:
                    return variant
            raise InvalidRequest(f"Variant {target} not found in endpoint {self.name}.")
        return pool[choose([variant.weight for variant in pool], _point(self.name, sticky, point))]


def _point(salt: str, sticky: str | None, point: Callable[[], float]) -> float:
    return point() if sticky is None else sticky_point(salt, sticky)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an endpoint is to run: variants with the bodies of their models."""

    config_name: str
    variants: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


class Endpoints:
    """Every endpoint that runs here. *changed* is told of each change, to be kept."""

    def __init__(
        self,
        *,
        folder: Path,
        buckets: Path,
        environment: Mapping[str, str],
        changed: Callable[[Endpoint], Awaitable[None]],
    ) -> None:
        self._folder = folder
        self._buckets = buckets
        self._environment = environment
        self._changed = changed
        self._url = ""
        self._number = 0
        self._all: dict[tuple[str, str], Endpoint] = {}
        self.client = Client(connect_timeout_s=5, read_timeout_s=900, keep_s=30)

    def start(self, url: str) -> None:
        """From now on proxies may be started: the server answers at *url*. What an earlier server unpacked goes."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._url = url

    def find(self, account: str, name: str) -> Endpoint | None:
        return self._all.get((account, name))

    def all(self, account: str) -> list[Endpoint]:
        return [endpoint for (owner, _), endpoint in self._all.items() if owner == account]

    def create(self, account: str, name: str, plan: Plan) -> Endpoint:
        """Begin to start an endpoint; its status tells how it goes."""
        endpoint = Endpoint(account=account, name=name, config_name=plan.config_name)
        self._all[account, name] = endpoint
        self._run(endpoint, self._create(endpoint, plan))
        return endpoint

    def update(self, endpoint: Endpoint, plan: Plan, deployment: Mapping[str, Any] | None, *, keeps: bool) -> None:
        """Begin a blue/green update. *keeps*: weights and instance counts stay what they were."""
        self._begin(endpoint, "Updating")
        endpoint.deployment = deployment
        self._run(endpoint, self._update(endpoint, plan, deployment, keeps=keeps))

    def reweigh(self, endpoint: Endpoint, wanted: Mapping[str, tuple[float | None, int | None]]) -> None:
        """Set weights at once; begin to change instance counts. Raises InvalidRequest for an unknown variant."""
        known = {variant.name for variant in endpoint.variants}
        for name in wanted:
            if name not in known:
                raise InvalidRequest(f'The requested variant "{name}" does not exist in endpoint "{endpoint.name}".')
        self._begin(endpoint, "Updating")
        self._run(endpoint, self._reweigh(endpoint, wanted))

    def delete(self, endpoint: Endpoint) -> None:
        """Begin to end an endpoint; it is forgotten when its proxies are gone."""
        if endpoint.task is not None and endpoint.status != "Creating":
            raise InvalidRequest(f'Cannot delete endpoint "{endpoint.name}" while it is {endpoint.status}.')
        if endpoint.task is not None:
            endpoint.task.cancel()
        endpoint.status = "Deleting"
        self._run(endpoint, self._delete(endpoint))

    @asynccontextmanager
    async def lent(self, endpoint: Endpoint, target: str | None, sticky: str | None) -> AsyncIterator[Variant]:
        """The variant for one invocation, counted until the end of the block."""
        if not endpoint.variants and not endpoint.coming:
            raise InvalidRequest(f"Endpoint {endpoint.name} is {endpoint.status}; wait until it is InService.")
        variant = endpoint.chosen(target, sticky, random.random)
        variant.in_flight += 1
        try:
            yield variant
        finally:
            variant.in_flight -= 1

    # -- what tasks do --------------------------------------------------------------------------------

    def _begin(self, endpoint: Endpoint, status: str) -> None:
        if endpoint.task is not None:
            raise InvalidRequest(
                f'Cannot update in-progress endpoint "{endpoint.name}" ({endpoint.status}). Wait until it is InService.'
            )
        endpoint.status = status

    def _run(self, endpoint: Endpoint, work: Any) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                if endpoint.task is asyncio.current_task():
                    endpoint.task = None

        endpoint.task = asyncio.create_task(run(), name=f"endpoint {endpoint.name}")

    async def _create(self, endpoint: Endpoint, plan: Plan) -> None:
        try:
            endpoint.variants = await self._started(endpoint, plan, {})
            endpoint.status, endpoint.failure = "InService", ""
        except (ServiceError, OSError, tarfile.TarError) as exc:
            endpoint.status, endpoint.failure = "Failed", str(exc)
            log.error("an endpoint does not start", endpoint=endpoint.name, reason=str(exc))
        await self._changed(endpoint)

    async def _update(
        self, endpoint: Endpoint, plan: Plan, deployment: Mapping[str, Any] | None, *, keeps: bool
    ) -> None:
        kept = {variant.name: variant for variant in endpoint.variants} if keeps else {}
        try:
            endpoint.coming = await self._started(endpoint, plan, kept)
        except (ServiceError, OSError, tarfile.TarError) as exc:
            endpoint.status, endpoint.failure = "InService", f"The update was rolled back: {exc}"
            log.error("an update was rolled back", endpoint=endpoint.name, reason=str(exc))
            await self._changed(endpoint)
            return
        policy = (deployment or {}).get("BlueGreenUpdatePolicy", {})
        routing = policy.get("TrafficRoutingConfiguration", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0})
        size = routing.get("CanarySize") or routing.get("LinearStepSize") or {"Value": 100}
        shares = steps(routing["Type"], size["Value"])
        for share in shares:
            endpoint.share = share
            if share < 1 or len(shares) > 1:
                await asyncio.sleep(routing.get("WaitIntervalInSeconds", 0))
        old, endpoint.variants, endpoint.coming, endpoint.share = endpoint.variants, endpoint.coming, [], 0.0
        endpoint.config_name, endpoint.failure = plan.config_name, ""
        await asyncio.sleep(policy.get("TerminationWaitInSeconds", 0))
        await self._stop(old)
        endpoint.status = "InService"
        await self._changed(endpoint)

    async def _reweigh(self, endpoint: Endpoint, wanted: Mapping[str, tuple[float | None, int | None]]) -> None:
        ended = []
        try:
            for at, variant in enumerate(endpoint.variants):
                weight, instances = wanted.get(variant.name, (None, None))
                if weight is not None:
                    variant.weight = weight
                if instances is not None and instances != variant.instances:
                    fresh = await self._variant(endpoint, variant.spec, variant.model, variant.weight, instances)
                    endpoint.variants[at] = fresh
                    ended.append(variant)
            endpoint.failure = ""
        except (ServiceError, OSError, tarfile.TarError) as exc:
            endpoint.failure = f"The instance count was not changed: {exc}"
        await self._stop(ended)
        endpoint.status = "InService"
        await self._changed(endpoint)

    async def _delete(self, endpoint: Endpoint) -> None:
        await self._stop([*endpoint.variants, *endpoint.coming])
        endpoint.status = "Deleted"
        await self._changed(endpoint)
        self._all.pop((endpoint.account, endpoint.name), None)

    async def _started(self, endpoint: Endpoint, plan: Plan, kept: Mapping[str, Variant]) -> list[Variant]:
        """Every variant of *plan*, answering pings; none is left when one of them fails."""
        found: list[Variant] = []
        try:
            for spec, model in plan.variants:
                was = kept.get(spec["VariantName"])
                weight = was.weight if was else spec.get("InitialVariantWeight", 1.0)
                instances = was.instances if was else spec.get("InitialInstanceCount", 1)
                found.append(await self._variant(endpoint, spec, model, weight, instances))
        except BaseException:
            await self._stop(found, grace_s=0)
            raise
        return found

    async def _variant(
        self, endpoint: Endpoint, spec: Mapping[str, Any], model: Mapping[str, Any], weight: float, instances: int
    ) -> Variant:
        self._number += 1
        label = f"{endpoint.name}.{spec['VariantName']}"
        folder = self._folder / f"{endpoint.account}-{label}-{self._number}"
        container = model["PrimaryContainer"]
        await asyncio.to_thread(self._unpack, container.get("ModelDataUrl"), folder / "model")
        settings = {
            **self._environment,
            **container.get("Environment", {}),
            "OUTCROP_PROXY_MODEL_DIR": str(folder / "model"),
            "OUTCROP_PROXY_WORKERS": str(max(1, instances)),
        }
        settings.setdefault("OUTCROP_PROXY_ENDPOINT_URL", self._url)
        proxy = ProxyProcess(label, settings, folder / "proxy.log")
        await proxy.start(self.client, START_S)
        return Variant(
            name=spec["VariantName"],
            weight=weight,
            instances=instances,
            spec=spec,
            model=model,
            proxy=proxy,
            folder=folder,
        )

    def _unpack(self, url: str | None, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not url:
            return
        path = self.object_path(url)
        if not path.is_file():
            raise InvalidRequest(f"Could not find model data at {url}.")
        with tarfile.open(path, "r:*") as archive:
            if sum(member.size for member in archive) > _GIB:
                raise InvalidRequest(f"{url} unpacks to more than 1 GiB: a bundle holds a script, not weights.")
            archive.extractall(folder, filter="data")

    def object_path(self, url: str) -> Path:
        """The file of an object in the server's own buckets. Raises InvalidRequest for any other place."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        path = (self._buckets / bucket / key).resolve()
        if not url.startswith("s3://") or not key or not path.is_relative_to(self._buckets.resolve() / bucket):
            raise InvalidRequest(f"{url} is not s3://bucket/key in a bucket of this server (folders of its home).")
        return path

    async def _stop(self, variants: Sequence[Variant], grace_s: float = 30.0) -> None:
        await asyncio.gather(*(variant.proxy.stop(grace_s) for variant in variants))
        for variant in variants:
            await asyncio.to_thread(shutil.rmtree, variant.folder, ignore_errors=True)

    async def close(self, grace_s: float) -> None:
        """End every proxy."""
        for endpoint in self._all.values():
            if endpoint.task is not None:
                endpoint.task.cancel()
                await asyncio.gather(endpoint.task, return_exceptions=True)
        everything = [found for endpoint in self._all.values() for found in (*endpoint.variants, *endpoint.coming)]
        await self._stop(everything, grace_s)
        await self.client.aclose()
