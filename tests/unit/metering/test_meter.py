"""The ledger against a second, naive implementation over the same raw events; batches that fail or come twice."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.metering.bill import rows_of
from outcrop.metering.ledger import Ledger
from outcrop.metering.meter import About, Meter
from outcrop.metering.usage import HOUR_MS, Key, Usage, total
from outcrop.metering.windows import CopyWindows
from outcrop.registry.store import Registry
from outcrop.registry.usage_records import UsageRecords

ACCOUNT = "000000000000"
UNITS = {"small": 1, "large": 4}


class Clocks:
    """A monotonic clock and a wall clock that one test advances together."""

    def __init__(self, wall_s: float = 1_760_000_000.0) -> None:
        self.now = 500.0
        self._ahead = wall_s - self.now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now + self._ahead


class Sink:
    def __init__(self) -> None:
        self.rows: dict[Key, Usage] = {}
        self.taken: set[tuple[str, int]] = set()
        self.fails_before = self.fails_after = False

    def apply(self, writer: str, number: int, rows: Mapping[Key, Usage]) -> None:
        if self.fails_before:
            raise OSError("disk full")
        if (writer, number) not in self.taken:
            self.taken.add((writer, number))
            for key, usage in rows.items():
                self.rows.setdefault(key, Usage()).add(usage)
        if self.fails_after:
            raise OSError("the answer was lost")


def meter_on(clocks: Clocks, **kwargs: object) -> Meter:
    return Meter(
        lambda model_id: About(ACCOUNT, UNITS.get(model_id, 1)), clock=clocks.monotonic, wall=clocks.wall, **kwargs
    )


@dataclass
class Naive:
    """Keeps every raw event and adds up from the beginning, one copy and one ms-interval at a time."""

    states: dict[str, list[tuple[int, str | None]]]
    models: dict[str, str]
    calls: list[tuple[str, str, str, int, int, bool, int]]  # model, principal, copy, begun, ended, ok, tokens

    def copy_ms(self, model: str, state: str) -> int:
        found = 0
        for copy, changes in self.states.items():
            if self.models[copy] == model:
                for (at, name), (until, _) in pairwise(changes):
                    found += (until - at) if name == state else 0
        return found

    def windows(self, model: str) -> int:
        found = 0
        for copy, owner in self.models.items():
            served = [(begun, ended) for _, _, c, begun, ended, ok, _ in self.calls if c == copy and ok]
            if owner != model or not served:
                continue
            start = served[0][0]  # of the first one that ended
            last = max(ended for _, ended in served)
            for at in range(start, last + 1, 300_000):
                found += any(begun < at + 300_000 and ended >= at for begun, ended in served)
        return found


@given(st.integers(0, 10_000))
async def test_the_ledger_equals_what_a_naive_count_over_the_raw_events_gives(seed: int) -> None:
    draw, clocks, sink = random.Random(seed), Clocks(), Sink()
    meter = meter_on(clocks)
    naive = Naive(defaultdict(list), {}, [])
    states = ["starting", "idle", "busy", "evictable", "draining", "asleep"]

    def tell(copy: str, state: str | None) -> None:
        meter.copy(copy, naive.models[copy], state)
        changes = naive.states[copy]
        if not changes or changes[-1][1] != state:
            changes.append((int(clocks.now * 1000), state))

    living: list[str] = []
    for step in range(60):
        clocks.now += draw.choice([0.0, 0.25, 7.0, 120.0, 400.0, 4000.0])
        if not living or draw.random() < 0.15:
            copy = f"copy-{step}"
            naive.models[copy] = draw.choice(list(UNITS))
            living.append(copy)
            tell(copy, "starting")
        copy = draw.choice(living)
        match draw.randrange(4):
            case 0 | 1:
                tell(copy, draw.choice(states))
            case 2:
                ok, run_s, tokens = draw.random() < 0.8, draw.choice([0.0, 0.5, 30.0, 700.0]), draw.randrange(500)
                now = int(clocks.now * 1000)
                naive.calls.append((naive.models[copy], "arn:a", copy, now - round(run_s * 1000), now, ok, tokens))
                meter.request(
                    model_id=naive.models[copy],
                    principal="arn:a",
                    outcome="ok" if ok else "EngineFault",
                    copy_id=copy,
                    tokens_out=tokens,
                    run_s=run_s,
                )
            case 3 if draw.random() < 0.3:
                living.remove(copy)
                tell(copy, None)
        if draw.random() < 0.2:
            await meter.flush(sink)
    for copy in living:
        tell(copy, None)
    await meter.flush(sink)

    for model in UNITS:
        mine = total(usage for key, usage in sink.rows.items() if key.model_id == model)
        for state in states:
            assert getattr(mine, f"{state}_ms") == naive.copy_ms(model, state), state
        calls = [call for call in naive.calls if call[0] == model]
        assert mine.requests == sum(call[5] for call in calls)
        assert mine.failed == sum(not call[5] for call in calls)
        assert mine.tokens_out == sum(call[6] for call in calls)
        assert mine.windows == naive.windows(model)
        assert mine.window_units == naive.windows(model) * UNITS[model]
    assert all(0 <= usage.copy_ms <= HOUR_MS * len(naive.models) for usage in sink.rows.values())


async def test_a_copy_s_time_is_cut_at_full_hours() -> None:
    clocks, sink = Clocks(wall_s=HOUR_MS / 1000 * 100 - 600), Sink()
    meter = meter_on(clocks)
    meter.copy("c", "small", "idle")
    clocks.now += 600 + 3600 + 60
    meter.copy("c", "small", None)

    await meter.flush(sink)

    assert [usage.idle_ms for _, usage in sorted(sink.rows.items(), key=lambda row: row[0].hour_ms)] == [
        600_000,
        3_600_000,
        60_000,
    ]


async def test_a_batch_that_failed_or_whose_answer_was_lost_counts_once() -> None:
    clocks, sink = Clocks(), Sink()
    meter = meter_on(clocks)
    for fault in ("fails_before", "fails_after", None):
        meter.request(model_id="small", principal="arn:a", outcome="ok", tokens_in=10)
        if fault:
            setattr(sink, fault, True)
            with pytest.raises(OSError, match=r"disk full|answer was lost"):
                await meter.flush(sink)
            setattr(sink, fault, False)
    await meter.flush(sink)

    assert total(sink.rows.values()).requests == 3
    assert total(sink.rows.values()).tokens_in == 30


async def test_the_peak_counts_copies_that_a_reserved_fleet_would_hold_and_a_warm_hit_needs_a_model_at_rest() -> None:
    clocks, sink = Clocks(), Sink()
    meter = meter_on(clocks)
    for copy in ("a", "b"):
        meter.copy(copy, "small", "starting")
        meter.copy(copy, "small", "idle")
    meter.copy("kept", "small", "evictable")
    meter.copy("proof", "small", "proving")
    meter.copy("a", "small", "busy")  # its first request: the cold start's own
    meter.copy("b", "small", "busy")
    meter.copy("a", "small", "idle")
    meter.copy("a", "small", "busy")  # b still runs
    meter.copy("a", "small", "idle")
    meter.copy("b", "small", "idle")
    meter.copy("a", "small", "busy")  # at rest: a cold start was spared
    await meter.flush(sink)

    found = total(sink.rows.values())
    assert (found.peak_copies, found.warm_hits) == (2, 1)


async def test_stored_models_are_counted_by_the_second() -> None:
    clocks, sink = Clocks(), Sink()
    meter = meter_on(clocks, stored=lambda: {"large": About(ACCOUNT, 4, 1000)})
    clocks.now += 90
    await meter.flush(sink)

    found = total(sink.rows.values())
    assert (found.stored_unit_s, found.stored_byte_s) == (360, 90_000)


def test_the_database_takes_each_number_of_a_writer_once_and_keeps_one_row_an_hour_model_and_principal(
    tmp_path: Path,
) -> None:
    registry = Registry.open(tmp_path / "registry.db")
    ledger = Ledger(UsageRecords(registry))
    key = Key(7 * HOUR_MS, ACCOUNT, "small", "arn:a")
    for number in (1, 1, 2, 1):
        ledger.apply("one", number, {key: Usage(requests=1, tokens_in=2**40, peak_copies=number)})
    ledger.apply("two", 1, {key: Usage(requests=5, peak_copies=1)})

    found = ledger.between(ACCOUNT, 0, 8 * HOUR_MS)
    registry.close()

    assert found == {key: Usage(requests=7, tokens_in=2 * 2**40, peak_copies=2)}


def test_a_copy_s_windows_begin_with_its_first_success_and_are_billed_where_it_ran() -> None:
    windows = CopyWindows()

    assert windows.served(10_000, 20_000) == [10_000]
    assert windows.served(15_000, 309_999) == []
    assert windows.served(5_000, 310_000) == [310_000]  # it ran into the next one
    assert windows.served(910_000, 1_600_000) == [910_000, 1_210_000, 1_510_000]  # one was skipped, and is free


def test_rows_survive_the_way_through_json() -> None:
    key, usage = Key(0, ACCOUNT, "small"), Usage(idle_ms=5, windows=1)
    flat = {name: getattr(key, name) for name in Key.__struct_fields__} | {
        name: getattr(usage, name) for name in Usage.__struct_fields__
    }

    assert rows_of([flat]) == {key: usage}
    assert Fraction(usage.copy_ms) == 5
