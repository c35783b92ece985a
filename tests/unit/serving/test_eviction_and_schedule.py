"""Who goes when room is needed, what starts have taught, and limits by the clock."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.errors import InvalidRequest
from outcrop.serving.eviction import Resident, choose
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Floor, Scaling, check, is_active, params_at
from outcrop.serving.starts import ColdStarts, Tier, backoff_s


def resident(name: str, size: int = 100, rate: float = 0.01, start: float = 5.0, **more: bool | int) -> Resident:
    return Resident(copy_id=name, bytes_freed=size, rate=rate, cold_start_s=start, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (resident("rare", rate=0.0001), resident("often", rate=1.0)),
        (resident("quick", start=1.0), resident("slow", start=60.0)),
        (resident("large", size=1000), resident("small", size=100)),
        (resident("expired", rate=1.0), resident("kept", rate=0.0001, is_expired=False)),
    ],
)
def test_the_lowest_value_per_byte_goes_first(one: Resident, other: Resident) -> None:
    assert choose([other, one], bytes_needed=50) == (one.copy_id,)


def test_weights_that_copies_share_come_free_when_the_last_of_them_goes() -> None:
    twins = [resident(name, 1, 0.0, 1.0, weights="w", weights_bytes=100, mapped_by=2) for name in ("a", "b")]
    other = resident("c", 1, 5.0, 1.0, weights="x", weights_bytes=100, mapped_by=2)  # its twin is in use

    assert choose([*twins, other], bytes_needed=50) == ("a", "b")
    assert choose([twins[0], other], bytes_needed=50) is None


def test_a_copy_that_a_larger_one_makes_needless_stays() -> None:
    residents = [resident("small", size=10, rate=0.0), resident("large", size=100)]

    assert choose(residents, bytes_needed=60) == ("large",)


def test_nothing_goes_when_all_together_would_not_be_enough() -> None:
    assert choose([resident("a"), resident("b")], bytes_needed=500) is None


def test_threads_are_room_too() -> None:
    residents = [resident("a", rate=0.0, threads=1), resident("b", threads=1)]

    assert choose(residents, bytes_needed=0, threads_needed=1) == ("a",)
    assert choose(residents, bytes_needed=0, threads_needed=3) is None


@given(
    st.lists(st.tuples(st.integers(1, 100), st.floats(0, 5), st.booleans()), max_size=8),
    st.integers(0, 300),
)
def test_what_goes_is_enough_and_none_of_it_needless(found: list[tuple[int, float, bool]], needed: int) -> None:
    residents = [resident(str(n), size, rate, is_expired=old) for n, (size, rate, old) in enumerate(found)]
    sizes = {one.copy_id: one.bytes_freed for one in residents}

    gone = choose(residents, bytes_needed=needed)

    if gone is None:
        assert sum(sizes.values()) < needed
        return
    total = sum(sizes[name] for name in gone)
    assert total >= needed
    assert all(total - sizes[name] < needed for name in gone)


def test_a_start_is_expected_to_take_what_nine_in_ten_took() -> None:
    starts = ColdStarts()
    starts.seed([(Tier.CACHED, seconds) for seconds in (1, 1, 1, 1, 1, 1, 1, 1, 2, 9)])

    assert starts.expected_s(Tier.CACHED) == 2
    assert starts.expected_s(Tier.DISK) == 2  # nothing of its own is known yet
    assert starts.known(Tier.DISK) is None


def test_the_deadline_of_a_start_grows_with_bytes_and_with_what_starts_took() -> None:
    fresh, slow = ColdStarts(), ColdStarts()
    slow.learn(Tier.DISK, 120)

    assert fresh.deadline_s(0) == 60
    assert fresh.deadline_s(50_000_000_000) == 1060
    assert slow.deadline_s(0) == 1200


def test_back_off_grows_and_is_bounded() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 3)] == [0, 0.5, 2, 10]
    assert backoff_s(1000) == 300


OFFICE = Floor(cron="0 8 * * 1-5", for_s=3600, min_copies=2, max_copies=5)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (datetime(2026, 11, 23, 8, 0, tzinfo=UTC), True),  # a Monday
        (datetime(2026, 11, 23, 8, 59, tzinfo=UTC), True),
        (datetime(2026, 11, 23, 7, 59, tzinfo=UTC), False),
        (datetime(2026, 11, 23, 9, 1, tzinfo=UTC), False),
        (datetime(2026, 11, 22, 8, 30, tzinfo=UTC), False),  # a Sunday
    ],
)
def test_a_floor_holds_from_its_time_for_as_long_as_it_says(when: datetime, expected: bool) -> None:
    assert is_active(OFFICE, when) is expected


def test_an_active_floor_goes_over_the_operator_s_values_and_these_over_the_defaults() -> None:
    scaling = Scaling(max_copies=4, keep_alive_s=300, floors=(OFFICE,))

    params = params_at(Params(), scaling, [OFFICE])
    calm = params_at(Params(), scaling, [])

    assert (params.min_copies, params.max_copies, params.keep_alive_s) == (2, 5, 300)
    assert (calm.min_copies, calm.max_copies) == (0, 4)


@pytest.mark.parametrize(
    "scaling",
    [
        Scaling(min_copies=-1),
        Scaling(max_copies=0),
        Scaling(min_copies=4, max_copies=2),
        Scaling(keep_alive_s=-1),
        Scaling(slowdown=0.5),
        Scaling(floors=(Floor(cron="every day", for_s=60, min_copies=1),)),
        Scaling(floors=(Floor(cron="0 8 * * *", for_s=0, min_copies=1),)),
        Scaling(floors=(Floor(cron="0 8 * * *", for_s=60, min_copies=3, max_copies=2),)),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(scaling: Scaling) -> None:
    with pytest.raises(InvalidRequest, match=r"copies|keep_alive_s|slowdown|cron|for_s"):
        check(scaling)
