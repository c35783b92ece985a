"""Bytes on their way: order, memory, resume after a real SIGKILL, sources that change, the store's checksums."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from awscrt.checksums import crc64nvme
from tests.support.server import wait_for

from outcrop.errors import SourceChanged
from outcrop.importing.sources.base import SourceFile
from outcrop.importing.transfer import PART_BYTES, SYNC_BYTES, Transfer


class MemorySource:
    """Files in memory, as a store far away would give them; ``asked`` keeps the ranges."""

    uri = "s3://memory/"
    place = "memory"

    def __init__(self, **files: bytes) -> None:
        self.bodies = files
        self.asked: list[tuple[str, int, int]] = []
        self.in_flight = self.most_in_flight = 0

    async def files(self) -> dict[str, SourceFile]:
        return {name: self.file(name) for name in self.bodies}

    def file(self, name: str) -> SourceFile:
        body = self.bodies[name]
        return SourceFile(name=name, size_bytes=len(body), etag=hashlib.md5(body).hexdigest())

    async def vouched(self, files: Iterable[SourceFile]) -> list[SourceFile]:
        return list(files)

    async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        self.asked.append((file.name, start, end))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        # Later parts first: order must not depend on the source's.
        await asyncio.sleep(0.02 if (start // PART_BYTES) % 2 == 0 else 0.001)
        self.in_flight -= 1
        return memoryview(self.bodies[file.name])[start:end]

    async def aclose(self) -> None:
        return


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES + 7])
async def test_a_file_arrives_whole_whatever_its_size(tmp_path: Path, size: int) -> None:
    source = MemorySource(weights=content(size))
    heard: list[int] = []

    brought = await Transfer(64 << 20).bring(source, source.file("weights"), tmp_path / "weights", None, heard.append)

    assert (tmp_path / "weights").read_bytes() == source.bodies["weights"]
    assert brought.sha256 == hashlib.sha256(source.bodies["weights"]).hexdigest()
    assert brought.how == "downloaded"
    assert sum(heard) == size
    assert names_in(tmp_path) == ["weights"]


async def test_the_budget_bounds_what_all_files_have_in_flight(tmp_path: Path) -> None:
    source = MemorySource(a=content(4 * PART_BYTES), b=content(4 * PART_BYTES, 1), c=content(4 * PART_BYTES, 2))
    transfer = Transfer(3 * PART_BYTES)

    await asyncio.gather(
        *(transfer.bring(source, source.file(name), tmp_path / name, None, lambda _: None) for name in "abc")
    )

    assert source.most_in_flight == 3
    for name in "abc":
        assert (tmp_path / name).read_bytes() == source.bodies[name]


async def test_a_file_that_comes_later_gets_its_share_at_once(tmp_path: Path) -> None:
    source = MemorySource(large=content(24 * PART_BYTES), small=content(3 * PART_BYTES, 1))
    transfer = Transfer(2 * PART_BYTES)
    ended: list[str] = []

    async def bring(name: str) -> None:
        await transfer.bring(source, source.file(name), tmp_path / name, None, lambda _: None)
        ended.append(name)

    first = asyncio.create_task(bring("large"))
    while len(source.asked) < 4:
        await asyncio.sleep(0.001)
    await asyncio.gather(first, bring("small"))

    assert ended == ["small", "large"]
    small = [index for index, (name, *_) in enumerate(source.asked) if name == "small"]
    assert max(small) - min(small) + 1 <= 3 + 3 * 2, "the shares are equal"


async def test_a_failed_file_gives_its_share_of_the_budget_back(tmp_path: Path) -> None:
    class Broken(MemorySource):
        async def read(self, file: SourceFile, start: int, end: int) -> memoryview:
            if start:
                raise SourceChanged("gone")
            return await super().read(file, start, end)

    transfer = Transfer(2 * PART_BYTES)
    broken = Broken(a=content(6 * PART_BYTES))
    for _ in range(3):
        with pytest.raises(SourceChanged, match="gone"):
            await transfer.bring(broken, broken.file("a"), tmp_path / "a", None, lambda _: None)

    whole = MemorySource(b=content(3 * PART_BYTES))
    async with asyncio.timeout(10):
        await transfer.bring(whole, whole.file("b"), tmp_path / "b", None, lambda _: None)


async def test_a_cancelled_file_gives_its_share_of_the_budget_back(tmp_path: Path) -> None:
    transfer = Transfer(2 * PART_BYTES)
    source = MemorySource(a=content(6 * PART_BYTES))
    for _ in range(5):
        task = asyncio.create_task(transfer.bring(source, source.file("a"), tmp_path / "a", None, lambda _: None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async with asyncio.timeout(10):
        await transfer.bring(source, source.file("a"), tmp_path / "a", None, lambda _: None)
    assert (tmp_path / "a").read_bytes() == source.bodies["a"]


async def test_bytes_that_differ_from_the_stores_checksum_fail_the_file_and_are_not_kept(tmp_path: Path) -> None:
    source = MemorySource(weights=content(PART_BYTES + 5))
    right = base64.b64encode(crc64nvme(source.bodies["weights"]).to_bytes(8, "big")).decode()
    plain = source.file("weights")
    good = SourceFile(name="weights", size_bytes=plain.size_bytes, etag="x", checksums={"CRC64NVME": right})
    bad = SourceFile(name="weights", size_bytes=plain.size_bytes, etag="x", checksums={"CRC64NVME": "AAAAAAAAAAA="})
    transfer = Transfer(64 << 20)

    with pytest.raises(SourceChanged, match="another CRC64NVME"):
        await transfer.bring(source, bad, tmp_path / "weights", None, lambda _: None)
    assert names_in(tmp_path) == []

    assert (await transfer.bring(source, good, tmp_path / "weights", None, lambda _: None)).verified == "CRC64NVME"


KILLED = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from tests.unit.importing.test_transfer import MemorySource, content
    from outcrop.importing.transfer import SYNC_BYTES, Transfer

    class Hangs(MemorySource):
        async def read(self, file, start, end):
            if start >= 2 * SYNC_BYTES:
                await asyncio.sleep(3600)
            return await super().read(file, start, end)

    source = Hangs(weights=content(3 * SYNC_BYTES))
    asyncio.run(Transfer(64 << 20).bring(source, source.file("weights"), Path(sys.argv[1]), None, lambda _: None))
    """
)


