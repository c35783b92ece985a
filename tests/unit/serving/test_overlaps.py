"""Transitions that overlap, each as it once went wrong: evictions, retirements, deletions, retries at one instant."""

from __future__ import annotations

import asyncio

import pytest
from msgspec import structs
from tests.support.virtual import GB, FakeEngine, FakeLauncher, FakeProcess, VirtualLoop, make_fleet, spec
from tests.unit.serving.test_fleet import play, states, use

from outcrop.engines.base import CopySpec, Endpoint
from outcrop.errors import ModelNotFound, ModelNotReady, Throttled
from outcrop.serving.fleet import Fleet
from outcrop.serving.hold import Ask
from outcrop.serving.schedule import Scaling

RETRIED = Ask(principal="p", invocation_id="i")


async def load(fleet: Fleet, what: CopySpec, *, callers: int, times: int) -> None:
    async def caller() -> None:
        for _ in range(times):
            await use(fleet, what)

    await asyncio.gather(*(caller() for _ in range(callers)))


def test_a_model_that_was_evicted_starts_no_copy_before_it_is_asked_again() -> None:
    """However much it was asked in the last minute: it would take the room back from the one that needs it."""
    busy, other = (spec(name, weight_bytes=4 * GB, kv_bytes=GB // 10) for name in ("busy", "other"))

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await load(fleet, busy, callers=5, times=40)
        await asyncio.sleep(3)
        await use(fleet, other)
        started = launcher.started
        await asyncio.sleep(200)

        assert launcher.started == started
        assert {copy.model_id for copy in fleet.status()} == {"other"}
        await use(fleet, busy)

    play(story, FakeLauncher(start_s=1), memory_bytes=int(4.9 * GB), cores=4)


def test_a_place_that_is_kept_for_a_retry_starts_no_copy_of_a_retired_model() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with pytest.raises(ModelNotReady):
            await fleet.acquire(spec(), hold_s=1, ask=RETRIED)
        fleet.retire("model")
        await asyncio.sleep(60)

        assert launcher.started == 1
        assert not fleet.status()
        await use(fleet, spec(), ask=RETRIED)

    play(story)


def test_a_model_that_is_always_asked_comes_to_rest_once_those_who_waited_were_answered() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        callers = [asyncio.create_task(load(fleet, spec(slots=1), callers=1, times=1000)) for _ in range(4)]
        await asyncio.sleep(10)
        before = {copy.copy_id for copy in fleet.status()}
        async with asyncio.timeout(30):
            await fleet.rest("model")

        assert not before & {copy.copy_id for copy in fleet.status()}
        for caller in callers:
            assert not caller.done()  # nobody was refused
            caller.cancel()

    play(story, max_copies=1)


def test_a_rest_ends_although_the_model_has_to_have_copies() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.configure("model", Scaling(min_copies=1))
        await use(fleet, spec())
        first = fleet.status()[0].copy_id
        async with asyncio.timeout(30):
            await fleet.rest("model")
        await asyncio.sleep(5)

        assert fleet.least_copies("model") == 1
        assert [copy.copy_id for copy in fleet.status()] != [first]

    play(story)


def test_the_deletion_of_a_model_ends_its_start() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        waiting = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(1)
        async with asyncio.timeout(5):
            await fleet.remove("model")

        with pytest.raises(ModelNotFound):
            await waiting
        assert not fleet.status()
        assert not launcher.starting

    play(story, FakeLauncher(start_s=500))


def test_the_deletion_of_a_model_that_retires_waits_no_longer_than_its_requests_may_run_on() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        running = asyncio.create_task(use(fleet, spec(), for_s=1000))
        await asyncio.sleep(5)
        fleet.retire("model")
        async with asyncio.timeout(20):
            await fleet.remove("model")
        running.cancel()

    play(story, drain_s=10, request_timeout_s=900)


def test_what_comes_to_a_deleted_model_brings_it_not_back() -> None:
    """A change that was asked before the deletion and is made after it."""

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec())
        await fleet.remove("model")
        with pytest.raises(ModelNotFound):
            fleet.configure("model", Scaling(min_copies=1))
        with pytest.raises(ModelNotFound):
            fleet.adopt(spec())
        await asyncio.sleep(10)

        assert not fleet.status()
        assert fleet.scaling("model") == Scaling()

    play(story)


def test_who_is_told_that_a_model_is_gone_hears_it_once_it_is() -> None:
    loop, launcher, heard = VirtualLoop(), FakeLauncher(), list[int]()

    async def story() -> None:
        fleet = make_fleet(loop, launcher, on_removed=lambda: heard.append(len(fleet.status())))
        await fleet.start()
        await use(fleet, spec())
        await fleet.remove("model")
        await fleet.close(1)

    loop.run_until_complete(story())
    loop.close()
    assert heard == [0]


def test_a_request_whose_patience_ends_as_its_model_is_deleted_hears_that_it_is_gone() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        loop = asyncio.get_running_loop()

        def delete() -> None:
            removal = fleet.remove("model")
            removal.send(None)  # up to where it waits for the copies, in the very instant
            removal.close()

        loop.call_at(loop.time() + 10 - 1e-10, delete)  # the same round of the event loop, and before it
        asked = asyncio.create_task(use(fleet, spec(), hold_s=10))
        with pytest.raises(ModelNotFound):
            await asked

    play(story, FakeLauncher(start_s=500))


def test_a_request_whose_patience_has_just_ended_when_its_model_is_deleted_hears_that_it_is_gone() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        async def delete() -> None:
            await asyncio.sleep(10 - 1e-10)  # the same round of the event loop, and before it
            await fleet.remove("model")

        deleted = asyncio.create_task(delete())
        asked = asyncio.create_task(use(fleet, spec(), hold_s=10))
        with pytest.raises(ModelNotFound):
            await asked
        await deleted

    play(story, FakeLauncher(start_s=500))


def test_of_two_attempts_of_an_invocation_that_meet_as_a_slot_comes_free_one_goes_on() -> None:
    """The first attempt has just got its slot, and does not know it yet, when the retry comes."""

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        running = await fleet.acquire(spec(slots=1), hold_s=55)
        first = asyncio.create_task(use(fleet, spec(slots=1), ask=RETRIED, for_s=5))
        await asyncio.sleep(1)
        retry = asyncio.create_task(use(fleet, spec(slots=1), ask=RETRIED, for_s=5))
        running.release()
        with pytest.raises(Throttled, match="retry"):
            await first
        await asyncio.sleep(1)

        assert [copy.in_flight for copy in fleet.status()] == [1]
        assert await retry

    play(story, max_copies=1)


def test_a_request_of_several_slots_that_broke_its_copy_answered_nothing() -> None:
    """Else a copy that dies at its first request is no failed one, and is started again without end."""

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        lease = await fleet.acquire(spec(slots=4), hold_s=55)
        assert lease.widen(3) == 4
        lease.report_broken()
        lease.release()

        assert lease.copy.answered == 0
        assert lease.copy.in_flight == 0

    play(story)


class _DiesAsleep(FakeEngine):
    async def sleep(self, endpoint: Endpoint, level: int) -> None:
        await super().sleep(endpoint, level)
        process = self._process(endpoint)
        assert process is not None
        process.die()
        await asyncio.sleep(0.1)  # who watches it has seen it by now


def test_a_copy_that_dies_on_its_way_to_sleep_does_not_count_as_asleep() -> None:
    loop, launcher = VirtualLoop(), FakeLauncher()
    engine = _DiesAsleep(launcher)
    engine.can_sleep = True
    models = [structs.replace(spec(name), gpus=1, threads=0) for name in ("first", "second")]

    async def story() -> None:
        fleet = make_fleet(loop, launcher, engine=engine, gpus=1)
        await fleet.start()
        for each in models:
            await use(fleet, each)
            await asyncio.sleep(10)
        assert states(fleet) == ["ready"]
        await fleet.close(1)

    loop.run_until_complete(story())
    loop.close()


@pytest.mark.parametrize("hung_s", [5.0, 25.0], ids=["slow to die", "not let go by the kernel for a while"])
def test_a_start_that_failed_has_its_room_until_its_process_is_gone(
    monkeypatch: pytest.MonkeyPatch, hung_s: float
) -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        async def stop(process: FakeProcess, grace_s: float) -> None:
            left_s = gone_at - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, min(10.0, left_s)))
            if left_s > 10:
                raise TimeoutError  # as a launcher does
            process.die(0)

        monkeypatch.setattr(FakeProcess, "stop", stop)
        monkeypatch.setattr(FakeEngine, "is_ready", never)
        gone_at = asyncio.get_running_loop().time() + 12 + hung_s
        asked = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(10 + hung_s)
        assert launcher.started == 1
        assert states(fleet) == ["starting"]
        monkeypatch.undo()
        assert await asked
        assert launcher.started == 2

    async def never(engine: FakeEngine, endpoint: Endpoint) -> bool:
        return False

    play(story, start_deadline_s=10)


def test_a_rest_ends_a_copy_that_is_on_its_way_to_sleep() -> None:
    loop, launcher = VirtualLoop(), FakeLauncher()
    engine = FakeEngine(launcher)
    engine.can_sleep = True
    models = [structs.replace(spec(name), gpus=1, threads=0) for name in ("first", "second")]

    async def story() -> None:
        fleet = make_fleet(loop, launcher, engine=engine, gpus=1)
        await fleet.start()
        await use(fleet, models[0])
        await asyncio.sleep(10)
        asked = asyncio.create_task(use(fleet, models[1]))
        while states(fleet) != ["draining"]:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):
            await fleet.rest("first")
        await asked
        assert {copy.model_id for copy in fleet.status()} == {"second"}
        await fleet.close(1)

    loop.run_until_complete(story())
    loop.close()
