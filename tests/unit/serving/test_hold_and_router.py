"""The queue: bounds, fairness, places kept for retries. The router: load and prefixes."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

from outcrop.errors import Throttled
from outcrop.serving.gate import StartGate
from outcrop.serving.hold import Ask, HoldQueue, Limits
from outcrop.serving.router import HOMES_KEPT, Homes, choose, prefix_of, weight_of

WIDE = Limits(requests=100, bytes=10_000, principal_requests=50, principal_bytes=5_000)


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
async def queue(clock: list[float]) -> HoldQueue[str]:
    return HoldQueue[str](WIDE, lambda: clock[0])


def served(queue: HoldQueue[str], times: int) -> list[str]:
    found = []
    for _ in range(times):
        turn = queue.next()
        assert turn is not None
        turn[0].set_result("slot")
        found.append(f"{turn[1].principal}{turn[1].invocation_id or ''}")
    return found


async def test_within_a_principal_first_come_first_served_and_between_principals_in_turn(queue: HoldQueue[str]) -> None:
    for number in range(4):
        queue.join(Ask(principal="a", invocation_id=str(number)))
    queue.join(Ask(principal="b", invocation_id="0"))
    queue.join(Ask(principal="b", invocation_id="1"))

    assert served(queue, 6) == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_a_retry_takes_up_the_place_of_the_attempt_that_left(queue: HoldQueue[str]) -> None:
    ask = Ask(principal="a", invocation_id="first")
    seat = queue.join(ask)
    queue.join(Ask(principal="a", invocation_id="second"))
    queue.leave(seat, seat.waiter, keep_s=30)
    assert len(queue) == 1
    assert queue.kept == 1

    queue.join(ask)

    assert served(queue, 2) == ["afirst", "asecond"]


async def test_a_place_nobody_came_back_for_is_passed_over_and_then_forgotten(
    queue: HoldQueue[str], clock: list[float]
) -> None:
    seat = queue.join(Ask(principal="a", invocation_id="gone"))
    queue.leave(seat, seat.waiter, keep_s=30)
    queue.join(Ask(principal="a", invocation_id="here"))
    assert served(queue, 1) == ["ahere"]

    clock[0] = 31
    queue.join(Ask(principal="a"))

    assert queue.kept == 0


async def test_a_retry_while_the_first_attempt_waits_ends_that_attempt(queue: HoldQueue[str]) -> None:
    ask = Ask(principal="a", invocation_id="x")
    first = queue.join(ask).waiter
    assert first is not None
    second = queue.join(ask)
    queue.leave(second, first, keep_s=0)  # the first attempt's goodbye comes late and must not take the place away

    with pytest.raises(Throttled, match="retry"):
        await first
    assert len(queue) == 1


async def test_an_invocation_id_counts_within_its_principal_only(queue: HoldQueue[str]) -> None:
    queue.join(Ask(principal="a", invocation_id="x"))
    queue.join(Ask(principal="b", invocation_id="x"))

    assert len(queue) == 2


@pytest.mark.parametrize(
    ("limits", "second", "setting"),
    [
        (Limits(1, 100, 9, 100), Ask(principal="b", size_bytes=1), "HOLD_QUEUE_REQUESTS"),
        (Limits(9, 15, 9, 100), Ask(principal="b", size_bytes=10), "HOLD_QUEUE_BYTES"),
        (Limits(9, 100, 1, 100), Ask(principal="a", size_bytes=1), "HOLD_QUEUE_REQUESTS_PER_PRINCIPAL"),
        (Limits(9, 100, 9, 15), Ask(principal="a", size_bytes=10), "HOLD_QUEUE_BYTES_PER_PRINCIPAL"),
    ],
)
async def test_a_full_queue_says_which_limit_and_which_setting(limits: Limits, second: Ask, setting: str) -> None:
    queue = HoldQueue[str](limits, lambda: 0.0)
    queue.join(Ask(principal="a", size_bytes=10))

    with pytest.raises(Throttled, match=setting + r"\b"):
        queue.join(second)


async def test_one_principal_s_full_share_leaves_room_for_another() -> None:
    queue = HoldQueue[str](Limits(9, 100, 1, 100), lambda: 0.0)
    queue.join(Ask(principal="a"))

    queue.join(Ask(principal="b"))

    assert len(queue) == 2


async def test_the_queue_knows_who_came_before_a_time_and_forgets_places_when_told(
    queue: HoldQueue[str], clock: list[float]
) -> None:
    seat = queue.join(Ask(principal="a", invocation_id="left"))
    queue.leave(seat, seat.waiter, keep_s=100)
    clock[0] = 10
    queue.join(Ask(principal="a"))

    assert not queue.has_from(9)
    assert queue.has_from(10)
    queue.keep_no_place()
    assert (queue.kept, len(queue)) == (0, 1)


async def test_failing_tells_every_waiter_and_empties_the_queue(queue: HoldQueue[str]) -> None:
    waiters = [queue.join(Ask(principal=name)).waiter for name in "ab"]
    queue.fail(Throttled("over"))

    for waiter in waiters:
        assert waiter is not None
        with pytest.raises(Throttled, match="over"):
            await waiter
    assert queue.next() is None


async def test_starts_take_turns_the_smallest_first() -> None:
    gate, order = StartGate(1), []

    async def start(size: int) -> None:
        async with gate.turn(size):
            await asyncio.sleep(0.01)
            order.append(size)

    await asyncio.gather(*(start(size) for size in (50, 90, 10, 40)))

    assert order == [50, 10, 40, 90]


async def test_a_start_that_is_cancelled_while_it_waits_holds_up_nobody() -> None:
    gate = StartGate(1)
    entered = asyncio.Event()

    async def start(size: int) -> None:
        async with gate.turn(size):
            entered.set()
            await asyncio.sleep(0.01)

    first = asyncio.create_task(start(1))
    await entered.wait()
    gone, last = asyncio.create_task(start(2)), asyncio.create_task(start(3))
    await asyncio.sleep(0)
    gone.cancel()

    await asyncio.gather(first, last)


@dataclass
class FakeCopy:
    copy_id: str
    in_flight: int = 0
    outstanding: int = 0
    slots: int = 8
    is_ready: bool = True


def test_the_copy_with_the_least_outstanding_work_is_chosen() -> None:
    copies = [FakeCopy("a", in_flight=1, outstanding=4000), FakeCopy("b", in_flight=2, outstanding=500)]

    found = choose(copies)

    assert found is not None
    assert found.copy_id == "b"


def test_a_copy_that_is_full_or_not_ready_is_never_chosen() -> None:
    assert choose([FakeCopy("a", in_flight=8), FakeCopy("b", is_ready=False)], prefix=1) is None


def test_a_prefix_stays_with_its_copy_and_moves_only_with_it() -> None:
    copies = [FakeCopy(name) for name in "abcd"]
    prefixes = [prefix_of({"prompt": f"conversation {number}"}) for number in range(200)]
    before = {prefix: choose(copies, prefix) for prefix in prefixes}

    after = {prefix: choose(copies[:3], prefix) for prefix in prefixes}

    shares = Counter(copy.copy_id for copy in before.values() if copy)
    assert min(shares.values()) > 20
    for prefix, copy in before.items():
        assert copy is not None
        if copy.copy_id != "d":
            assert after[prefix] is copy


def test_a_copy_over_its_share_loses_even_its_own_prefix() -> None:
    copies = [FakeCopy("a"), FakeCopy("b")]
    mine = choose(copies, 7)
    assert mine is not None
    mine.in_flight = 6

    other = choose(copies, 7, mine.copy_id)

    assert other is not mine


def test_a_prefix_that_nobody_has_does_not_queue_beside_an_idle_copy() -> None:
    copies = [FakeCopy("a", in_flight=1, outstanding=300), FakeCopy("b")]

    chosen = {copy.copy_id for prefix in range(50) if (copy := choose(copies, prefix)) is not None}

    assert chosen == {"b"}


def test_a_prefix_goes_home_while_its_copy_has_no_more_than_its_share() -> None:
    copies = [FakeCopy("a", in_flight=1, outstanding=300), FakeCopy("b")]

    assert all(choose(copies, prefix, "a") is copies[0] for prefix in range(50))


def test_a_home_moves_when_its_copy_is_gone_and_is_forgotten_after_many_others() -> None:
    first, second = FakeCopy("a"), FakeCopy("b")
    homes = Homes()

    homes.sent(7, first, [first, second])
    homes.sent(7, second, [first, second])  # it helped out
    assert homes.of(7) == "a"
    homes.sent(7, second, [second])
    assert homes.of(7) == "b"
    for prefix in range(100, 100 + HOMES_KEPT):
        homes.sent(prefix, first, [first, second])
    assert homes.of(7) is None
    assert homes.of(None) is None


def test_the_beginning_of_a_chat_is_its_prefix() -> None:
    first = [{"role": "system", "content": "s" * 600}, {"role": "user", "content": "one"}]
    second = [{"role": "system", "content": "s" * 600}, {"role": "user", "content": "two"}]

    assert prefix_of({"messages": first}) == prefix_of({"messages": second})
    assert prefix_of({"prompt": "one"}) != prefix_of({"prompt": "two"})
    assert prefix_of({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]})
    assert weight_of({"max_tokens": 100}, 400) == 200
