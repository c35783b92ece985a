"""The fleet on virtual time: starts, failures, room, health, and generated sequences of events."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.support.virtual import GB, FakeEngine, FakeLauncher, VirtualLoop, make_fleet, spec

from outcrop.engines.base import CopySpec
from outcrop.errors import EngineFault, ModelNotFound, ModelNotReady
from outcrop.inference.canonical import GenerateRequest
from outcrop.serving import room
from outcrop.serving.fleet import Fleet
from outcrop.serving.hold import Ask
from outcrop.serving.lifecycle import SERVING, State
from outcrop.serving.making_room import Allowance
from outcrop.serving.schedule import Floor, Scaling
from outcrop.serving.starts import ColdStarts, Remaining, Tier

T = TypeVar("T")
NAMES = ("known", "new", "third")
Story = Callable[[Fleet, FakeLauncher], Awaitable[T]]


def play(story: Story[T], launcher: FakeLauncher | None = None, **given: Any) -> T:
    """Run *story* on a fleet of its own in virtual time; nothing may be left of it."""
    loop, launcher = VirtualLoop(), launcher or FakeLauncher()

    async def run() -> T:
        fleet = make_fleet(loop, launcher, **given)
        await fleet.start()
        try:
            return await story(fleet, launcher)
        finally:
            await fleet.close(1)
            assert not launcher.alive

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


async def use(fleet: Fleet, what: CopySpec, *, for_s: float = 1.0, hold_s: float = 55, ask: Ask | None = None) -> str:
    with await fleet.acquire(what, hold_s=hold_s, ask=ask or Ask(), task=asyncio.current_task()) as lease:
        await asyncio.sleep(for_s)
        return lease.copy_id


def states(fleet: Fleet) -> list[str]:
    return sorted(copy.state for copy in fleet.status())


def test_one_start_serves_all_who_wait_and_no_more_than_the_slots_at_a_time() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(use(fleet, spec(slots=2)) for _ in range(6)))
        took = asyncio.get_running_loop().time() - begun
        assert launcher.started == 1
        assert took == pytest.approx(2 + 3, abs=0.2)  # one start of 2 s, then three rounds of two

    play(story, max_copies=1)


def test_a_lease_takes_more_slots_only_when_nobody_else_wants_them() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        lease = await fleet.acquire(spec(slots=4), hold_s=55, task=asyncio.current_task())
        other = await fleet.acquire(spec(slots=4), hold_s=55)
        assert lease.widen(5) == 3
        assert fleet.status()[0].in_flight == 4
        waiting = asyncio.create_task(fleet.acquire(spec(slots=4), hold_s=55))
        await asyncio.sleep(0)
        other.release()
        third = await waiting
        assert lease.widen(5) == 3
        lease.release()
        lease.release()
        assert fleet.status()[0].in_flight == 1
        third.release()
        assert lease.widen(5) == 3  # what is released takes no more

    play(story, max_copies=1)


def test_the_start_goes_on_when_its_caller_has_left() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        caller = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(0.5)
        caller.cancel()
        await asyncio.sleep(3)
        assert fleet.serving("model") == 1

    play(story)


def test_after_the_limit_the_caller_hears_what_is_left_of_the_start() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.learned("model", [("disk", 30.0)])  # type: ignore[list-item]
        with pytest.raises(ModelNotReady) as late:
            await fleet.acquire(spec(), hold_s=10)
        assert late.value.retry_after_s == pytest.approx(20, abs=0.5)
        with pytest.raises(ModelNotReady):
            await fleet.acquire(spec(), hold_s=0)

    play(story, FakeLauncher(start_s=25))


def test_a_retry_of_the_same_invocation_ends_the_attempt_that_still_runs() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        ask = Ask(principal="p", invocation_id="x")
        first = asyncio.create_task(use(fleet, spec(slots=1), for_s=1000, ask=ask))
        await asyncio.sleep(5)
        await use(fleet, spec(slots=1), ask=ask)
        assert first.cancelled()

    play(story, max_copies=1)


def test_copies_that_keep_failing_fail_the_model_with_the_engine_s_words_and_it_recovers_by_itself() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        launcher.is_broken = True
        with pytest.raises(EngineFault, match=r"failed 3 times in a row.*no such luck"):
            await use(fleet, spec())
        assert fleet.model_status(spec()).state == "failed"
        started = launcher.started
        with pytest.raises(EngineFault, match="next start is tried in"):
            await use(fleet, spec())
        assert launcher.started == started
        launcher.is_broken = False
        await asyncio.sleep(15)
        await use(fleet, spec())
        assert fleet.model_status(spec()).failure is None

    play(story)


def test_a_copy_that_starts_says_how_far_it_is_and_for_how_much_longer() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.learned("known", [(Tier.CACHED, 2.0)])
        waiting = [asyncio.create_task(use(fleet, spec(name))) for name in NAMES]
        await asyncio.sleep(0.5)
        known, new, third = (next(row for row in fleet.status() if row.model_id == name) for name in NAMES)
        assert (known.stage, known.share, known.remaining_s) == ("loading", 0.25, 1.5)
        assert (new.stage, new.share, new.remaining_s) == ("loading", None, None)
        assert third.stage == "queued"
        await asyncio.sleep(1.6)
        assert {row.stage for row in fleet.status() if row.state == State.READY} == {None}
        await asyncio.gather(*waiting)

    play(story, starts_in_parallel=2)


def test_files_that_come_back_first_are_a_stage_and_part_of_the_measured_start() -> None:
    async def bring_back(model_id: str) -> None:
        await asyncio.sleep(3)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.brings_back_with(bring_back)
        fleet.learned("model", [(Tier.BUCKET, 10.0)])
        waits = asyncio.create_task(use(fleet, spec()))
        told = []
        for _ in range(2):
            await asyncio.sleep(2)
            told += [(row.stage, row.share, row.remaining_s) for row in fleet.status()]
        await waits
        assert told == [("fetching", 0.2, 8.0), ("loading", 0.4, 6.0)]
        fleet.learned("model", [(Tier.BUCKET, 1.0)] * 8)  # so that the ten seconds are no 90th percentile
        assert fleet.model_status(spec()).wake_s["bucket"] == pytest.approx(5.0, abs=0.1)

    play(story)


def test_a_start_that_takes_longer_than_earlier_ones_says_so() -> None:
    known = ColdStarts()
    assert known.remaining(Tier.DISK, 1.0) is None
    assert known.remaining(Tier.DISK, 15.0, start_s=60.0) == Remaining(0.25, 45.0)
    known.learn(Tier.CACHED, 4.0)
    assert known.remaining(Tier.DISK, 1.0, start_s=60.0) == Remaining(0.25, 3.0)
    assert known.remaining(Tier.CACHED, 9.0) == Remaining(0.99, 0.0)


def test_a_first_failed_start_is_tried_again_while_the_caller_waits() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        launcher.is_broken = True
        caller = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(2.2)
        launcher.is_broken = False
        await caller
        assert launcher.started == 2

    play(story)


def test_an_expired_copy_stays_evictable_and_serves_the_next_request_at_once() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        first = await use(fleet, spec())
        await asyncio.sleep(200)
        assert states(fleet) == ["evictable"]
        begun = asyncio.get_running_loop().time()
        assert await use(fleet, spec(), for_s=0) == first
        assert asyncio.get_running_loop().time() == begun
        assert states(fleet) == ["ready"]

    play(story)


def test_idle_copies_make_room_and_busy_ones_keep_running() -> None:
    models = [spec(name, weight_bytes=4 * GB) for name in ("a", "b", "c")]

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        busy = asyncio.create_task(use(fleet, models[0], for_s=60))
        await use(fleet, models[1])
        await asyncio.sleep(5)
        await use(fleet, models[2])
        assert {copy.model_id for copy in fleet.status()} == {"a", "c"}
        await busy

    play(story, memory_bytes=10 * GB)


def test_idle_twins_that_share_their_weights_make_room_together() -> None:
    models = [spec(name, weight_bytes=4 * GB) for name in ("a", "b", "c")]

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        for model in models[:2]:
            await asyncio.gather(*(use(fleet, model, for_s=5) for _ in range(4)))
        await asyncio.sleep(30)
        await use(fleet, models[2], hold_s=10)

    play(story, memory_bytes=10 * GB, max_copies=2, keep_alive_s=1000)


def test_a_model_that_waits_for_room_gets_it_from_one_that_never_rests() -> None:
    busy, waiting = spec("busy", weight_bytes=8 * GB), spec("waiting", weight_bytes=8 * GB)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        async def forever() -> None:
            while True:
                await use(fleet, busy, for_s=3)

        loads = [asyncio.create_task(forever()) for _ in range(3)]
        await asyncio.sleep(10)
        await use(fleet, waiting, hold_s=55)
        for load in loads:
            load.cancel()

    play(story, memory_bytes=10 * GB, max_copies=1)


def test_weights_are_counted_once_and_a_copy_alone_may_always_try() -> None:
    one = spec("a", weight_bytes=4 * GB, kv_bytes=GB)

    assert room.used_bytes([one, one]) == 4 * GB + 2 * (GB + room.OVERHEAD_BYTES)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, one)

    play(story, memory_bytes=GB)


def test_live_copies_never_have_more_threads_than_cores_while_an_idle_one_can_go() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        for name in "abcde":
            await use(fleet, spec(name))
            await asyncio.sleep(10)
            assert sum(copy.threads for copy in fleet.status()) <= 4

    play(story, cores=4, cpu_threads=0, model_count=5)


def test_an_only_model_gets_all_cores() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec())
        assert [copy.threads for copy in fleet.status()] == [4]

    play(story, cores=4, cpu_threads=0)


def test_a_further_copy_starts_only_while_cores_are_free() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await asyncio.gather(*(use(fleet, spec(slots=1), for_s=20, hold_s=1000) for _ in range(12)))
        assert launcher.started == 2

    play(story, cores=2, max_copies=3, hold_limit_s=3600)


def test_starts_are_bounded() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await asyncio.gather(*(use(fleet, spec(name)) for name in "abcdef"))
        assert launcher.most_starting == 2

    play(story, starts_in_parallel=2)


def test_a_copy_that_does_not_answer_is_replaced() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        first = await use(fleet, spec())
        next(iter(launcher.alive.values())).is_hung = True
        await asyncio.sleep(40)
        assert await use(fleet, spec()) != first

    play(story)


def test_a_stream_without_a_next_token_ends_and_its_copy_is_replaced() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with await fleet.acquire(spec(), hold_s=55) as lease:
            chunks = lease.engine.stream(lease.endpoint, GenerateRequest("completion", {"max_tokens": 50}))
            await anext(chunks)
            next(iter(launcher.alive.values())).is_hung = True
            with pytest.raises(EngineFault):
                async for _ in chunks:
                    pass
        await asyncio.sleep(5)
        assert lease.copy.state is State.FAILED

    play(story, stall_s=20, probe_s=1000)


ONE = GenerateRequest("completion", {"max_tokens": 1})


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "streamed"])
def test_a_copy_that_gets_on_with_nothing_is_replaced_although_its_health_page_answers(is_streamed: bool) -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with await fleet.acquire(spec(), hold_s=55) as lease:
            next(iter(launcher.alive.values())).is_stuck = True
            begun = asyncio.get_running_loop().time()
            engine, endpoint = lease.engine, lease.endpoint
            answer = anext(engine.stream(endpoint, ONE)) if is_streamed else engine.complete(endpoint, ONE)
            with pytest.raises(EngineFault):
                await answer
            assert 20 < asyncio.get_running_loop().time() - begun < 35
        await asyncio.sleep(5)
        assert lease.copy.state is State.FAILED

    play(story, stall_s=20, probe_s=1)


def test_an_engine_that_computes_may_be_silent_for_longer_but_not_for_ever() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with await fleet.acquire(spec(), hold_s=55) as lease:
            process = next(iter(launcher.alive.values()))
            process.is_stuck, process.busy = True, 2.0
            begun = asyncio.get_running_loop().time()
            with pytest.raises(EngineFault):
                await lease.engine.complete(lease.endpoint, ONE)
            assert 200 < asyncio.get_running_loop().time() - begun < 220

    play(story, stall_s=20, probe_s=1)


def test_a_long_answer_that_gets_on_is_no_stall() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with await fleet.acquire(spec(), hold_s=55) as lease:
            await lease.engine.complete(lease.endpoint, GenerateRequest("completion", {"max_tokens": 10_000}))
        assert lease.copy.state in SERVING

    play(story, stall_s=20, probe_s=1)


def test_a_slow_reader_is_no_stall() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        with await fleet.acquire(spec(), hold_s=55) as lease:
            chunks = lease.engine.stream(lease.endpoint, GenerateRequest("completion", {"max_tokens": 3}))
            async for _ in chunks:
                await asyncio.sleep(100)
        assert lease.copy.state in SERVING

    play(story, stall_s=20)


def test_health_checks_neither_wake_a_model_nor_keep_it_awake() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec())
        await asyncio.sleep(300)
        assert not fleet.status()
        await asyncio.sleep(300)
        assert launcher.started == 1

    play(story, stop_idle=True, probe_s=1)


def test_a_schedule_keeps_copies_without_a_request_and_lets_them_go_after_it() -> None:
    # The virtual clock starts a little after midnight of 1970-01-01, UTC.
    floor = Floor(cron="20 0 * * *", for_s=600, min_copies=2)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.configure("model", Scaling(floors=(floor,), keep_alive_s=1))
        fleet.adopt(spec())
        await asyncio.sleep(100)
        assert states(fleet) == []
        await asyncio.sleep(200)
        assert states(fleet) == ["ready", "ready"]
        await asyncio.sleep(1200)
        assert states(fleet) == []

    play(story, stop_idle=True)


def test_a_deleted_model_drains_and_its_waiters_hear_that_it_is_gone() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        runs = asyncio.create_task(use(fleet, spec(slots=1), for_s=5))
        await asyncio.sleep(3)
        waits = asyncio.create_task(use(fleet, spec(slots=1)))
        await asyncio.sleep(0.1)
        await fleet.remove("model")
        assert await runs
        with pytest.raises(ModelNotFound):
            await waits

    play(story, max_copies=1)


def test_work_beside_others_is_judged_by_the_model_s_own_interference() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        fleet.configure("model", Scaling(interference=1.0))
        await asyncio.gather(use(fleet, spec(slots=2), for_s=4), use(fleet, spec(slots=2), for_s=4))
        # One began beside the other, and would have run for 2 s alone; the other counts a tenth of its 4 s.
        assert fleet._models["model"].demand.work_s == pytest.approx(2 + 0.1 * (4 - 2))

    play(story)


def test_a_retired_model_answers_who_is_there_and_who_comes_late_and_starts_nothing_again() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        asked = [asyncio.create_task(use(fleet, spec(slots=1), hold_s=600, for_s=5)) for _ in range(20)]
        await asyncio.sleep(60)  # a rate of requests that asks for copies
        asked += [asyncio.create_task(use(fleet, spec(slots=1), for_s=5)) for _ in range(3)]
        await asyncio.sleep(0.1)
        fleet.retire("model")
        asked.append(asyncio.create_task(use(fleet, spec(slots=1))))
        begun = launcher.started
        assert all(await asyncio.gather(*asked))
        await asyncio.sleep(3)
        assert states(fleet) == []
        await asyncio.sleep(300)
        assert launcher.started == begun
        assert await use(fleet, spec(slots=1))  # asked again, it is there again

    play(story, max_copies=2, keep_alive_s=200)


def test_a_model_retired_while_it_starts_goes_once_it_is_up() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        waits = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(0.5)
        fleet.retire("model")
        assert await waits
        await asyncio.sleep(3)
        assert states(fleet) == []
        assert launcher.started == 1

    play(story)


def test_logs_of_ended_copies_are_kept_up_to_a_number_and_go_with_the_model_and_what_engines_compiled(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "logs" / "copies"
    folder.mkdir(parents=True)
    for number in range(6):
        log = folder / f"model-{number}.log"
        log.write_text("x")
        os.utime(log, (number, number))
    (folder / "other-1.log").write_text("x")
    for name in ("model", "other"):
        (tmp_path / "engines" / name / "cache").mkdir(parents=True)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec())
        assert sorted(path.name for path in folder.glob("model-*")) == ["model-4.log", "model-5.log"]
        await fleet.remove("model")
        assert [path.name for path in folder.iterdir()] == ["other-1.log"]
        assert [path.name for path in (tmp_path / "engines").iterdir()] == ["other"]

    play(story, home=tmp_path, copy_logs_kept=2)


@pytest.mark.parametrize(
    "change", [Scaling(slots=4), Scaling(context_tokens=128), Scaling(arguments=("--enforce-eager",))], ids=str
)
def test_a_changed_configuration_replaces_copies_one_by_one_and_no_request_notices(change: Scaling) -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        async def forever() -> None:
            while True:
                await use(fleet, spec(), for_s=2)

        loads = [asyncio.create_task(forever()) for _ in range(2)]
        await asyncio.sleep(10)
        before = {copy.copy_id for copy in fleet.status()}
        fleet.configure("model", change)
        for _ in range(200):
            await asyncio.sleep(0.1)
            assert fleet.serving("model") >= 1
        assert {copy.slots for copy in fleet.status()} == {change.slots or 2}
        (copy,) = fleet._models["model"].copies
        assert (copy.spec.context_tokens, copy.spec.arguments) == (change.context_tokens or 512, change.arguments)
        assert not before & {copy.copy_id for copy in fleet.status()}
        assert not any(load.done() for load in loads)
        for load in loads:
            load.cancel()

    play(story, max_copies=1)


def test_a_configuration_that_does_not_start_leaves_the_old_copies_serving_and_is_tried_ever_more_seldom() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        first = await use(fleet, spec())
        launcher.is_broken, begun = True, launcher.started
        fleet.configure("model", Scaling(slots=4, min_copies=1))
        for _ in range(100):  # answers of the old copy are no sign that a new one would come up
            assert await use(fleet, spec()) == first
        assert 3 <= launcher.started - begun <= 6
        launcher.is_broken = False
        await asyncio.sleep(400)
        assert await use(fleet, spec()) != first
        assert {copy.slots for copy in fleet.status()} == {4}

    play(story)


def test_what_an_operator_set_of_one_model_decides_whether_its_idle_copies_stop() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        for name, stops in (("stays", None), ("goes", True)):
            fleet.configure(name, Scaling(keep_alive_s=5, stop_idle=stops))
            await use(fleet, spec(name))
        await asyncio.sleep(30)
        assert [(copy.model_id, copy.state) for copy in fleet.status()] == [("stays", State.EVICTABLE)]

    play(story)


def test_with_room_for_one_copy_the_old_one_drains_first_and_requests_are_held() -> None:
    one = spec(weight_bytes=4 * GB, kv_bytes=4 * GB)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        runs = asyncio.create_task(use(fleet, one, for_s=10))
        await asyncio.sleep(5)
        fleet.adopt(spec(weight_bytes=4 * GB, kv_bytes=5 * GB))
        await asyncio.sleep(1)
        waits = asyncio.create_task(use(fleet, one))
        assert await waits != await runs
        assert launcher.started == 2

    play(story, memory_bytes=10 * GB)


def test_a_late_request_to_a_deleted_model_starts_nothing() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec())
        await fleet.remove("model")
        with pytest.raises(ModelNotFound):
            await use(fleet, spec())
        assert launcher.started == 1

    play(story)


def test_who_waits_for_the_start_of_a_model_that_is_deleted_hears_it_at_once() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        waits = asyncio.create_task(use(fleet, spec()))
        await asyncio.sleep(1)
        removal = asyncio.create_task(fleet.remove("model"))
        begun = asyncio.get_running_loop().time()
        with pytest.raises(ModelNotFound):
            await waits
        assert asyncio.get_running_loop().time() - begun < 0.1
        await removal

    play(story, FakeLauncher(start_s=30))


def test_a_proof_run_waits_for_room_and_what_it_takes_counts() -> None:
    resting, proved, asked = (spec(name, weight_bytes=4 * GB) for name in ("resting", "proved", "asked"))

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, resting)
        await asyncio.sleep(10)
        proof = asyncio.create_task(fleet.prove(proved, ONE, []))
        await asyncio.sleep(0.5)
        assert fleet.serving("resting") == 0  # it made room
        assert not fleet.has_room(asked)
        await proof
        assert fleet.has_room(asked)
        assert not fleet.status()

    play(story, memory_bytes=6 * GB)


def test_a_lease_ends_with_the_task_that_took_it_even_when_nobody_released_it() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        async def careless() -> None:
            await fleet.acquire(spec(), hold_s=55, task=asyncio.current_task())

        await asyncio.create_task(careless())
        await asyncio.sleep(0)
        assert [copy.in_flight for copy in fleet.status()] == [0]

    play(story)


def test_an_hour_passes_on_the_virtual_clock_alone() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(3600)  # on a real clock the runner's own limit would end this test
        assert asyncio.get_running_loop().time() - begun == pytest.approx(3600, abs=1)

    play(story)


def on_gpus(name: str, gpus: int = 1) -> CopySpec:
    return CopySpec(name, Path("/nowhere") / name, 512, slots=2, threads=0, kv_f32=False, gpus=gpus)


def test_copies_on_gpus_have_them_for_themselves() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await asyncio.gather(use(fleet, on_gpus("one")), use(fleet, on_gpus("two", 2)))
        placed = {copy.model_id: copy.devices for copy in fleet.status()}
        assert len(placed["one"]) == 1
        assert len(placed["two"]) == 2
        assert set(placed["one"]).isdisjoint(placed["two"])

    play(story, gpus=3)


def test_an_idle_copy_goes_when_another_model_needs_its_gpu() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, on_gpus("one"))
        await asyncio.sleep(5)
        await use(fleet, on_gpus("two"), hold_s=300)
        serving = [(copy.model_id, copy.devices) for copy in fleet.status() if copy.state in SERVING]
        assert serving == [("two", (0,))]

    play(story, gpus=1)


def test_a_proof_run_gets_a_gpu_for_which_an_idle_copy_goes() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, on_gpus("one"))
        await asyncio.sleep(5)
        await fleet.prove(on_gpus("two"), GenerateRequest("completion", {}), [])
        assert not [copy for copy in fleet.status() if copy.state in SERVING]

    play(story, gpus=1)


def sleeper(launcher: FakeLauncher) -> FakeEngine:
    engine = FakeEngine(launcher)
    engine.can_sleep = True
    return engine


async def alternate(fleet: Fleet) -> None:
    """Two models that need the one GPU, asked in turns: the first must come back."""
    for name in ("one", "two", "one"):
        await use(fleet, on_gpus(name), hold_s=300)
        await asyncio.sleep(5)


def test_a_copy_that_can_sleep_gives_its_gpu_up_and_comes_back_without_a_new_process() -> None:
    launcher = FakeLauncher()
    engine = sleeper(launcher)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await alternate(fleet)
        assert sorted((copy.model_id, copy.state in SERVING) for copy in fleet.status()) == [
            ("one", True),
            ("two", False),
        ]
        assert launcher.started == 2
        assert (engine.slept, engine.woken) == (2, 1)
        assert fleet.model_status(on_gpus("one")).wake_s["asleep"] == pytest.approx(0.3 + 0.4, abs=0.1)
        assert fleet.model_status(on_gpus("two")).state == "asleep"

    play(story, launcher, gpus=1, engine=engine)


def test_a_copy_that_answers_otherwise_after_it_slept_is_replaced() -> None:
    launcher = FakeLauncher()
    engine = sleeper(launcher)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        for name in ("one", "two"):
            await use(fleet, on_gpus(name), hold_s=300)
            await asyncio.sleep(5)
        engine.says = "garbage"
        await use(fleet, on_gpus("one"), hold_s=300)
        assert launcher.started == 3
        assert engine.woken == 1

    play(story, launcher, gpus=1, engine=engine)


def test_where_memory_is_short_a_copy_sleeps_without_its_weights_and_its_wake_is_measured_apart() -> None:
    launcher = FakeLauncher()
    engine = sleeper(launcher)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await alternate(fleet)
        assert engine.levels == [2, 2]
        assert launcher.started == 2
        assert {copy.model_id: copy.sleep_level for copy in fleet.status()} == {"one": None, "two": 2}
        wake_s = fleet.model_status(on_gpus("one")).wake_s
        assert wake_s["asleep"] is None
        assert wake_s["asleep-empty"] == pytest.approx(1.3 + 0.4, abs=0.1)

    play(story, launcher, gpus=1, engine=engine, memory_bytes=5 * GB)


def test_nothing_starts_in_the_memory_that_a_copy_on_its_way_to_sleep_is_about_to_take() -> None:
    launcher = FakeLauncher()

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, on_gpus("one"), hold_s=300)
        await asyncio.sleep(5)
        second = asyncio.create_task(use(fleet, on_gpus("two"), hold_s=300))
        while not any(copy.state is State.DRAINING for copy in fleet.status()):
            await asyncio.sleep(0.01)
        other = asyncio.create_task(use(fleet, spec("other", weight_bytes=4 * GB), hold_s=300))
        while not (second.done() and other.done()):
            await asyncio.sleep(0.01)
            assert room.used_bytes(copy.spec for model in fleet._models.values() for copy in model.copies) <= 12 * GB

    play(story, launcher, gpus=1, engine=sleeper(launcher), memory_bytes=12 * GB)


def test_a_copy_runs_no_more_requests_than_its_engine_found_memory_for() -> None:
    launcher = FakeLauncher()
    engine = FakeEngine(launcher)
    engine.cache_slots = 1

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        waiting = [asyncio.create_task(use(fleet, spec(slots=4))) for _ in range(3)]
        await asyncio.sleep(2.5)
        assert [(copy.in_flight, copy.slots) for copy in fleet.status() if copy.state == State.READY] == [(1, 1)]
        await asyncio.gather(*waiting)
        assert not [copy for copy in fleet.status() if copy.state is State.DRAINING], "it is no other configuration"

    play(story, launcher, engine=engine, max_copies=1)


def test_a_model_that_is_removed_takes_its_sleeping_copies_with_it() -> None:
    launcher = FakeLauncher()
    engine = sleeper(launcher)

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        for name in ("one", "two"):
            await use(fleet, on_gpus(name), hold_s=300)
            await asyncio.sleep(5)
        await fleet.remove("one")
        assert [copy.model_id for copy in fleet.status()] == ["two"]
        assert len(launcher.alive) == 1

    play(story, launcher, gpus=1, engine=engine)


def test_a_model_s_quota_of_copies_holds_whatever_waits() -> None:
    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await asyncio.gather(*(use(fleet, spec(slots=1), for_s=5) for _ in range(6)))
        assert launcher.started == 1
        assert fleet.awake("model") == 1

    play(story, max_copies=3, allowance=lambda _: Allowance("one", None, 1))


def test_an_account_s_quota_of_copies_lets_its_idle_one_go_for_its_other_model_and_no_other_account_s() -> None:
    accounts = {"known": "one", "new": "one", "third": "two"}

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        await use(fleet, spec("third"))
        await use(fleet, spec("known"))
        await asyncio.sleep(70)  # idle for longer than it is kept
        assert (fleet.awake("known"), fleet.awake("third")) == (1, 1)
        await use(fleet, spec("new"))
        assert (fleet.awake("known"), fleet.awake("new"), fleet.awake("third")) == (0, 1, 1)

    play(story, allowance=lambda model: Allowance(accounts[model], 1, None))


def test_a_busy_account_over_its_quota_of_copies_waits_and_takes_no_room_from_others() -> None:
    accounts = {"known": "one", "new": "one", "third": "two"}

    async def story(fleet: Fleet, launcher: FakeLauncher) -> None:
        busy = asyncio.create_task(use(fleet, spec("known", weight_bytes=GB), for_s=100))
        await asyncio.sleep(5)
        waiting = asyncio.create_task(use(fleet, spec("new", weight_bytes=GB), hold_s=30))
        await asyncio.sleep(15)
        await use(fleet, spec("third", weight_bytes=GB))  # the room that is left is not kept for "new"
        with pytest.raises(ModelNotReady):
            await waiting
        await busy
        await use(fleet, spec("new", weight_bytes=GB))

    play(story, memory_bytes=int(2.5 * GB), allowance=lambda model: Allowance(accounts[model], 1, None))
