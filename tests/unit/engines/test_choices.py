from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from outcrop.engines.choices import all_or_first_error, merged
from outcrop.errors import EngineFault
from outcrop.inference.canonical import Chunk


class Running:
    """How many run now, and the most that ever did."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def __aenter__(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    async def __aexit__(self, *_: object) -> None:
        self.now -= 1


@pytest.mark.parametrize("width", [1, 3])
async def test_no_more_choices_run_at_a_time_than_there_are_slots(width: int) -> None:
    running = Running()

    async def one(index: int) -> int:
        async with running:
            await asyncio.sleep(0.001)
            return index

    async def stream(index: int) -> AsyncGenerator[list[Chunk], None]:
        async with running:
            for _ in range(3):
                await asyncio.sleep(0.001)
                yield [Chunk(text="x", index=index)]

    assert await all_or_first_error([one(index) for index in range(6)], width) == list(range(6))
    assert running.most == width
    found = [batch[0].index async for batch in merged([stream(index) for index in range(6)], width)]
    assert sorted(found) == sorted([*range(6)] * 3)
    assert running.most == width


async def test_the_first_error_ends_those_that_run_and_those_that_wait() -> None:
    running = Running()

    async def fails() -> None:
        raise EngineFault("broke")

    async def waits() -> None:
        async with running:
            await asyncio.sleep(60)

    with pytest.raises(EngineFault, match="broke"):
        await all_or_first_error([waits(), fails(), waits()], 2)
    assert running.now == 0
