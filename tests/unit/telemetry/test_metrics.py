"""What is exported: every row of the table, by bounded labels, counted as CloudWatch counts."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from outcrop import errors
from outcrop.inference.canonical import Usage
from outcrop.telemetry import metric_table as table
from outcrop.telemetry.metric_table import Kind
from outcrop.telemetry.metrics import MOST_MODELS, Metrics
from outcrop.telemetry.requests import ColdStart, RequestFacts, RequestRecord

START = ColdStart("c1", "cached", 1000.0, 1.5, {"gate": 0.1, "spawn": 0.4, "load": 1.0})


def record(model: str = "m", exc: Exception | None = None, **more: Any) -> RequestRecord:
    facts = RequestFacts(0.0, "r", 1000.0, operation="Converse", model=model, **more)
    facts.ended_at = 2.0
    if exc is None:
        facts.answered(Usage(7, 3))
    else:
        facts.failed(exc)
    return facts.record()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(metrics.page()().decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    return None


def test_every_row_of_the_table_is_exported_once_it_has_a_value() -> None:
    metrics = Metrics()
    read = (
        table.RECORDS_DROPPED,
        table.SPANS_DROPPED,
        table.AUDIT_RECORDS,
        table.AUDIT_LOST,
        table.INVOCATION_LOGS,
        table.INVOCATION_LOGS_LOST,
        table.INVOCATION_LOG_BODIES,
        table.INVOCATION_LOG_BODIES_LOST,
    )
    watched = [
        row for row in table.TABLE if row.kind is Kind.GAUGE or row in read or row.name.startswith("outcrop_migration_")
    ]
    metrics.watch(lambda: [(row, ["x"] * len(row.labels), 1.0) for row in watched])
    metrics.request(record(cold_start=START))
    metrics.copy_ready("m", START)
    metrics.start_failed("m")
    metrics.copy_ended("m", "drained")
    metrics.decided("m", 0, 1)

    exported = {family.name for family in text_string_to_metric_families(metrics.page()().decode())}

    assert {row.name for row in table.TABLE} <= exported


def test_an_answered_request_is_an_invocation_with_its_tokens_and_latency() -> None:
    metrics = Metrics()

    metrics.request(record(first_byte_at=0.5))

    assert value(metrics, "outcrop_invocations_total", model="m") == 1
    assert value(metrics, "outcrop_input_token_count_total", model="m") == 7
    assert value(metrics, "outcrop_output_token_count_total", model="m") == 3
    assert value(metrics, "outcrop_invocation_latency_seconds_sum", model="m") == 2
    assert value(metrics, "outcrop_time_to_first_token_seconds_sum", model="m") == 0.5
    assert value(metrics, "outcrop_inter_token_seconds_sum", model="m") == 0.75  # 1.5 s for two tokens after the first
    assert value(metrics, "outcrop_requests_total", model="m", operation="Converse", outcome="ok") == 1


@pytest.mark.parametrize(
    ("exc", "counter"),
    [
        (errors.ModelNotReady("x"), "throttles"),
        (errors.Throttled("x"), "throttles"),
        (errors.InvalidRequest("x"), "client_errors"),
        (errors.PromptTooLong("x"), "client_errors"),
        (errors.EngineFault("x"), "server_errors"),
        (errors.EngineTimeout("x"), "server_errors"),
        (errors.ShuttingDown("x"), "server_errors"),
        (errors.ServiceFault("x"), "server_errors"),
    ],
)
def test_what_fails_is_counted_once_and_is_no_invocation(exc: Exception, counter: str) -> None:
    metrics = Metrics()

    metrics.request(record(exc=exc))

    counted = {
        kind: value(metrics, f"outcrop_invocation_{kind}_total", model="m")
        for kind in ("throttles", "client_errors", "server_errors")
    }
    assert counted == {kind: float(kind == counter) for kind in counted}
    assert value(metrics, "outcrop_invocations_total", model="m") == 0
    assert value(metrics, "outcrop_requests_total", outcome=type(exc).__name__) == 1


def test_a_caller_who_leaves_is_neither_an_invocation_nor_an_error() -> None:
    metrics = Metrics()
    facts = RequestFacts(0.0, "r", 1000.0, operation="Converse", model="m")
    facts.ended_at = 1.0

    metrics.request(facts.record())

    assert value(metrics, "outcrop_requests_total", model="m", outcome="cancelled") == 1
    assert value(metrics, "outcrop_invocation_server_errors_total", model="m") == 0
    assert value(metrics, "outcrop_invocations_total", model="m") == 0


def test_names_of_models_are_bounded_and_those_that_do_not_exist_are_no_label() -> None:
    metrics = Metrics()

    for number in range(MOST_MODELS + 50):
        metrics.request(record(f"m{number}"))
    metrics.request(record("", exc=errors.ModelNotFound("x")))

    page = metrics.page()().decode()
    assert 'outcrop_invocations_total{model="other"} 50.0' in page
    assert 'outcrop_invocation_client_errors_total{model="unknown"} 1.0' in page
    assert sum(line.startswith("outcrop_invocations_total{") for line in page.splitlines()) == MOST_MODELS + 2


def test_what_is_true_now_of_more_models_than_have_names_is_added_up() -> None:
    metrics = Metrics()
    metrics.request(record("asked"))
    rows = (table.SLOTS, table.KV_USE)
    metrics.watch(lambda: [(row, (f"m{number}",), 2.0) for number in range(MOST_MODELS + 50) for row in rows])
    metrics.watch(lambda: [(table.SLOTS, ("asked",), 3.0)])

    lines = metrics.page()().decode().splitlines()

    assert 'outcrop_slots{model="other"} 102.0' in lines
    assert 'outcrop_slots{model="asked"} 3.0' in lines
    assert sum(line.startswith("outcrop_slots{") for line in lines) == MOST_MODELS + 1
    assert sum(line.startswith("outcrop_kv_cache_use_ratio{") for line in lines) == MOST_MODELS - 1


def test_the_series_of_a_deleted_model_go_and_come_back_from_zero() -> None:
    names = ["kept", "gone"]
    metrics = Metrics(names=lambda: names)
    for name in names:
        metrics.request(record(name, cold_start=START))
        metrics.copy_ready(name, START)

    names.remove("gone")
    page = metrics.page()().decode()
    names.append("gone")
    metrics.request(record("gone"))

    assert 'model="kept"' in page
    assert 'model="gone"' not in page
    assert value(metrics, "outcrop_invocations_total", model="gone") == 1


def test_a_page_is_of_the_moment_when_it_was_asked_for() -> None:
    metrics = Metrics()
    metrics.request(record())
    page = metrics.page()
    metrics.request(record())

    assert b'outcrop_invocations_total{model="m"} 1.0' in page()
    assert b'outcrop_invocation_latency_seconds_count{model="m"} 1.0' in page()
    assert value(metrics, "outcrop_invocations_total", model="m") == 2


def test_copies_and_decisions_are_counted_by_the_model_s_name() -> None:
    metrics = Metrics(name_of={"id1": "named"}.get)

    metrics.copy_ready("id1", START)
    metrics.decided("id1", 1, 3)
    metrics.decided("id1", 3, 0)
    metrics.copy_ended("gone", "died")

    assert value(metrics, "outcrop_cold_start_seconds_sum", model="named", tier="cached") == 1.5
    assert value(metrics, "outcrop_cold_start_stage_seconds_sum", stage="load") == 1.0
    assert value(metrics, "outcrop_scaling_decisions_total", model="named", direction="up") == 1
    assert value(metrics, "outcrop_scaling_decisions_total", model="named", direction="to zero") == 1
    assert value(metrics, "outcrop_copies_ended_total", model="unknown", reason="died") == 1
