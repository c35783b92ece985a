"""A closed-loop load generator that costs little: prepared bytes out, answers only split, never parsed.

``python -m outcrop.bench.load`` reads one ``Plan`` as JSON from standard input and prints one ``Result``. It runs in
a process of its own, so that its clock is not held up by anything that is measured.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import sys
import time
from collections.abc import Callable

import msgspec

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STAMP = re.compile(rb'(?:"content"|"text"|"generation"):"(\d{10,}) "')
_AWS_PIECE = re.compile(rb'{"bytes":"([A-Za-z0-9+/=]+)"')


MOST_S = 20.0  # beyond its duration


class Plan(msgspec.Struct):
    """One level: *concurrency* connections that each repeat *request* until *duration_s* is over."""

    host: str
    port: int
    request: bytes  # a whole HTTP/1.1 request, base64 in JSON
    concurrency: int
    duration_s: float
    pieces: int = 0  # in one streamed answer; 0 asks for whole answers
    spread_s: float = 0.0  # over which the connections begin: all at once they would come in bursts for ever
    warm_up: int = 1  # requests per connection before the clock starts


class Result(msgspec.Struct):
    """Milliseconds; *piece_delay_ms* is from the upstream's write to this process's read."""

    requests: int
    failures: int
    requests_per_s: float
    latency_ms: dict[str, float]
    first_byte_ms: dict[str, float]
    pieces_per_s: float
    piece_delay_ms: dict[str, float]
    cpu_s: float  # of this process
    first_failure: str = ""


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p95 and p99 of *values*, by nearest rank; empty when there are none."""
    if not values:
        return {}
    ordered = sorted(values)
    return {
        f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 3) for share in (50, 95, 99)
    }


class _Connection(asyncio.Protocol):
    """Sends the request, waits for the whole answer, and again."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._sent_at = 0.0
        self._first_at = 0.0
        self._body_at = -1  # where the body begins; -1 until the head is there
        self._length: int | None = None
        self._warm_up = run.plan.warm_up
        self._is_unmeasured = run.plan.warm_up > 0  # no request after the warm-up was sent yet
        self._is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        asyncio.get_running_loop().call_later(self._run.begins_in_s(), self._send)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._is_over:
            self._is_over = True
            self._run.lost(f"the connection closed: {exc}")

    def _send(self) -> None:
        self._buffer.clear()
        self._body_at, self._length, self._first_at = -1, None, 0.0
        self._sent_at = time.perf_counter()
        self._transport.write(self._run.plan.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._run.plan.pieces and not self._warm_up:
            self._run.read(data)
        self._buffer += data
        if self._body_at < 0:
            head_end = self._buffer.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._body_at = head_end + 4
            found = _LENGTH.search(self._buffer, 0, head_end)
            self._length = int(found[1]) if found else None
        if not self._first_at and len(self._buffer) > self._body_at:
            self._first_at = now
        if self._length is None:
            is_whole = self._buffer.endswith(b"\r\n0\r\n\r\n")
        else:
            is_whole = len(self._buffer) >= self._body_at + self._length
        if is_whole:
            self._done(now)

    def _done(self, now: float) -> None:
        is_good = self._buffer.startswith(b"HTTP/1.1 200")
        if not is_good:
            self._run.fail(bytes(self._buffer[-300:]).decode(errors="replace"))
        if self._warm_up:
            self._warm_up -= 1
        elif is_good:
            self._run.answered(now, now - self._sent_at, self._first_at - self._sent_at)
        # Whoever is slow is measured once all the same.
        if now < self._run.ends_at or self._is_unmeasured:
            self._is_unmeasured = self._is_unmeasured and self._warm_up > 0
            self._send()
        else:
            self._is_over = True
            self._transport.close()
            self._run.leave()


class Run:
    """What all connections of one level report to."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ends_at = 0.0
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.delays: list[float] = []
        self.failures = 0
        self.first_failure = ""
        self._open = plan.concurrency
        self._begun = 0
        self._over = asyncio.Event()
        self._first_done = 0.0
        self._last_done = 0.0

    def begins_in_s(self) -> float:
        """When the next connection sends its first request."""
        self._begun += 1
        return self.plan.spread_s * (self._begun - 1) / self.plan.concurrency

    def answered(self, now: float, took: float, first: float) -> None:
        self._first_done = self._first_done or now - took
        self._last_done = now
        self.latencies.append(took * 1000)
        self.firsts.append(first * 1000)

    def read(self, data: bytes) -> None:
        """Note how long the pieces in *data* travelled; one that two reads share is left out."""
        now = time.monotonic_ns()
        if b'{"bytes":"' in data:
            data = b"".join(base64.b64decode(piece) for piece in _AWS_PIECE.findall(data))
        self.delays += [(now - int(stamp)) / 1e6 for stamp in _STAMP.findall(data)]

    def fail(self, reason: str) -> None:
        self.failures += 1
        self.first_failure = self.first_failure or reason

    def lost(self, reason: str) -> None:
        self.fail(reason)
        self.leave()

    def leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._over.set()

    async def go(self) -> Result:
        loop = asyncio.get_running_loop()
        make: Callable[[], _Connection] = lambda: _Connection(self)  # noqa: E731
        begun_cpu = time.process_time()
        self.ends_at = time.perf_counter() + self.plan.duration_s
        await asyncio.gather(
            *(loop.create_connection(make, self.plan.host, self.plan.port) for _ in range(self.plan.concurrency))
        )
        # A contender may be so slow that the rest of its answers is not worth the wait.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), MOST_S + self.plan.duration_s)
        spent = max(self._last_done - self._first_done, 1e-9)
        return Result(
            requests=len(self.latencies),
            failures=self.failures,
            requests_per_s=round(len(self.latencies) / spent, 1),
            latency_ms=percentiles(self.latencies),
            first_byte_ms=percentiles(self.firsts),
            pieces_per_s=round(len(self.latencies) * self.plan.pieces / spent, 1),
            piece_delay_ms=percentiles(self.delays),
            cpu_s=round(time.process_time() - begun_cpu, 3),
            first_failure=self.first_failure,
        )


async def _main(plan: Plan) -> Result:
    return await Run(plan).go()


def main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_main(plan))))


if __name__ == "__main__":
    main()