def killed_at_two_thirds(target: Path) -> int:
    """Bring a file in a process that is killed when the journal says something; what it says."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)])
    journal = target.with_name(target.name + ".journal")
    try:
        wait_for(lambda: journal.exists() or process.poll() is not None, 60)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    durable: int = json.loads(journal.read_bytes())["durable_bytes"]
    return durable


async def test_a_killed_download_asks_only_for_what_is_not_on_disk(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    durable = await asyncio.to_thread(killed_at_two_thirds, target)
    assert durable >= SYNC_BYTES

    source = MemorySource(weights=content(3 * SYNC_BYTES))
    taken: list[int] = []
    brought = await Transfer(64 << 20).bring(source, source.file("weights"), target, None, lambda _: None, taken.append)

    assert taken == [0], "the first try had taken the disk for all of it"
    assert min(start for _, start, _ in source.asked) == durable
    assert brought.sha256 == hashlib.sha256(source.bodies["weights"]).hexdigest()
    assert target.read_bytes() == source.bodies["weights"]
    assert names_in(tmp_path) == ["weights"]


async def test_a_source_that_was_replaced_while_a_download_was_down_fails_by_name(tmp_path: Path) -> None:
    source = MemorySource(weights=content(PART_BYTES))
    (tmp_path / "weights.part").write_bytes(bytes(PART_BYTES))
    earlier = {"etag": "another", "size_bytes": PART_BYTES, "durable_bytes": PART_BYTES}
    (tmp_path / "weights.journal").write_text(json.dumps(earlier))

    with pytest.raises(SourceChanged, match="weights was replaced in the source"):
        await Transfer(64 << 20).bring(source, source.file("weights"), tmp_path / "weights", None, lambda _: None)
    assert source.asked == []
