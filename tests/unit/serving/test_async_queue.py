"""Asynchronous calls over a stop and a crash: kept before they are accepted, processed at least once."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from outcrop.serving.async_queue import AsyncQueue, Job


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def job(**fields: Any) -> Job:
    given: dict[str, Any] = {
        "account": "0",
        "principal": "p",
        "endpoint": "e",
        "input": "",
        "content_type": "t",
        "accept": "",
        "passed": {},
        "output": "out",
        "failure": "fail",
        "accepted_at": time.time(),
        "ttl_s": 60,
        "timeout_s": 10,
    }
    return Job(**{**given, **fields})


class Bench:
    """A queue over *folder* whose process answers *status*, or hangs."""

    def __init__(self, folder: Path, status: int = 200, *, hangs: bool = False) -> None:
        self.seen: list[bytes | None] = []
        self.written: dict[str, bytes] = {}
        self.refusals = 0
        self.told: list[tuple[str, int]] = []
        self._status = status
        self._hangs = hangs
        self.queue = AsyncQueue(folder, process=self._process, put=self._put, done=self._done)

    async def _process(self, asked: Job, body: bytes | None) -> tuple[int, bytes]:
        self.seen.append(body)
        if self._hangs:
            await asyncio.sleep(60)
        return self._status, b"answer"

    def _done(self, asked: Job, status: int) -> None:
        assert asked.output not in self.written or status < 400
        self.told.append((asked.output, status))

    def _put(self, place: str, content: bytes) -> None:
        self.written[place] = content

    async def done(self) -> None:
        async with asyncio.timeout(10):
            while self.queue.waiting:
                await asyncio.sleep(0.01)


async def test_an_answer_goes_to_its_place_and_a_failure_to_its_own(tmp_path: Path) -> None:
    for status, place in ((200, "out"), (500, "fail")):
        bench = Bench(tmp_path, status)
        await bench.queue.accept(job(), b"question")
        await bench.done()
        assert (bench.seen, bench.written) == ([b"question"], {place: b"answer"})
        assert bench.told == [("out", status)]
        assert names(tmp_path) == []


async def test_what_a_stop_cuts_off_is_processed_by_the_next_start(tmp_path: Path) -> None:
    first = Bench(tmp_path, hangs=True)
    await first.queue.accept(job(), b"one")
    await first.queue.accept(job(input="s3://b/k"), None)
    async with asyncio.timeout(10):
        while len(first.seen) < 2:
            await asyncio.sleep(0.01)
    await first.queue.close()
    assert first.written == {}

    second = Bench(tmp_path)
    await second.queue.resume()
    await second.done()
    assert sorted(second.seen, key=str) == sorted([b"one", None], key=str)
    assert second.written == {"out": b"answer"}
    assert names(tmp_path) == []


async def test_a_body_without_its_call_was_never_accepted(tmp_path: Path) -> None:
    (tmp_path / "0-x.body").write_bytes(b"half")
    (tmp_path / "1-y.json").write_bytes(b"{broken")
    bench = Bench(tmp_path)

    await bench.queue.resume()
    await bench.done()

    assert bench.seen == []
    assert names(tmp_path) == ["1-y.json"]


async def test_a_call_that_waited_longer_than_it_may_is_a_failure(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await bench.queue.accept(job(accepted_at=time.time() - 100), b"late")
    await bench.done()

    assert bench.seen == []
    assert b"longer than 60 s" in bench.written["fail"]


async def test_no_more_run_at_a_time_than_the_endpoint_takes(tmp_path: Path) -> None:
    bench = Bench(tmp_path, hangs=True)
    for _ in range(5):
        await bench.queue.accept(job(at_a_time=2), b"x")
    await asyncio.sleep(0.3)

    assert len(bench.seen) == 2
    await bench.queue.close()
