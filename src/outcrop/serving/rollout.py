"""An endpoint's way from one configuration to the next: blue/green or rolling, watched by alarms, back when they fire.

The new copies start beside the old ones, which stay until the last bake is over. Until then nothing durable says that
there is a new configuration, so a server that is killed on the way comes back with the old one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from outcrop.serving.deployment import Deployment
from outcrop.serving.traffic import Size, batches, steps
from outcrop.serving.variants import FAILED_START, Copies, Variant, variant_of
from outcrop.serving.watch import Watch

log = structlog.get_logger(__name__)

_LOOK_S = 0.25  # between looks at the alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an endpoint is to run: variants with the bodies of their models. *capture*: its DataCaptureConfig."""

    config_name: str
    variants: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
    shadows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    capture: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What an update keeps of the variants that have the same name."""

    weights: bool = False
    instances: bool = False
    capture: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Fleet:
    """The variants of one configuration. *phase*: VariantStatus of sagemaker/2017-07-24; times: since the epoch."""

    config_name: str
    variants: list[Variant] = field(default_factory=list)
    shadows: list[Variant] = field(default_factory=list)
    capture: Mapping[str, Any] | None = None
    phase: str = "Creating"
    phase_since: float = field(default_factory=time.time)
    begun_at: float = field(default_factory=time.time)

    @property
    def everything(self) -> list[Variant]:
        return [*self.variants, *self.shadows]

    def enters(self, phase: str) -> None:
        self.phase, self.phase_since = phase, time.time()


@dataclass(slots=True, kw_only=True, eq=False)
class Endpoint:
    """One endpoint. *coming* takes *share* of the traffic during an update. *status*: EndpointStatus."""

    account: str
    name: str
    fleet: Fleet
    status: str = "Creating"
    failure: str = ""
    coming: Fleet | None = None
    share: float = 0.0
    deployment: Mapping[str, Any] | None = None
    task: asyncio.Task[None] | None = None


class RolledBack(Exception):
    """The update does not go on; its message says why."""


class Rollout:
    """Carries updates out. *changed* is told of an endpoint's new state, to be kept."""

    def __init__(self, copies: Copies, watch: Watch, changed: Callable[[Endpoint], Awaitable[None]]) -> None:
        self._copies = copies
        self._watch = watch
        self._changed = changed

    async def started(self, endpoint: Endpoint, fleet: Fleet, counts: Mapping[str, int] | None = None) -> None:
        """Start the copies of *fleet*: *counts* of its variants by name, else what they want. Raises FAILED_START."""
        for variant in fleet.everything:
            count = (counts or {}).get(variant.name, variant.wanted)
            await self._copies.grow(endpoint.account, endpoint.name, variant, count)

    async def run(self, endpoint: Endpoint, plan: Plan, deployment: Deployment, retained: Retained) -> None:
        """Replace what *endpoint* runs by *plan*, or leave it as it was, with a reason."""
        old = endpoint.fleet
        counts = {variant.name: variant.wanted for variant in old.everything}
        fresh = endpoint.coming = fleet_of(plan, old, retained)
        try:
            async with asyncio.timeout(deployment.limit_s) as limit:
                if deployment.batch is None:
                    await self._blue_green(endpoint, fresh, deployment)
                else:
                    await self._rolling(endpoint, old, fresh, deployment)
        except (RolledBack, TimeoutError, *FAILED_START) as exc:
            over = isinstance(exc, TimeoutError) and limit.expired()
            reason = f"it took more than {deployment.limit_s:g} s" if over else str(exc)
            reason = f"The update to {fresh.config_name} was rolled back: {reason}"
            log.error("an update is rolled back", endpoint=endpoint.name, reason=reason)
            endpoint.status, endpoint.failure = "RollingBack", reason
            await self._back(endpoint, old, fresh, counts, deployment)
            return
        endpoint.fleet, endpoint.coming, endpoint.share = fresh, None, 0.0
        endpoint.failure = ""
        await self._changed(endpoint)
        self._copies.retire(old.everything)
        endpoint.status = "InService"  # last: who reads it may update again at once

    async def _blue_green(self, endpoint: Endpoint, fresh: Fleet, deployment: Deployment) -> None:
        await self.started(endpoint, fresh)
        total = sum(variant.wanted for variant in fresh.variants)
        share = deployment.size.share_of(total) if deployment.size is not None else 1.0
        for step in steps(deployment.kind, share):
            fresh.enters("ActivatingTraffic")
            endpoint.share = step
            await self._bake(endpoint, fresh, deployment, deployment.wait_s)
        await self._bake(endpoint, fresh, deployment, deployment.termination_wait_s)

    async def _rolling(self, endpoint: Endpoint, old: Fleet, fresh: Fleet, deployment: Deployment) -> None:
        assert deployment.batch is not None
        wanted = [variant.wanted for variant in fresh.variants]
        before = {variant.name: len(variant.copies) for variant in old.variants}
        for counts in batches(wanted, deployment.batch):
            fresh.enters("Creating")
            names = [variant.name for variant in fresh.variants]
            await self.started(endpoint, fresh, dict(zip(names, counts, strict=True)))
            fresh.enters("ActivatingTraffic")
            endpoint.share = sum(counts) / sum(wanted)
            for variant in old.variants:
                # Not the last one: it is what the last batch falls back to.
                self._copies.shrink(variant, max(1, math.ceil(before[variant.name] * (1 - endpoint.share))))
            await self._bake(endpoint, fresh, deployment, deployment.wait_s)

    async def _bake(self, endpoint: Endpoint, fresh: Fleet, deployment: Deployment, wait_s: float) -> None:
        """Wait, with an eye on the alarms. Raises RolledBack."""
        fresh.enters("Baking")
        until = time.monotonic() + wait_s
        while True:
            if reason := self._watch.fired(endpoint.account, deployment.alarms):
                raise RolledBack(reason)
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(_LOOK_S, left_s))

    async def _back(
        self, endpoint: Endpoint, old: Fleet, fresh: Fleet, counts: Mapping[str, int], deployment: Deployment
    ) -> None:
        try:
            if deployment.rollback is not None and old.variants:
                await self._back_in_batches(endpoint, old, fresh, counts, deployment.rollback)
            await self.started(endpoint, old, counts)  # what a rolling update had taken away comes first
        except FAILED_START as exc:
            endpoint.failure = f"{endpoint.failure} Not all old copies came back: {exc}"
        endpoint.share, endpoint.coming = 0.0, None
        self._copies.retire(fresh.everything)
        await self._changed(endpoint)
        endpoint.status = "InService"

    async def _back_in_batches(
        self, endpoint: Endpoint, old: Fleet, fresh: Fleet, counts: Mapping[str, int], size: Size
    ) -> None:
        """Old copies come back batch by batch, and take their part of the traffic from new ones, which go."""
        wanted = [counts[variant.name] for variant in old.variants]
        names = [variant.name for variant in old.variants]
        for reached in batches(wanted, size, [len(variant.copies) for variant in old.variants]):
            await self.started(endpoint, old, dict(zip(names, reached, strict=True)))
            endpoint.share = min(endpoint.share, 1 - sum(reached) / sum(wanted))
            for variant in fresh.variants:
                self._copies.shrink(variant, max(1, math.ceil(variant.wanted * endpoint.share)))


def fleet_of(plan: Plan, old: Fleet | None = None, retained: Retained = Retained()) -> Fleet:
    """What *plan* says is to run, with what is *retained* of *old*; nothing of it is started."""
    known = {variant.name: variant for variant in old.everything} if old is not None else {}

    def made(spec: Mapping[str, Any], model: Mapping[str, Any]) -> Variant:
        was = known.get(spec["VariantName"])
        weight = was.weight if was is not None and retained.weights else None
        wanted = was.wanted if was is not None and retained.instances else None
        return variant_of(spec, model, weight=weight, wanted=wanted)

    return Fleet(
        config_name=plan.config_name,
        variants=[made(spec, model) for spec, model in plan.variants],
        shadows=[made(spec, model) for spec, model in plan.shadows],
        capture=old.capture if old is not None and retained.capture else plan.capture,
    )
