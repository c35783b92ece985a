"""Requests as OpenTelemetry traces, as a collector receives them."""

from __future__ import annotations

from tests.support.otlp import Collector, attributes

from outcrop import errors
from outcrop.inference.canonical import Usage
from outcrop.telemetry.requests import Attempt, ColdStart, Decision, RequestFacts, RequestRecord
from outcrop.telemetry.traces import MOST_WAITING, Traces

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
DECISION = Decision(999.0, 0, 1, "requests wait, and there is no copy", {"held": 1})


def streamed(traceparent: str | None = None, exc: Exception | None = None) -> RequestRecord:
    """A stream that waited 0.9 s for a start, had its first token after 1.5 s and ended after 3 s."""
    facts = RequestFacts(100.0, "r", 1000.0, operation="ConverseStream", model="m", principal="arn:me", is_stream=True)
    facts.traceparent = traceparent
    facts.attempts = [Attempt(0.01, True, "c", held_s=0.9, placed_s=0.91, ended_s=3.0)]
    facts.first_byte_at, facts.ended_at = 101.5, 103.0
    facts.cold_start = ColdStart("c", "disk", 1000.02, 0.88, {"gate": 0.08, "load": 0.8}, DECISION)
    if exc is None:
        facts.answered(Usage(5, 4))
    else:
        facts.failed(exc)
    return facts.record()


def exported(*records: RequestRecord, sample: float = 1.0) -> Collector:
    with Collector() as collector:
        traces = Traces(collector.url, sample=sample)
        for record in records:
            traces.export(record)
        traces.close()
    return collector


def test_a_request_is_a_trace_from_the_caller_s_span_through_hold_and_load_to_the_last_token() -> None:
    collector = exported(streamed(f"00-{TRACE}-{PARENT}-01"))

    (root,) = collector.named("ConverseStream m")
    assert collector.paths == {"/v1/traces"}
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert root.parent_span_id.hex() == PARENT
    children = {span.name: span for span in collector.spans}
    parents = {name: span.parent_span_id for name, span in children.items()}
    assert {parents[name] for name in ("receive", "hold", "prefill", "decode")} == {root.span_id}
    assert parents["cold start"] == children["hold"].span_id
    assert {parents["gate"], parents["load"]} == {children["cold start"].span_id}
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (1000 * 10**9, 1003 * 10**9)
    assert [(event.name, event.time_unix_nano) for event in root.events] == [("first token", 1001_500_000_000)]
    assert [event.name for event in children["decode"].events] == ["last token"]
    assert (
        attributes(root).items()
        >= {
            "gen_ai.request.model": "m",
            "gen_ai.operation.name": "chat",
            "gen_ai.usage.input_tokens": 5,
            "gen_ai.usage.output_tokens": 4,
            "aws.request_id": "r",
        }.items()
    )
    assert attributes(children["cold start"])["outcrop.decision"] == "requests wait, and there is no copy"


def test_the_caller_s_sampled_flag_is_obeyed_and_others_are_sampled_by_the_share() -> None:
    untraced, traced = streamed(f"00-{TRACE}-{PARENT}-00"), streamed(f"00-{TRACE}-{PARENT}-01")

    assert exported(untraced, streamed(), sample=0.0).spans == []
    assert len(exported(traced, sample=0.0).named("ConverseStream m")) == 1
    assert len(exported(untraced, streamed(), sample=1.0).named("ConverseStream m")) == 1


def test_a_request_that_the_engine_failed_is_an_error_and_a_refused_one_only_has_its_type() -> None:
    failed = exported(streamed(exc=errors.EngineFault("a secret message"))).named("ConverseStream m")[0]
    refused = exported(streamed(exc=errors.InvalidRequest("a secret message"))).named("ConverseStream m")[0]

    assert (failed.status.code, attributes(failed)["error.type"]) == (2, "EngineFault")
    assert (refused.status.code, attributes(refused)["error.type"]) == (0, "InvalidRequest")
    assert "secret" not in str(failed) + str(refused)


def test_a_collector_that_is_down_keeps_nobody_and_what_cannot_wait_is_counted() -> None:
    with Collector() as collector:
        url = collector.url
    traces = Traces(url, sample=1.0)
    traces.export(streamed())
    traces.close()
    assert not traces._thread.is_alive()

    for _ in range(MOST_WAITING + 7):  # nobody takes them now
        traces.export(streamed())

    assert traces.dropped == 7
