"""Where a request's time went: headers, steps, and what is kept."""

from __future__ import annotations

import asyncio
import itertools
import re
from pathlib import Path

import pytest

from outcrop import errors
from outcrop.inference.canonical import Usage
from outcrop.telemetry.request_log import RequestLog
from outcrop.telemetry.requests import Attempt, ColdStart, Decision, RequestFacts, RequestRecord, traceparent
from outcrop.telemetry.timeline import steps

DECISION = Decision(999.0, 0, 1, "requests wait, and there is no copy", {"held": 1})
START = ColdStart("c2", "disk", 999.9, 1.0, {"gate": 0.1, "spawn": 0.3, "load": 0.6}, DECISION)


def kept(number: int, **more: object) -> RequestRecord:
    given = {"at": 1.0, "operation": "Converse", "account": "0", "principal": "p", "outcome": "ok", **more}
    return RequestRecord(request_id=f"r{number}", **given)  # type: ignore[arg-type]


def streamed() -> RequestFacts:
    """A stream: held 0.9 s of a wait of 1.1 s, first token at 1.5 s, ended at 3 s."""
    facts = RequestFacts(100.0, "r", 1000.0, operation="ConverseStream", is_stream=True)
    facts.attempts = [Attempt(0.01, True, "c2", held_s=0.9, placed_s=1.11, ended_s=3.0)]
    facts.first_byte_at, facts.ended_at, facts.cold_start = 101.5, 103.0, START
    facts.answered(Usage(5, 4))
    return facts


def durations(header: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"([a-z-]+);dur=([0-9.]+)", header)}


def test_a_record_says_how_long_a_request_was_held_queued_and_generated() -> None:
    record = streamed().record()

    assert (record.held_s, record.queued_s, record.engine_s) == pytest.approx((0.9, 0.2, 1.89))
    assert (record.first_token_s, record.total_s) == (1.5, 3.0)
    assert (record.copy_id, record.retries) == ("c2", 0)


def test_headers_are_in_the_syntax_of_server_timing() -> None:
    headers = dict(streamed().headers())

    assert {"held": 900.0, "queued": 200.0, "first-token": 1500.0}.items() <= durations(
        headers["x-outcrop-timing"]
    ).items()
    assert durations(headers["x-outcrop-cold-start"]) == {"disk": 1000, "gate": 100, "spawn": 300, "load": 600}


def test_a_request_that_found_a_ready_copy_had_no_cold_start_and_one_that_waits_for_one_has_it_pending() -> None:
    warm, cold = RequestFacts(0.0, "r", 0.0), RequestFacts(0.0, "r", 0.0)
    warm.asks(is_cold=False)
    warm.placed("c1", 0.0, None)
    cold.asks(is_cold=True)

    assert dict(warm.headers())["x-outcrop-cold-start"] == "none"
    assert dict(cold.headers())["x-outcrop-cold-start"] == "pending"
    assert durations(dict(cold.headers())["x-outcrop-timing"])["held"] > 0


def test_steps_follow_each_other_and_add_up_to_the_whole_request() -> None:
    found = steps(streamed().record())

    top = [step for step in found if not step.under]
    assert [step.name for step in top] == ["receive", "hold", "queue", "prefill", "decode"]
    for step, after in itertools.pairwise(top):
        assert step.at_s + step.for_s == pytest.approx(after.at_s)
    assert sum(step.for_s for step in top) == pytest.approx(3.0)


def test_the_stages_of_a_start_that_others_ordered_begin_before_the_request() -> None:
    stages = [step for step in steps(streamed().record()) if step.under]

    assert [step.name for step in stages] == ["cold start", "gate", "spawn", "load"]
    assert stages[0].at_s == pytest.approx(-0.1)
    assert stages[-1].at_s + stages[-1].for_s == pytest.approx(0.9)


def test_a_copy_that_broke_is_a_step_of_its_own_before_the_one_that_answered() -> None:
    facts = RequestFacts(0.0, "r", 0.0)
    facts.attempts = [
        Attempt(0.0, copy_id="c1", placed_s=0.0, ended_s=0.5),
        Attempt(0.5, copy_id="c2", placed_s=0.5, ended_s=0.9),
    ]
    facts.ended_at = 0.9
    facts.answered(Usage(1, 1))

    found = steps(facts.record())

    assert [(step.copy_id, step.is_broken) for step in found if step.name == "generate"] == [
        ("c1", True),
        ("c2", False),
    ]
    assert facts.record().retries == 1


