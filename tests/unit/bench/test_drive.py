"""The benchmark's own parts: what it hears, what it counts, what it says of it."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from typer.testing import CliRunner

from outcrop.awswire.eventstream import encode_chunk, encode_event, encode_exception, encode_message
from outcrop.bench import crosscheck, report, table
from outcrop.bench.drive import Driver, Record, Run, Shape, calibrated
from outcrop.bench.endpoints import Ask, Bedrock, Heard, Keys, OpenAI, SageMaker
from outcrop.bench.measures import interval, percentile, ratio, summary
from outcrop.bench.payloads import Lengths, Payload, read_prompts
from outcrop.bench.plots import Plot, png, svg
from outcrop.bench.published import TABLE
from outcrop.cli import bench as commands
from outcrop.errors import BadSetting

KEYS = Keys("AKIAABCDEFGHIJKLMNOP", "s" * 40, "token")
SHORT = Payload(tokens_in=Lengths(mean=20), tokens_out=Lengths(mean=3, cv=0), forced=False)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def served() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    runners = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        return f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]

    yield start
    for runner in runners:
        await runner.cleanup()


async def streaming(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b": waiting for a copy\n\n")
    for _ in range(body["max_tokens"]):
        await response.write(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
        await asyncio.sleep(0.005)
    words = len(body["messages"][0]["content"].split())
    usage = {"prompt_tokens": 7 + 2 * words, "completion_tokens": body["max_tokens"]}
    await response.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
    return response


async def test_a_closed_loop_keeps_its_users_busy_and_agrees_with_little(
    served: Callable[[Handler], Awaitable[str]], tmp_path: Path
) -> None:
    endpoint = OpenAI(await served(streaming), "m", "key", stream=True)

    run = await Driver(endpoint, SHORT).run(Shape(users=4, requests=240, warm_s=0.1))

    found = summary(run)
    assert found.void is None
    assert found.errors == {}
    assert found.requests >= 200
    assert found.tokens_out == 3
    assert abs(found.little or 1) < 0.3  # what a stall of a busy machine does to the ends of a short run included
    assert found.ttft_p50_s is not None
    assert found.ttft_p50_s < found.p50.value
    report.write(tmp_path, {"4 users": run}, {"4 users": found}, {"endpoint": "openai:m"}, with_png=True)
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "plot-1.png").read_bytes().startswith(b"\x89PNG")
    assert len(report.read(tmp_path)["4 users"]) == found.requests
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == len(run.records)


async def test_an_open_loop_counts_from_the_intended_time_and_does_not_wait_for_answers(
    served: Callable[[Handler], Awaitable[str]],
) -> None:
    running = most = 0

    async def slow(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.3)
        running -= 1
        return web.json_response({"choices": [{"text": "x"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    endpoint = OpenAI(await served(slow), "m", "key", stream=False)
    due = tuple(number * 0.02 for number in range(20))

    run = await Driver(endpoint, SHORT).run(Shape(schedule=due, requests=20, warm_s=0))

    assert most > 5
    assert sorted(record.due_s for record in run.records) == pytest.approx(due)
    assert min(record.latency_s for record in run.records) >= 0.3


async def test_one_client_holds_512_streams_at_a_time(served: Callable[[Handler], Awaitable[str]]) -> None:
    running = most = 0
    everyone = asyncio.Event()

    async def held(request: web.Request) -> web.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 512:
            everyone.set()
        await everyone.wait()
        response = await streaming(request)
        running -= 1
        return response

    endpoint = OpenAI(await served(held), "m", "key", stream=True)

    run = await Driver(endpoint, SHORT).run(Shape(users=512, requests=512, warm_s=0))

    assert most == 512
    assert {record.error for record in run.records} == {None}


async def test_errors_are_counted_by_their_own_names(served: Callable[[Handler], Awaitable[str]]) -> None:
    async def refuses(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": "model_not_ready"}}, status=429)

    endpoint = OpenAI(await served(refuses), "m", "key", stream=True)

    run = await Driver(endpoint, SHORT).run(Shape(users=1, requests=3, warm_s=0))

    assert {record.error for record in run.records} == {"model_not_ready"}
    assert summary(run).void == "no request was answered in the steady window"
    with pytest.raises(BadSetting, match="model_not_ready"):
        await calibrated(endpoint, SHORT)


async def test_prompts_get_the_length_that_the_endpoint_counts(served: Callable[[Handler], Awaitable[str]]) -> None:
    endpoint = OpenAI(await served(streaming), "m", "key", stream=True)
    wanted = Payload(tokens_in=Lengths(mean=407, cv=0), tokens_out=Lengths(mean=3))

    fitted = await calibrated(endpoint, wanted)

    assert fitted.words_per_token == pytest.approx(0.5)
    assert fitted.fixed_tokens == pytest.approx(7)
    assert len(next(fitted.asks(1)).prompt.split()) == pytest.approx(200, abs=2)


def test_the_same_seed_asks_the_same_and_prefixes_are_shared_only_when_asked() -> None:
    def first(count: int, seed: int, shared: float) -> list[Ask]:
        payload = Payload(tokens_in=Lengths(mean=100), tokens_out=Lengths(mean=20), shared=shared)
        asks = payload.asks(seed)
        return [next(asks) for _ in range(count)]

    assert first(5, 1, 0) == first(5, 1, 0) != first(5, 2, 0)
    assert len({ask.prompt.split()[0] for ask in first(50, 1, 0)}) == 50
    assert len({tuple(ask.prompt.split()[:45]) for ask in first(50, 1, 0.5)}) == 1
    lengths = [ask.tokens_out for ask in first(2000, 3, 0)]
    assert statistics.mean(lengths) == pytest.approx(20, rel=0.03)
    assert statistics.stdev(lengths) / 20 == pytest.approx(0.2, rel=0.1)


def test_prompts_come_from_a_file_or_it_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('"one"\n{"prompt": "two"}\n')
    (tmp_path / "bad.jsonl").write_text("{}\n")

    assert read_prompts(tmp_path / "p.jsonl") == ("one", "two")
    with pytest.raises(BadSetting, match="object with prompt"):
        read_prompts(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("made", [Bedrock, SageMaker])
def test_requests_are_signed_as_botocore_signs_them(made: type[Bedrock]) -> None:
    endpoint = made(
        "https://host.example", "arn:aws:bedrock:us-east-1:1:imported-model/a b", KEYS, "us-east-1", stream=True
    )

    url, headers, body = endpoint.request(Ask("hello", 5, forced=True))

    theirs = AWSRequest("POST", url, {"content-type": "application/json"}, body)
    signer = SigV4Auth(
        Credentials(KEYS.access_key_id, KEYS.secret_access_key, KEYS.session_token), made.name, "us-east-1"
    )
    theirs.context["timestamp"] = headers["x-amz-date"]
    theirs.headers["X-Amz-Date"] = headers["x-amz-date"]
    theirs.headers["X-Amz-Security-Token"] = KEYS.session_token
    canonical = signer.canonical_request(theirs)
    signature = signer.signature(signer.string_to_sign(theirs, canonical), theirs)
    assert headers["authorization"].endswith(f"Signature={signature}")


def heard(endpoint: Bedrock | SageMaker | OpenAI, *parts: bytes) -> Heard:
    reader, found = endpoint.hear(), Heard()
    data = b"".join(parts)
    for at in range(0, len(data), 7):  # as it may come
        reader.feed(data[at : at + 7], found)
    reader.end(found)
    return found


def test_every_form_of_an_answer_is_understood() -> None:
    bedrock, sagemaker = (made("http://h", "m", KEYS, "us-east-1", stream=True) for made in (Bedrock, SageMaker))
    whole = Bedrock("http://h", "m", KEYS, "us-east-1", stream=False)
    last = b'{"generation":"","amazon-bedrock-invocationMetrics":{"inputTokenCount":5,"outputTokenCount":2}}'

    assert heard(
        bedrock, encode_event("heartbeat", b"{}"), encode_chunk(b'{"generation":"x"}'), encode_chunk(last)
    ) == (Heard(True, 5, 2, None))
    assert heard(bedrock, encode_exception("throttlingException", "slow")).error == "throttlingException"
    part = ((":message-type", "event"), (":event-type", "PayloadPart"))
    sse = b'data: {"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    assert heard(sagemaker, encode_message(part, sse[:30]), encode_message(part, sse[30:])) == Heard(True, 5, 2, None)
    assert heard(whole, b'{"generation":"x","prompt_token_count":5,"generation_token_count":2}') == Heard(
        True, 5, 2, None
    )
    assert heard(bedrock).error == "the stream ended before its first token"
    assert heard(whole, b"no").error == "the answer is not JSON"


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"[1]", b"7", b"{}", b"\xff\x00"),
        *(b'{"choices":[1,"x",null],"usage":[1]}', b'{"choices":{"a":1},"usage":"x"}'),
        *(b'{"choices":[],"usage":{"completion_tokens":-5}}', b'{"choices":[],"usage":{"completion_tokens":true}}'),
    ],
)
def test_what_is_no_answer_is_an_error_and_never_a_fast_success(answer: bytes) -> None:
    for stream in (False, True):
        sent = b"data: " + answer + b"\n\n" if stream else answer
        found = heard(OpenAI("http://h", "m", "k", stream=stream), sent)
        assert found.error is not None
        assert found.tokens_out is None


async def test_an_endpoint_that_hangs_or_sends_broken_frames_costs_one_wait(
    served: Callable[[Handler], Awaitable[str]],
) -> None:
    async def bad(request: web.Request) -> web.StreamResponse:
        if "hang" in request.path:
            await asyncio.sleep(1)
        return web.Response(body=b"no frame of an event stream at all, but long enough to be read as one")

    url = await served(bad)
    endpoints = {
        "timeout": OpenAI(f"{url}/hang", "m", "key", stream=True),
        "the answer has no known form": Bedrock(url, "m", KEYS, "us-east-1", stream=True),
    }
    for error, endpoint in endpoints.items():
        run = await Driver(endpoint, SHORT).run(Shape(users=2, requests=2, warm_s=0, most_s=0.2, timeout_s=0.3))
        assert {record.error for record in run.records} == {error}
        assert summary(run).void


def test_results_of_an_earlier_run_are_not_overwritten(tmp_path: Path) -> None:
    report.prepare(tmp_path / "new" / "folder")
    (tmp_path / "requests.jsonl").write_text("{}")

    with pytest.raises(BadSetting, match="earlier run"):
        report.prepare(tmp_path)
    with pytest.raises(BadSetting, match="cannot be made"):
        report.prepare(tmp_path / "requests.jsonl" / "in-a-file")


def test_a_run_that_is_stopped_tells_what_was_measured_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Stopped:
        def __init__(self, *_: object, **__: object) -> None: ...

        async def run(self, shape: Shape) -> Run:
            if shape.users > 1:
                raise KeyboardInterrupt
            return Run(shape, [Record(due_s=0.0, sent_s=0.0, last_s=1.0, tokens_out=2)], steady=(-1, 2), wall_s=3)

    async def as_is(endpoint: object, payload: Payload) -> Payload:
        return payload

    monkeypatch.setattr(commands, "Driver", Stopped)
    monkeypatch.setattr(commands, "calibrated", as_is)
    words = ["run", "openai:m@http://h/v1", "--users", "1", "--users", "2", "--rate", "1", "--out", str(tmp_path / "r")]

    done = CliRunner().invoke(commands.app, words)

    assert done.exit_code == 0, done.output
    assert "2 users was stopped" in done.output
    assert list(report.read(tmp_path / "r")) == ["1 user"]


@pytest.mark.parametrize("words", [["--users", "0"], ["--rate", "-1"], ["--rate", "nan"], ["--timeout-s", "0"]])
def test_a_load_that_is_none_is_refused(words: list[str]) -> None:
    done = CliRunner().invoke(commands.app, ["run", "openai:m@http://h/v1", *words])

    assert done.exit_code == 2
    assert words[0] in done.output


def test_percentiles_carry_intervals_of_order_statistics() -> None:
    assert interval(200, 0.95) == (184, 197)
    assert interval(10, 0.99) is None  # too few to say
    assert percentile(list(range(1, 101)), 0.95) == 95
    both = ratio([2.0] * 50, [1.0] * 50, 0.5)
    assert (both.value, both.low, both.high) == (2, 2, 2)


def test_a_run_that_sent_late_is_void_and_lost_requests_show_in_little() -> None:
    late = Run(Shape(rate=1.0), [Record(due_s=1, sent_s=1.5, last_s=2, tokens_out=2)], steady=(0, 3), wall_s=3)
    assert (summary(late).void or "").startswith("the client sent late")

    busy = [Record(due_s=float(at), sent_s=float(at), last_s=at + 1.0) for at in range(10)]
    assert summary(Run(Shape(users=1), busy, steady=(0, 10), wall_s=10)).little == pytest.approx(0)
    assert summary(Run(Shape(users=2), busy, steady=(0, 10), wall_s=10)).little == pytest.approx(0.5)


def test_the_published_table_is_a_closed_loop_by_its_own_numbers() -> None:
    assert [round(row.mean_s, 2) for row in TABLE] == [5.45, 5.85, 7.22, 8.28]
    assert all(row.mean_s < row.p95_s for row in TABLE)


def test_the_published_table_is_told_as_its_page_has_it() -> None:
    level = {
        "p95": {"value": 8.05, "low": 7.4, "high": 13.32},
        "rpm": 50.7,
        "mean_s": 4.59,
        "copies_most": 2,
        "requests": 75,
        "errors": {"timeout": 3},
        "little": -0.012,
        "ttft_p50_s": 1.5,
        "client_cpu_share": 0.01,
        "void": None,
    }
    few = {**level, "users": 32, "p95": {"value": 9, "low": None, "high": None}, "void": "nothing was answered"}
    few["requests"] = 0
    found = {"levels": {"4 users": {**level, "users": 4}, "32 users": few}, "notes": {"cold starts": "1"}}

    lines = table.markdown(table.on_cpu(2), found).splitlines()

    assert lines[2] == "| 4 | 7.96, 41, 5.85 | 8.05, 50.7, 4.59, 2 | 75 | 1.24 |"
    assert lines[3].startswith("| 32 | 10.44, 232, 8.28 | – | 0 |")
    assert "6 requests failed" in lines[5]
    assert "at most 1.2 %" in lines[5]
    assert "7.40–13.32, too few to say s" in lines[5]
    assert lines[6] == "**Void: nothing was answered.**"


def test_both_load_generators_are_told_beside_each_other() -> None:
    measures = {"mean_s": 1.5, "p50_s": 1.4, "p90_s": 2.0, "rpm": 200.0}
    result = {"engine": "llama.cpp", "users": 4, "ours": measures, "autocannon": measures}

    lines = crosscheck.markdown([{**result, "ratio": dict.fromkeys(measures, 1.0)}], 10).splitlines()

    assert lines[2] == "| the sample on llama.cpp, 4 users | mean | 1.500 s | 1.500 s | 1.000 |"
    assert lines[-1] == "|  | requests/min | 200.0 | 200.0 | 1.000 |"


def test_a_plot_of_nothing_and_of_names_with_signs_is_still_a_plot(tmp_path: Path) -> None:
    for lines in ([], [("<a> & b", [(0.0, 0.0)])], [("x", [(0.0, 1.0), (9.0, 5.0)])]):
        plot = Plot("t & <t>", "x", "y", lines, is_stepped=True)
        assert "<a>" not in svg(plot)
        assert ("<circle" in svg(plot)) == (lines != [] and len(lines[0][1]) == 1)  # one point is no line
        png(plot, tmp_path / "plot.png")


async def test_times_of_simulated_copies_are_told_at_the_calibration_s_pace_and_real_ones_are_not_stretched(
    served: Callable[[Handler], Awaitable[str]],
) -> None:
    async def simulated(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        usage = {"prompt_tokens": 1, "completion_tokens": 1}
        answer = {"choices": [{"text": "x"}], "usage": usage}
        return web.json_response(answer, headers={"x-outcrop-engine": "simulated"})

    endpoint = OpenAI(await served(simulated), "m", "key", stream=False)
    run = await Driver(endpoint, SHORT).run(Shape(users=2, requests=20, warm_s=0))
    told = run.stretched(10)

    assert run.engine == "simulated"
    assert summary(told).p50.value == pytest.approx(10 * summary(run).p50.value)
    assert summary(told).rpm == pytest.approx(summary(run).rpm / 10, rel=0.01)
    assert summary(told).slip_p99_s == pytest.approx(summary(run).slip_p99_s)
    assert summary(told).client_cpu_share == pytest.approx(summary(run).client_cpu_share)
    assert summary(told).little == pytest.approx(summary(run).little or 0)
    run.engine = ""
    with pytest.raises(BadSetting, match="real engine's"):
        run.stretched(10)
    assert run.stretched(1).records == run.records


def test_the_other_load_generator_is_read_in_our_units_and_its_failures_end_the_comparison() -> None:
    told = {
        "latency": {"average": 1500, "p50": 1400, "p90": 2000},
        "duration": 30,
        "errors": 0,
        "timeouts": 0,
        "non2xx": 0,
        "2xx": 100,
    }

    assert crosscheck.read(told) == {"mean_s": 1.5, "p50_s": 1.4, "p90_s": 2.0, "rpm": 200}
    with pytest.raises(SystemExit, match="2 requests"):
        crosscheck.read({**told, "non2xx": 2})
