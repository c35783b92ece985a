"""SageMaker's endpoints: their proxies, their API, and who keeps them over a restart."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from outcrop.access.directory import Directory
from outcrop.access.endpoint_keys import EndpointKeys
from outcrop.access.identities import AccessKey
from outcrop.api.endpoint_operations import EndpointOperations
from outcrop.api.sagemaker import SageMaker, remember
from outcrop.api.sagemaker_runtime import SageMakerRuntime
from outcrop.app.observers import Observers
from outcrop.metering.usage import proxies_id
from outcrop.registry.sagemaker_records import SageMakerRecords
from outcrop.registry.store import Registry
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.proxies import write_privately
from outcrop.serving.rollout import Endpoint
from outcrop.serving.watch import Watch
from outcrop.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class SageMakerParts:
    """*keys*: what proxies sign with."""

    keys: EndpointKeys
    endpoints: Endpoints
    control: SageMaker
    runtime: SageMakerRuntime
    operations: EndpointOperations

    async def start(self, url: str, undo: contextlib.AsyncExitStack, drain_s: float) -> None:
        """Bring endpoints, updates and accepted asynchronous calls of an earlier server back; *url* is ours."""
        self.endpoints.start(url)
        undo.push_async_callback(self.endpoints.close, drain_s)
        undo.push_async_callback(self.runtime.close)
        await self.operations.resume()
        await self.control.resume()
        await self.runtime.resume()


def make_sagemaker(
    settings: Settings, registry: Registry, directory: Directory, observers: Observers
) -> SageMakerParts:
    records = SageMakerRecords(registry)
    keys = EndpointKeys(directory)

    async def environment(account: str, name: str) -> dict[str, str]:
        return _proxy_environment(settings, name, await keys.of(account, name))

    async def on_endpoint(endpoint: Endpoint) -> None:
        if endpoint.status == "Deleted":
            keys.forget(endpoint.account, endpoint.name)
        await asyncio.to_thread(remember, records, endpoint)

    endpoints = Endpoints(
        folder=settings.run / "proxies",
        logs=settings.logs / "proxies",
        buckets=settings.buckets,
        region=settings.region,
        settings_of=environment,
        changed=on_endpoint,
        note=lambda account, endpoint, copy_id, state: observers.meter.copy(copy_id, proxies_id(endpoint), state),
        watch=Watch(),
    )
    observers.metrics.names_too(lambda: (f"endpoint/{endpoint.name}" for endpoint in endpoints.all()))
    return SageMakerParts(
        keys=keys,
        endpoints=endpoints,
        control=SageMaker(region=settings.region, records=records, endpoints=endpoints),
        runtime=SageMakerRuntime(endpoints, records, settings.home / "async"),
        operations=EndpointOperations(endpoints, records),
    )


def _proxy_environment(settings: Settings, name: str, key: AccessKey) -> dict[str, str]:
    """What the proxies of endpoint *name* reach this server with; the keys are in a private file, not in here."""
    keys = settings.run / "proxy-credentials" / f"{key.principal.account}-{name}"
    lines = ["[default]", f"aws_access_key_id={key.access_key_id}", f"aws_secret_access_key={key.secret_access_key}"]
    write_privately(keys, "\n".join(lines) + "\n")
    found = {
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "AWS_EC2_METADATA_DISABLED": "true",
        "OUTCROP_PROXY_REGION": settings.region,
        "OUTCROP_PROXY_LOG_LEVEL": "warning",
    }
    if settings.has_tls and settings.authority is not None:
        found["AWS_CA_BUNDLE"] = str(settings.authority)
    return found
