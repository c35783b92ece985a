"""Prompts and completions, for those who asked for them: delivered to buckets, never waited for.

Off until an account puts a configuration (PutModelInvocationLoggingConfiguration). What a request pays is one entry in
a queue of bounded bytes; what does not fit, or what a bucket refuses for long, is lost, counted and said once. Records
are written every FLUSH_S seconds, at once when much has come, and at the stop; a server that is killed loses those of
its last seconds.
"""

from __future__ import annotations

import asyncio
import gzip
import secrets
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import structlog

from outcrop.errors import ServiceError
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.invocation_record import PERMISSION_CHECK, Delivery, Invocation, render
from outcrop.telemetry.metrics import Reading

log = structlog.get_logger(__name__)

FLUSH_S = 10.0
EAGER_BYTES = 4_000_000  # as much is written without waiting for the time
CLOSE_S = 15.0  # that the bucket gets at the stop
_PUTS_AT_A_TIME = 8


class Sink(Protocol):
    """Where objects go. Raises a ServiceError that says why one could not be written."""

    async def put(self, bucket: str, key: str, content: bytes) -> None: ...


class InvocationLog:
    """Used by the event loop only. *most_bytes*: of bodies that wait for their bucket, in all."""

    def __init__(self, sink: Sink, *, region: str, most_bytes: int) -> None:
        self._sink = sink
        self._region = region
        self._most_bytes = most_bytes
        self._deliveries: dict[str, Delivery] = {}
        self._pending: dict[str, list[tuple[Delivery, Invocation]]] = defaultdict(list)
        self._held = 0
        self._wake = asyncio.Event()
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by account: one slow bucket delays nobody else's records
        self._is_failing = False
        self.delivered = self.failed = self.large_delivered = self.large_failed = 0

    def configure(self, account: str, config: Mapping[str, Any] | None) -> None:
        """From now on *account* has this ``LoggingConfig``; None is none."""
        delivery = Delivery.of(config) if config else None
        if delivery is None:
            self._deliveries.pop(account, None)
        else:
            self._deliveries[account] = delivery

    async def check(self, account: str, config: Mapping[str, Any]) -> None:
        """Write the object with which AWS tries a bucket. Raises a ServiceError when that fails."""
        delivery = Delivery.of(config)
        if delivery is not None:
            await self._sink.put(delivery.bucket, delivery.below(account) + PERMISSION_CHECK, b"")

    def wants(self, account: str) -> bool:
        return account in self._deliveries

    def reserve(self, size: int) -> bool:
        """Take *size* bytes of what may wait; False when there are not as many. What is taken goes with ``add``."""
        if self._held + size > self._most_bytes:
            return False
        self._held += size
        return True

    def give_up(self, reserved: int) -> None:
        """Lose a record that had *reserved* bytes."""
        self._held -= reserved
        self.failed += 1

    def add(self, seen: Invocation) -> None:
        """Deliver *seen*, whose ``size`` bytes were reserved, soon."""
        delivery = self._deliveries.get(seen.account)
        if delivery is None:  # switched off meanwhile
            self._held -= seen.size
            return
        self._pending[seen.account].append((delivery, seen))
        if self._held >= EAGER_BYTES:
            self._wake.set()

    async def run(self) -> None:
        """Write what has come, every FLUSH_S seconds, until it is cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._wake.wait()
            self._wake.clear()
            self._begin()

    async def close(self) -> None:
        """Write the rest, for CLOSE_S seconds at most; what is not written then is lost and counted."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        for task in list(self._under_way.values()):
            task.cancel()
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
        if self.failed:
            log.warning("invocation log records were lost since the start", records=self.failed)

    async def flush(self) -> None:
        """Return once everything that waits now is written or lost."""
        while self._pending or self._under_way:
            self._begin()
            await asyncio.wait(set(self._under_way.values()))

    def _begin(self) -> None:
        for account in [account for account in self._pending if account not in self._under_way]:
            task = asyncio.create_task(self._drain(self._pending.pop(account)), name="invocation-log")
            self._under_way[account] = task
            task.add_done_callback(partial(self._ended, account))

    def _ended(self, account: str, _: asyncio.Task[None]) -> None:
        del self._under_way[account]

    async def _drain(self, taken: Sequence[tuple[Delivery, Invocation]]) -> None:
        groups: dict[tuple[Delivery, str], list[Invocation]] = defaultdict(list)
        for delivery, seen in taken:
            groups[delivery, delivery.folder(seen.account, self._region, seen.at)].append(seen)
        left = len(taken)
        try:
            for (delivery, folder), batch in groups.items():
                await self._deliver(delivery, folder, batch)
                left -= len(batch)
        except Exception:
            log.exception("invocation log records hit a defect")
        finally:
            self.failed += left
            self._held -= sum(seen.size for _, seen in taken)

    async def _deliver(self, delivery: Delivery, folder: str, batch: Sequence[Invocation]) -> None:
        key = f"{folder}{_stamp(time.time())}_{secrets.token_hex(8)}.json.gz"
        lines, objects = await asyncio.to_thread(self._render, batch, delivery)
        gate = asyncio.Semaphore(_PUTS_AT_A_TIME)

        async def large(name: str, content: bytes) -> None:
            async with gate:
                is_there = await self._put(delivery.bucket, name, content)
            self.large_delivered += is_there
            self.large_failed += not is_there

        # The bodies first: a record points to nothing that is not there yet.
        await asyncio.gather(*(large(name, content) for name, content in objects.items()))
        if await self._put(delivery.bucket, key, lines):
            self.delivered += len(batch)
        else:
            self.failed += len(batch)

    def _render(self, batch: Sequence[Invocation], delivery: Delivery) -> tuple[bytes, dict[str, bytes]]:
        lines: list[bytes] = []
        objects: dict[str, bytes] = {}
        for seen in batch:
            found = render(seen, delivery, self._region)
            lines.append(found.line)
            objects |= found.objects
        return gzip.compress(b"\n".join(lines) + b"\n", 6), objects

    async def _put(self, bucket: str, key: str, content: bytes) -> bool:
        try:
            await self._sink.put(bucket, key, content)
        except ServiceError as exc:
            if not self._is_failing:
                self._is_failing = True
                log.warning("invocation logs cannot be delivered", bucket=bucket, reason=exc.message)
            return False
        self._is_failing = False
        return True

    def readings(self) -> list[Reading]:
        """What is counted, for a scrape."""
        return [
            (table.INVOCATION_LOGS, (), self.delivered),
            (table.INVOCATION_LOGS_LOST, (), self.failed),
            (table.INVOCATION_LOG_BODIES, (), self.large_delivered),
            (table.INVOCATION_LOG_BODIES_LOST, (), self.large_failed),
            (table.INVOCATION_LOG_WAITING, (), self._held),
        ]


def _stamp(at: float) -> str:
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%Y%m%dT%H%M%S}{moment.microsecond // 1000:03d}Z"
