"""What operators see of real requests: headers, traces, the live view, metrics, logs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from botocore.exceptions import ClientError
from prometheus_client.parser import text_string_to_metric_families
from tests.support.otlp import Collector, attributes
from tests.support.server import Server, wait_for

PROMPT = "zanzibar hippopotamus wheelbarrow"
CHAT = [{"role": "user", "content": PROMPT}]
CONVERSE = [{"role": "user", "content": [{"text": PROMPT}]}]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny: Path, collector: Collector) -> Iterator[Server]:
    """A server of its own with a model ``watched``, which logs every request and sends its traces to *collector*."""
    home = tmp_path_factory.mktemp("watched")
    logging = {"slow_request_s": 0, "log_json": True, "log_level": "debug"}
    server = Server(home, cpu_threads=1, slots=2, otlp_endpoint=collector.url, **logging).start()
    server.import_model(tiny, "watched")
    yield server
    server.stop()


def durations(header: str) -> dict[str, float]:
    return {name: float(ms) for name, ms in re.findall(r"([a-z-]+);dur=([0-9.]+)", header)}


def converse(server: Server, tokens: int = 4, model: str = "watched") -> dict[str, Any]:
    answer: dict[str, Any] = server.client("bedrock-runtime").converse(
        modelId=arn_of(server, model), messages=CONVERSE, inferenceConfig={"maxTokens": tokens}
    )
    return answer


def arn_of(server: Server, model: str) -> str:
    arn: str = server.client("bedrock").get_imported_model(modelIdentifier=model)["modelArn"]
    return arn


def headers_of(answer: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def metrics(server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    request = urllib.request.Request(
        server.url + "/metrics", headers={"Authorization": f"Bearer {server.credentials.bearer_key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        page = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def metric(server: Server, name: str, **labels: str) -> float:
    return metrics(server).get((name, frozenset(labels.items())), 0.0)


def test_the_first_request_says_which_start_it_waited_for_and_the_next_that_it_waited_for_none(watched: Server) -> None:
    cold, warm = headers_of(converse(watched)), headers_of(converse(watched))

    start, timing = durations(cold["x-outcrop-cold-start"]), durations(cold["x-outcrop-timing"])
    whole, *stages = start.values()
    assert list(start)[1:] == ["gate", "spawn", "import", "load", "ready"]
    assert sum(stages) == pytest.approx(whole, abs=1)
    assert 0 < timing["held"] <= timing["total"]
    assert warm["x-outcrop-cold-start"] == "none"
    assert durations(warm["x-outcrop-timing"])["held"] == 0


def test_a_cold_request_is_explained_down_to_the_decision_that_ordered_its_copy(watched: Server) -> None:
    first = watched.admin("/outcrop/v1/requests?limit=1000")["requests"][-1]

    found = watched.admin(f"/outcrop/v1/requests/{first['request_id']}")

    record, steps = found["request"], found["steps"]
    assert record["cold_start"]["decision"]["desired"] == 1
    assert record["cold_start"]["decision"]["facts"]["held"] == 1
    assert record["cold_start"]["copy_id"] == record["attempts"][0]["copy_id"]
    names = [step["name"] for step in steps if not step["under"]]
    assert [name for name in names if name != "queue"][:3] == ["receive", "hold", "prefill"]
    assert record["principal"].startswith("arn:aws:iam::")
    assert record["output_tokens"] == 4


def test_a_stream_says_when_its_first_token_came_and_its_trace_when_the_last_did(watched: Server) -> None:
    answer = watched.client("bedrock-runtime").converse_stream(
        modelId=arn_of(watched, "watched"), messages=CONVERSE, inferenceConfig={"maxTokens": 16}
    )
    timing = durations(headers_of(answer)["x-outcrop-timing"])
    list(answer["stream"])

    found = watched.admin(f"/outcrop/v1/requests/{answer['ResponseMetadata']['RequestId']}")

    record = found["request"]
    assert 0 < timing["first-token"] <= timing["total"]
    assert record["first_token_s"] == pytest.approx(timing["first-token"] / 1000, abs=1e-4)
    assert record["total_s"] > record["first_token_s"]
    assert [step["name"] for step in found["steps"]][-1] in ("decode", "answer")


def test_an_openai_client_finds_its_request_by_the_id_that_it_knows(watched: Server) -> None:
    sdk = openai.OpenAI(base_url=f"{watched.url}/v1", api_key=watched.credentials.bearer_key, max_retries=0)
    answer = sdk.chat.completions.create(model="watched", messages=CHAT, max_tokens=3)  # type: ignore[arg-type]

    by_header = watched.admin(f"/outcrop/v1/requests/{answer._request_id}")["request"]
    by_answer = watched.admin(f"/outcrop/v1/requests/{answer.id}")["request"]

    assert by_header == by_answer
    assert by_header["operation"] == "ChatCompletions"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="watched", messages=[], max_tokens=3)
    assert "x-outcrop-timing" in refused.value.response.headers
    assert refused.value.response.headers["x-request-id"] == refused.value.request_id


def test_a_request_is_explained_while_it_runs_and_seen_in_the_live_view(watched: Server) -> None:
    answer = watched.client("bedrock-runtime").converse_stream(
        modelId=arn_of(watched, "watched"),
        messages=CONVERSE,
        inferenceConfig={"maxTokens": 150},
        additionalModelRequestFields={"ignore_eos": True},
    )
    running = watched.admin(f"/outcrop/v1/requests/{answer['ResponseMetadata']['RequestId']}")["request"]
    top = watched.admin("/outcrop/v1/top")["models"][0]
    list(answer["stream"])
    ended = watched.admin(f"/outcrop/v1/requests/{answer['ResponseMetadata']['RequestId']}")["request"]

    # The model is fast: whether the stream still runs when it is asked for is not ours to say, but it agrees.
    assert running["outcome"] in ("running", "ok")
    assert top["live"] == top["busy"]
    assert ended["outcome"] == "ok"
    assert ended["output_tokens"] == 150


def test_metrics_count_what_was_asked(watched: Server) -> None:
    labels = {"model": "watched"}
    before = {
        name: metric(watched, name, **labels)
        for name in (
            "outcrop_invocations_total",
            "outcrop_output_token_count_total",
            "outcrop_invocation_client_errors_total",
            "outcrop_invocation_latency_seconds_count",
        )
    }

    converse(watched, tokens=5)
    with pytest.raises(ClientError, match="ValidationException"):
        watched.client("bedrock-runtime").invoke_model(modelId=arn_of(watched, "watched"), body=b"{}")

    grown = {name: metric(watched, name, **labels) - value for name, value in before.items()}
    assert list(grown.values()) == [1, 5, 1, 1]
    assert metric(watched, "outcrop_model_copy", model="watched", state="ready") == 1
    assert metric(watched, "outcrop_slots", model="watched") == 2
    assert metric(watched, "outcrop_queue_requests", model="watched") == 0
    assert metric(watched, "outcrop_cold_start_seconds_count", model="watched", tier="cached") == 1
    assert metric(watched, "outcrop_scaling_decisions_total", model="watched", direction="up") == 1


def test_requests_of_models_that_do_not_exist_make_no_label(watched: Server) -> None:
    arn = arn_of(watched, "watched")
    for name in ("aaaaaaaaaaaa", "bbbbbbbbbbbb"):
        with pytest.raises(ClientError):
            watched.client("bedrock-runtime").invoke_model(modelId=f"{arn[:-12]}{name}", body=b'{"prompt":"x"}')

    labels = {value for _, pairs in metrics(watched) for key, value in pairs if key == "model"}
    assert labels == {"watched", "unknown"}


def test_a_request_that_waits_for_a_slot_was_queued_and_not_held(watched: Server) -> None:
    arn = arn_of(watched, "watched")

    def ask() -> None:
        answer = watched.client("bedrock-runtime").invoke_model(
            modelId=arn, body=json.dumps({"prompt": "x", "max_tokens": 200, "ignore_eos": True})
        )
        found.append(durations(headers_of(answer)["x-outcrop-timing"]))

    found: list[dict[str, float]] = []
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 8
    assert all(timing["held"] == 0 for timing in found)
    assert max(timing["queued"] for timing in found) > 1


def test_who_may_not_see_the_server_sees_no_request_and_no_metric(watched: Server) -> None:
    for path in ("/metrics", "/outcrop/v1/requests", "/outcrop/v1/top", "/outcrop/v1/requests/x"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(watched.url + path, timeout=10)
        assert refused.value.code == 403


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "order=best", "model=nobody"])
def test_a_list_of_requests_that_makes_no_sense_is_refused(watched: Server, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        watched.admin(f"/outcrop/v1/requests?{query}")
    assert refused.value.code in (400, 404)


def command(server: Server, *words: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "outcrop.cli.main", *words, "--home", str(server.home)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_commands_show_a_request_the_last_ones_and_what_goes_on(watched: Server) -> None:
    request_id = converse(watched)["ResponseMetadata"]["RequestId"]

    traced = command(watched, "trace", request_id)
    listed = command(watched, "trace", "--last", "5", "--model", "watched")
    slowest = json.loads(command(watched, "trace", "--slowest", "--json"))
    top = json.loads(command(watched, "top", "--once", "--json", "--interval", "0.1"))

    assert all(word in traced for word in (request_id, "prefill", "decode", "Converse", "total"))
    assert request_id in listed
    assert [row["total_s"] for row in slowest] == sorted((row["total_s"] for row in slowest), reverse=True)
    assert top["models"][0]["model_name"] == "watched"
    assert {"tokens_per_s", "waiting", "kv_use", "slots"} <= top["models"][0].keys()
    assert "watched" in command(watched, "top", "--once", "--interval", "0.1")


def test_a_caller_s_traceparent_becomes_the_parent_of_the_request_s_trace(
    watched: Server, collector: Collector
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    client = watched.client("bedrock-runtime")
    client.meta.events.register(
        "before-call.bedrock-runtime",
        lambda params, **_: params["headers"].update(traceparent=f"00-{trace_id}-b7ad6b7169203331-01"),
    )
    answer = client.converse_stream(modelId=arn_of(watched, "watched"), messages=CONVERSE)
    list(answer["stream"])

    wait_for(lambda: any(span.trace_id.hex() == trace_id for span in collector.named("ConverseStream watched")))

    spans = {span.name: span for span in collector.spans if span.trace_id.hex() == trace_id}
    root = spans["ConverseStream watched"]
    assert root.parent_span_id.hex() == "b7ad6b7169203331"
    assert attributes(root)["aws.request_id"] == answer["ResponseMetadata"]["RequestId"]
    assert {"receive", "prefill", "decode"} <= spans.keys()
    assert [event.name for event in spans["decode"].events] == ["last token"]


def test_the_first_request_s_trace_holds_the_stages_of_its_cold_start(watched: Server, collector: Collector) -> None:
    wait_for(lambda: bool(collector.named("load")))

    (load,) = collector.named("load")
    (start,) = [span for span in collector.named("cold start") if span.span_id == load.parent_span_id]
    assert attributes(start)["outcrop.decision"]
    assert start.start_time_unix_nano <= load.start_time_unix_nano < load.end_time_unix_nano <= start.end_time_unix_nano


def test_nothing_that_a_caller_says_reaches_logs_records_metrics_or_traces(
    watched: Server, collector: Collector
) -> None:
    converse(watched)
    body = json.dumps({"messages": [{"role": PROMPT, "content": PROMPT}], "max_tokens": 3})
    for raw in (body, json.dumps({"prompt": PROMPT, "max_tokens": PROMPT}), f'{{"prompt": "{PROMPT}'):
        with pytest.raises(ClientError):
            watched.client("bedrock-runtime").invoke_model(modelId=arn_of(watched, "watched"), body=raw)
    log, records = watched.home / "server.log", watched.home / "logs" / "requests.jsonl"
    last = watched.admin("/outcrop/v1/requests?limit=1")["requests"][0]["request_id"]
    wait_for(lambda: records.exists() and last in records.read_text())

    said = [PROMPT, *PROMPT.split()]
    pages = [log.read_text(), records.read_text(), str(metrics(watched)), json.dumps(watched.admin("/outcrop/v1/top"))]
    pages.append(str(collector.spans))
    assert all(last in page for page in pages[:2])
    assert not [word for word in said for page in pages if word in page]


def test_a_log_line_of_a_request_names_model_copy_and_principal(watched: Server) -> None:
    request_id = converse(watched)["ResponseMetadata"]["RequestId"]

    lines = [json.loads(line) for line in (watched.home / "server.log").read_text().splitlines() if request_id in line]

    (line,) = [line for line in lines if line["event"] == "request"]
    assert line["model"] == "watched"
    assert line["copy_id"] in {copy["copy_id"] for copy in watched.status()["copies"]}
    assert line["principal"].startswith("arn:aws:iam::")
    assert line["outcome"] == "ok"


def test_a_request_is_explained_after_a_restart(watched: Server) -> None:
    request_id = converse(watched)["ResponseMetadata"]["RequestId"]
    before = watched.admin(f"/outcrop/v1/requests/{request_id}")
    watched.stop()
    watched.start()

    assert watched.admin(f"/outcrop/v1/requests/{request_id}") == before