def test_a_whole_answer_is_split_where_the_engine_says_how_long_it_generated() -> None:
    facts = RequestFacts(0.0, "r", 0.0)
    facts.attempts = [Attempt(0.0, copy_id="c", placed_s=0.0, ended_s=1.0)]
    facts.ended_at = 1.0
    facts.answered(Usage(1, 1), decode_s=0.75)

    assert [(step.name, step.at_s, step.for_s) for step in steps(facts.record()) if step.copy_id] == [
        ("prefill", 0.0, 0.25),
        ("decode", 0.25, 0.75),
    ]


def test_a_request_that_no_copy_came_for_was_held_until_it_ended() -> None:
    facts = RequestFacts(0.0, "r", 0.0)
    facts.attempts = [Attempt(0.0, is_cold=True, ended_s=55.0)]
    facts.ended_at = 55.0
    facts.failed(errors.ModelNotReady("x"), 429)

    record = facts.record()

    assert (record.held_s, record.outcome, record.status, record.blame) == (55.0, "ModelNotReady", 429, "throttled")
    assert [step.name for step in steps(record)] == ["receive", "hold"]


@pytest.mark.parametrize(
    "value",
    [
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        "",
    ],
)
def test_a_traceparent_that_is_none_is_ignored(value: str) -> None:
    assert traceparent(value) is None
    assert traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01") is not None


# -- the log of requests --------------------------------------------------------------------------------


async def test_a_record_outlives_the_process_and_the_memory(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl", most_bytes=1_000_000, kept=2)
    for number in range(5):
        log.keep(kept(number))
    await log.flush()

    again = RequestLog(tmp_path / "requests.jsonl", most_bytes=1_000_000, kept=2)

    assert [record.request_id for record in log.recent()] == ["r4", "r3"]
    assert await log.find("r0") == kept(0)
    assert await again.find("r3") == kept(3)
    assert await again.find("r9") is None
    assert (tmp_path / "requests.jsonl").stat().st_mode & 0o077 == 0


async def test_the_files_stay_within_their_bytes_and_the_oldest_records_go(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl", most_bytes=20_000, kept=1)
    for number in range(1000):
        log.keep(kept(number))
        if number % 10 == 0:
            await log.flush()
    await log.flush()

    sizes = [(tmp_path / name).stat().st_size for name in ("requests.jsonl", "requests.jsonl.1")]
    assert sum(sizes) < 22_000
    assert await log.find("r0") is None
    assert await log.find("r990") is not None


async def test_what_a_crash_cut_off_hides_no_other_record(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"request_id":"r1","at":1.0,"operat')
    log = RequestLog(path, most_bytes=1_000_000, kept=1)
    log.keep(kept(2))
    log.keep(kept(3))
    await log.flush()

    assert await log.find("r1") is None
    assert await log.find("r2") == kept(2)


async def test_records_that_cannot_be_written_are_counted_and_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    log = RequestLog(tmp_path / "blocked" / "requests.jsonl", most_bytes=1_000_000, kept=10)
    log.keep(kept(1))
    await log.flush()

    assert log.dropped == 1
    assert await log.find("r1") == kept(1)


async def test_what_is_pending_is_written_when_the_log_is_closed(tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "requests.jsonl", most_bytes=1_000_000, kept=1)
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    log.keep(kept(1))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert b'"r1"' in (tmp_path / "requests.jsonl").read_bytes()


async def test_the_attempts_of_an_invocation_are_found_together() -> None:
    log = RequestLog(None, most_bytes=0, kept=10)
    log.keep(kept(1, invocation_id="i"))
    log.keep(kept(2))
    log.keep(kept(3, invocation_id="i"))
    log.keep(kept(4, invocation_id="i", account="1"))

    assert [record.request_id for record in log.attempts_of("i", "0")] == ["r1", "r3"]
