"""One variant of an endpoint and its copies: started, chosen, scaled by the models' own policy, drained.

How many there should be follows from the requests under way (``policy.decide``), between the variant's instance count
and the most that its ManagedInstanceScaling allows.
"""

from __future__ import annotations

import asyncio
import contextlib
import lzma
import shutil
import tarfile
import time
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from outcrop.engines.http1 import Client
from outcrop.errors import InvalidRequest, ServiceError
from outcrop.serving import policy
from outcrop.serving.background import Background
from outcrop.serving.demand import Demand
from outcrop.serving.forwards import Forward, destination
from outcrop.serving.invocation import Answerer
from outcrop.serving.lifecycle import State
from outcrop.serving.proxies import ProxyProcess

log = structlog.get_logger(__name__)

START_S = 240.0  # SageMaker's own limit until the first ping that is answered
DRAIN_S = 485.0  # a stream may take 480 s
CONCURRENCY = "OUTCROP_ENDPOINT_CONCURRENCY"  # in a model's Environment: invocations that one copy should carry
FAILED_START = (ServiceError, OSError, tarfile.TarError)
_SLOTS = 32
_KEEP_ALIVE_S = 300.0
_GIB = 1 << 30
_MOST_FILES = 10_000
_LONGEST_BACK_OFF_S = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class Variant:
    """One variant as it runs. *spec*: as its configuration has it; *model*: the body of the call that made its model.

    *wanted*: instances that were asked for, the least there are; *most*: copies that load may bring. *slots*:
    invocations that one copy should carry at a time.
    """

    name: str
    spec: Mapping[str, Any]
    model: Mapping[str, Any]
    weight: float
    wanted: int
    most: int
    slots: int = _SLOTS
    copies: list[Answerer] = field(default_factory=list)
    folder: Path | None = None  # where its bundle is unpacked
    starting: int = 0
    is_retired: bool = False
    cold_start_s: float = 3.0
    failed_starts: int = 0
    retry_at: float = 0.0
    active_at: float = field(default_factory=time.monotonic)
    demand: Demand = field(default_factory=Demand)
    decision: policy.Decision | None = None  # the last one

    @property
    def environment(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.model["PrimaryContainer"].get("Environment", {})
        return found

    @property
    def in_flight(self) -> int:
        return sum(copy.in_flight for copy in self.copies)

    def chosen(self, but: Collection[Answerer] = ()) -> Answerer | None:
        """The copy with the fewest invocations, a ready one where there is one, none of *but*; None without any."""
        found = (copy for copy in self.copies if copy not in but)
        return min(found, key=lambda copy: (not copy.is_ready, copy.in_flight), default=None)

    @property
    def is_scaled(self) -> bool:
        """Whether load may bring more copies than were asked for."""
        return bool(self.spec.get("ManagedInstanceScaling", {}).get("Status") == "ENABLED")

    def decide(self, now: float) -> policy.Decision:
        """Copies wanted at *now*, in seconds on the monotonic clock."""
        ready = [copy for copy in self.copies if copy.is_ready]
        rate_60, rate_15, count_15 = self.demand.rates(now)
        params = policy.Params(
            min_copies=self.wanted,
            max_copies=self.most,
            interference=0.0,  # a proxy waits; what limits a copy is how many it carries
            keep_alive_s=_KEEP_ALIVE_S,
        )
        facts = policy.Facts(
            ready=len(ready),
            starting=self.starting + len(self.copies) - len(ready),
            in_flight=self.in_flight,
            held=0,
            slots=self.slots,
            idle_s=max(0.0, now - self.active_at),
            rate_60=rate_60,
            rate_15=rate_15,
            count_15=count_15,
            work_s=self.demand.work_s,
            cold_start_s=self.cold_start_s,
            peak=self.demand.peak(now, max(60.0, 2 * self.cold_start_s)),
            is_backing_off=now < self.retry_at,
            copies=tuple(policy.CopyFacts(copy_id=copy.copy_id, in_flight=copy.in_flight) for copy in ready),
        )
        self.decision = policy.decide(facts, params)
        self.demand.decided(now, self.decision.up)
        return self.decision


def variant_of(
    spec: Mapping[str, Any], model: Mapping[str, Any], *, weight: float | None = None, wanted: int | None = None
) -> Variant:
    """A variant that runs nothing yet; *weight* and *wanted* (instances) in place of what the configuration says."""
    scaling = spec.get("ManagedInstanceScaling", {})
    is_scaled = scaling.get("Status") == "ENABLED"
    wanted = spec.get("DesiredInstanceCount") if wanted is None else wanted  # of an endpoint that ran before
    least = spec.get("InitialInstanceCount", 1) if wanted is None else wanted
    if is_scaled and wanted is None:
        least = max(1, scaling.get("MinInstanceCount", least))
    least = max(1, least)
    slots = model["PrimaryContainer"].get("Environment", {}).get(CONCURRENCY, "")
    return Variant(
        name=spec["VariantName"],
        spec=spec,
        model=model,
        weight=spec.get("InitialVariantWeight", 1.0) if weight is None else weight,
        wanted=least,
        most=max(least, scaling.get("MaxInstanceCount", least)) if is_scaled else least,
        slots=int(slots) if slots.isdecimal() and int(slots) else _SLOTS,
    )


class Copies:
    """Starts and ends the copies of variants. *note* is told of every change: label, copy, its state (None: ended).

    *settings_of*: what the proxies of an account's endpoint reach the server with.
    """

    def __init__(
        self,
        *,
        folder: Path,
        logs: Path,
        region: str,
        object_path: Callable[[str], Path],
        settings_of: Callable[[str, str], Awaitable[Mapping[str, str]]],
        note: Callable[[str, str, str, str | None], None],
    ) -> None:
        self.logs = logs
        self._folder = folder
        self._region = region
        self._object_path = object_path
        self._settings_of = settings_of
        self._note = note
        self._number = 0
        self._background = Background()
        self.client = Client(connect_timeout_s=5, read_timeout_s=900, keep_s=30)

    def sweep(self) -> None:
        """Remove what an earlier server unpacked."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def grow(self, account: str, endpoint: str, variant: Variant, count: int) -> None:
        """Start copies until there are *count*, answering pings. Raises FAILED_START; then none of these is left."""
        missing = count - len(variant.copies)
        if missing <= 0:
            return
        variant.starting += missing
        try:
            fresh = await self._started(account, endpoint, variant, missing)
        finally:
            variant.starting -= missing
        if variant.is_retired:
            await asyncio.gather(*(copy.stop(0) for copy in fresh))
            return
        variant.copies.extend(fresh)

    async def _started(self, account: str, endpoint: str, variant: Variant, count: int) -> list[Answerer]:
        to = destination(variant.environment, self._region)
        if to is not None:
            return [Forward(to) for _ in range(count)]  # nothing is started, so they count as copies at once
        if variant.folder is None:
            self._number += 1
            folder = self._folder / f"{account}-{endpoint}.{variant.name}-{self._number}"
            try:
                await asyncio.to_thread(self._unpack, variant.model["PrimaryContainer"].get("ModelDataUrl"), folder)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                raise
            variant.folder = folder
        settings = {
            **await self._settings_of(account, endpoint),
            "OUTCROP_PROXY_WORKERS": "1",
            **variant.environment,
            "OUTCROP_PROXY_MODEL_DIR": str(variant.folder),
        }
        if "SAGEMAKER_MODEL_SERVER_WORKERS" in variant.environment:
            settings["OUTCROP_PROXY_WORKERS"] = variant.environment["SAGEMAKER_MODEL_SERVER_WORKERS"]

        def changed(proxy: ProxyProcess) -> None:
            self.note(account, endpoint, proxy)

        fresh = [
            ProxyProcess(f"{endpoint}.{variant.name}", settings, self.logs / account, self._folder, changed)
            for _ in range(count)
        ]
        begun = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for proxy in fresh:
                    group.create_task(proxy.start(self.client, START_S))
        except BaseException as exc:
            await asyncio.gather(*(proxy.stop(0) for proxy in fresh))
            raise exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc from None
        variant.cold_start_s = time.monotonic() - begun
        return list(fresh)

    def note(self, account: str, endpoint: str, copy: Answerer) -> None:
        """Tell what *copy* does from now on."""
        if not isinstance(copy, ProxyProcess):
            return
        state: str | None = {State.READY: "busy" if copy.in_flight else "idle", State.STOPPED: None}.get(
            copy.state, str(copy.state)
        )
        self._note(account, endpoint, copy.copy_id, state)

    def shrink(self, variant: Variant, count: int, retire: Sequence[str] = ()) -> None:
        """Take copies out until there are *count*, those of *retire* first; each ends with its last invocation."""
        order = sorted(variant.copies, key=lambda copy: (copy.copy_id not in retire, copy.in_flight))
        for copy in order[: max(0, len(variant.copies) - count)]:
            variant.copies.remove(copy)
            self._background.spawn(self._drained(copy), f"drain {copy.copy_id}")

    async def _drained(self, copy: Answerer) -> None:
        if isinstance(copy, ProxyProcess):
            copy.becomes(State.DRAINING)
        grace_s = 0.0
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    while copy.in_flight:
                        await asyncio.sleep(0.05)
            grace_s = 30.0
        finally:
            await copy.stop(grace_s)

    def retire(self, variants: Sequence[Variant]) -> None:
        """End *variants*; their copies end with their last invocation, their folders with the last copy."""
        for variant in variants:
            copies = list(variant.copies)
            variant.is_retired = True
            variant.copies.clear()
            self._background.spawn(self._retired(variant, copies), f"retire {variant.name}")

    async def _retired(self, variant: Variant, copies: Sequence[Answerer]) -> None:
        await asyncio.gather(*(self._drained(copy) for copy in copies))
        await self._forget(variant)

    async def stop(self, variants: Sequence[Variant], grace_s: float) -> None:
        """End *variants* now."""
        copies = [copy for variant in variants for copy in variant.copies]
        for variant in variants:
            variant.is_retired = True
        await asyncio.gather(*(copy.stop(grace_s) for copy in copies))
        for variant in variants:
            variant.copies.clear()
            await self._forget(variant)

    async def _forget(self, variant: Variant) -> None:
        if variant.folder is not None:
            await asyncio.to_thread(shutil.rmtree, variant.folder, ignore_errors=True)
            variant.folder = None

    def scale(self, account: str, endpoint: str, variant: Variant, now: float) -> None:
        """Begin what the policy wants of *variant*; called every second."""
        decision = variant.decide(now)
        current = len(variant.copies) + variant.starting
        if decision.desired > current:
            log.info("scaling", endpoint=endpoint, variant=variant.name, copies=decision.desired, why=decision.reason)
            self._background.spawn(self._grown(account, endpoint, variant, decision.desired), f"grow {variant.name}")
        elif decision.desired < current and decision.retire and not variant.starting:
            log.info("scaling", endpoint=endpoint, variant=variant.name, copies=decision.desired, why=decision.reason)
            self.shrink(variant, decision.desired, decision.retire)

    async def _grown(self, account: str, endpoint: str, variant: Variant, count: int) -> None:
        try:
            await self.grow(account, endpoint, variant, count)
            variant.failed_starts = 0
        except FAILED_START as exc:
            variant.failed_starts += 1
            variant.retry_at = time.monotonic() + min(_LONGEST_BACK_OFF_S, 2.0**variant.failed_starts)
            log.error("a copy of a variant does not start", endpoint=endpoint, variant=variant.name, reason=str(exc))

    def _unpack(self, url: str | None, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if not url:
            return
        path = self._object_path(url)
        if not path.is_file():
            raise InvalidRequest(f"Could not find model data at {url}.")
        try:
            with tarfile.open(path, "r:*") as archive:
                size = 0
                for count, member in enumerate(archive, start=1):  # as far as it is needed: it may be packed well
                    size += member.size
                    if size > _GIB or count > _MOST_FILES:
                        raise InvalidRequest(
                            f"{url} unpacks to more than 1 GiB or {_MOST_FILES} files: a bundle holds a script, "
                            "not weights."
                        )
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as exc:
            raise InvalidRequest(f"{url} cannot be unpacked: {exc}. Make it anew with tar -czf.") from exc

    async def close(self) -> None:
        """End every drain that goes on, and the client. Copies of variants are stopped before."""
        await self._background.close()
        await self.client.aclose()
