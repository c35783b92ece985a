"""The container contract: pings, errors, limits, hangs, crashes, streams, drain."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest
from tests.support.proxy import ARN, proxied
from tests.support.target import Target

IDENTITY = """
    async def preprocess(request, ctx):
        return request
"""


async def test_a_ping_is_answered_once_the_script_is_loaded_and_never_asks_the_target(
    tmp_path: Path, upstream: Target
) -> None:
    async with proxied(tmp_path, IDENTITY, upstream.url) as proxy:
        assert await proxy.get("/ping") == (200, "")
        assert (await proxy.get("/other"))[0] == 404

    assert upstream.requests == []


async def test_a_call_to_the_target_carries_trace_deadline_and_one_id_over_its_attempts(
    tmp_path: Path, upstream: Target
) -> None:
    cold = (429, {"x-amz-retry-after": "50", "x-amzn-errortype": "ModelNotReadyException"}, b'{"message":"cold"}')
    upstream.refusals = [cold, (503, {"retry-after": "0"}, b"{}")]
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with proxied(tmp_path, IDENTITY, upstream.url) as proxy:
        status, _ = await proxy.post({"prompt": "x"}, traceparent=trace, tracestate="a=b")

    assert status == 200
    heads = [headers for _, headers, _ in upstream.requests]
    assert len(heads) == 3
    assert len({head["amz-sdk-invocation-id"] for head in heads}) == 1
    assert [head["amz-sdk-request"] for head in heads] == ["attempt=1", "attempt=2", "attempt=3"]
    assert {head["traceparent"].split("-")[1] for head in heads} == {"4bf92f3577b34da6a3ce929d0e0e4736"}
    assert len({head["traceparent"] for head in heads}) == 3
    assert {head["tracestate"] for head in heads} == {"a=b"}
    assert all(50 < float(head["x-outcrop-hold"]) <= 60 for head in heads)
    assert upstream.requests[0][0] == f"/model/{ARN.replace(':', '%3A').replace('/', '%2F')}/invoke"


async def test_a_target_that_stays_cold_past_the_deadline_is_answered_as_it_answered(
    tmp_path: Path, upstream: Target
) -> None:
    body = b'{"message":"no copy is ready"}'
    headers = {
        "x-amz-retry-after": "30000",
        "x-amzn-errortype": "ModelNotReadyException",
        "content-type": "application/json",
    }
    upstream.refusals = [(429, headers, body)]
    async with proxied(tmp_path, IDENTITY, upstream.url, timeout_s=5) as proxy:
        async with proxy.session.post(f"{proxy.url}/invocations", json={"prompt": "x"}) as response:
            assert response.status == 429
            assert await response.read() == body
            assert response.headers["x-amzn-errortype"] == "ModelNotReadyException"
            assert response.headers["x-outcrop-error-source"] == "target"

    assert len(upstream.requests) == 1


async def test_a_target_that_is_not_there_is_said_to_be_so(tmp_path: Path, upstream: Target) -> None:
    async with proxied(tmp_path, IDENTITY, "http://127.0.0.1:9", timeout_s=1) as proxy:
        status, answer = await proxy.post({"prompt": "x"})

    assert status == 503
    assert "http://127.0.0.1:9 does not answer" in answer["message"]


@pytest.mark.parametrize(
    ("handler", "status", "said"),
    [
        ("raise KeyError('code')", 500, "preprocess (model.py:4): KeyError"),
        ("raise ValueError('no code')", 400, "preprocess (model.py:4): ValueError: no code"),
        ("raise Refuse('too long', 413)", 413, "too long"),
        ("return 7", 400, "cannot be forwarded"),
    ],
)
async def test_what_a_handler_raises_is_answered_with_its_name_and_line(
    tmp_path: Path, upstream: Target, handler: str, status: int, said: str
) -> None:
    script = f"""
        from outcrop.proxy import Refuse
        def preprocess(request, ctx):
            {handler}
    """
    script = script.replace("\n        from", "from", 1)
    async with proxied(tmp_path, "        " + script, upstream.url) as proxy:
        found, answer = await proxy.post({"prompt": "x"})
        assert found == status
        assert said in answer["message"].replace("model.py:3", "model.py:4")
        assert "traceback" not in answer
        assert (await proxy.get("/ping"))[0] == 200


async def test_a_traceback_is_shown_where_the_settings_ask_for_it(tmp_path: Path, upstream: Target) -> None:
    script = "def preprocess(request, ctx):\n    return missing\n"
    async with proxied(tmp_path, script, upstream.url, tracebacks=True) as proxy:
        status, answer = await proxy.post({"prompt": "x"})

    assert status == 500
    assert answer["line"] == 2
    assert "NameError" in answer["traceback"]


async def test_a_body_over_the_limit_and_one_of_another_type_are_refused(tmp_path: Path, upstream: Target) -> None:
    script = "def output_fn(prediction, accept):\n    return prediction\n"
    async with proxied(tmp_path, script, upstream.url, max_payload_bytes=2000) as proxy:
        assert (await proxy.post("x" * 3000))[0] == 413
        assert (await proxy.post(b"x", **{"content-type": "image/png"}))[0] == 415
        assert (await proxy.post(b"{", **{"content-type": "application/json"}))[0] == 400


async def test_a_handler_that_hangs_is_cut_by_name_and_its_worker_replaced(tmp_path: Path, upstream: Target) -> None:
    script = """
        import time
        def predict(request, ctx):
            if request.json().get("hang"):
                time.sleep(600)
            return ctx.invoke({"prompt": "fine"})
    """
    async with proxied(tmp_path, script, upstream.url, timeout_s=1, hang_s=0.3) as proxy:
        first = proxy.pool.workers[0].pid
        status, answer = await proxy.post({"hang": True})
        assert (status, answer["message"]) == (500, "predict did not finish within 1 s.")
        async with asyncio.timeout(20):
            while not proxy.pool.is_ready or any(worker.pid == first for worker in proxy.pool.workers):
                await asyncio.sleep(0.05)
        assert (await proxy.post({}))[0] == 200
        assert 'reason="hang"} 1.0' in (await proxy.get("/metrics"))[1]


async def test_a_blocked_event_loop_is_killed_and_costs_other_callers_nothing(tmp_path: Path, upstream: Target) -> None:
    script = """
        import asyncio, time
        async def predict(request, ctx):
            if request.json().get("hang"):
                await asyncio.sleep(0.3)
                time.sleep(600)
            return await ctx.invoke({"prompt": "fine"})
    """
    async with proxied(tmp_path, script, upstream.url, timeout_s=2) as proxy:
        upstream.delay_s = 0.5
        hanging = asyncio.create_task(proxy.post({"hang": True}))
        await asyncio.sleep(0.2)
        innocent = asyncio.create_task(proxy.post({}))
        status, answer = await hanging
        assert status == 500
        assert "blocked its worker's event loop" in answer["message"]
        assert (await innocent)[0] in (200, 503)  # run again on the next worker while its own time lasts


async def test_a_worker_that_dies_is_replaced_and_its_caller_is_told(tmp_path: Path, upstream: Target) -> None:
    script = """
        import os
        def predict(request, ctx):
            os.kill(os.getpid(), 11)
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        status, answer = await proxy.post({})
        assert status == 500
        assert "SIGSEGV" in answer["message"]
        async with asyncio.timeout(20):
            while not proxy.pool.is_ready:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("line", "how"), [("os._exit(3)", "exit status 3"), ("os.abort()", "signal 6 (SIGABRT)")])
async def test_a_script_that_ends_its_worker_while_it_is_loaded_is_given_up(
    tmp_path: Path, upstream: Target, line: str, how: str
) -> None:
    async with proxied(tmp_path, f"import os\n{line}\n", upstream.url) as proxy:  # settles, and does not wait for ever
        status, said = await proxy.get("/ping")

        assert status == 503
        assert f"the worker process ends ({how}) while it loads the script" in said


async def test_a_worker_over_its_memory_limit_is_replaced(tmp_path: Path, upstream: Target) -> None:
    script = """
        kept = []
        def predict(request, ctx):
            kept.append(bytearray(200_000_000))
            return {"kept": len(kept)}
    """
    async with proxied(tmp_path, script, upstream.url, worker_memory_bytes=150_000_000) as proxy:
        first = proxy.pool.workers[0].pid
        assert (await proxy.post({}))[0] == 200
        async with asyncio.timeout(20):
            while not proxy.pool.is_ready or any(worker.pid == first for worker in proxy.pool.workers):
                await asyncio.sleep(0.05)


async def test_a_caller_that_leaves_ends_the_call_to_the_target(tmp_path: Path, upstream: Target) -> None:
    upstream.delay_s = 30
    async with proxied(tmp_path, IDENTITY, upstream.url) as proxy:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await proxy.post({"prompt": "x"})
        async with asyncio.timeout(10):
            while not upstream.left_early:
                await asyncio.sleep(0.02)


async def test_a_stream_is_sent_as_events_or_lines_and_may_be_changed_on_its_way(
    tmp_path: Path, upstream: Target
) -> None:
    async with proxied(tmp_path, IDENTITY, upstream.url) as proxy:
        status, text = await proxy.post({"prompt": "x", "stream": True})
        assert status == 200
        assert text == "".join(f'data: {{"generation": "X{n}"}}\n\n' for n in range(3)) + "data: [DONE]\n\n"
        _, text = await proxy.post({"prompt": "x"}, accept="application/jsonlines")
        assert [json.loads(line) for line in text.splitlines()] == [{"generation": f"X{n}"} for n in range(3)]
    assert all("stream" not in body for body in upstream.bodies())
    changing = """
        async def postprocess_stream(chunks, ctx):
            async for chunk in chunks:
                yield chunk["generation"].lower() + "|"
    """
    async with proxied(tmp_path, changing, upstream.url) as proxy:
        assert await proxy.post({"prompt": "x", "stream": True}) == (200, "x0|x1|x2|")


async def test_a_generator_of_a_plain_handler_is_sent_in_parts(tmp_path: Path, upstream: Target) -> None:
    script = """
        import json
        def input_fn(body, content_type):
            return json.loads(body)

        def output_fn(prediction, accept):
            for number in range(3):
                yield f"{number};"
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        assert await proxy.post({"inputs": "x"}, accept="text/plain") == (200, "0;1;2;")


async def test_a_stream_that_breaks_says_so_and_is_no_whole_answer(tmp_path: Path, upstream: Target) -> None:
    upstream.breaks_after = 1
    async with proxied(tmp_path, IDENTITY, upstream.url) as proxy:
        async with proxy.session.post(f"{proxy.url}/invocations", json={"prompt": "x", "stream": True}) as response:
            got = await response.content.readuntil(b"}}\n\n")
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert b"the engine died" in got
        assert (await proxy.get("/ping"))[0] == 200


async def test_a_reader_that_stops_holds_the_script_back(tmp_path: Path, upstream: Target) -> None:
    script = """
        made = 0
        async def predict(request, ctx):
            global made
            if request.json().get("ask"):
                return {"made": made}
            async def parts():
                global made
                while made < 3000:
                    made += 1
                    yield b"x" * 10_000
            return parts()
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        async with proxy.session.post(f"{proxy.url}/invocations", json={}) as response:
            await response.content.read(10)
            await asyncio.sleep(1)
            _, answer = await proxy.post({"ask": True})
            assert answer["made"] < 2500
            response.close()


async def test_sigterm_lets_running_invocations_end(tmp_path: Path, upstream: Target) -> None:
    upstream.delay_s = 1.5
    (tmp_path / "model.py").write_text("async def preprocess(request, ctx):\n    return request\n")
    port_holder = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = port_holder.sockets[0].getsockname()[1]
    port_holder.close()
    await port_holder.wait_closed()
    import sys

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "outcrop.cli.main",
        "proxy",
        "--model-dir",
        str(tmp_path),
        "--target",
        ARN,
        "--endpoint-url",
        upstream.url,
        "--region",
        "us-east-1",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        env={**os.environ, "OUTCROP_PROXY_WORKERS": "1"},
        stderr=asyncio.subprocess.PIPE,
    )
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(30):
            while True:
                try:
                    async with session.get(f"{url}/ping") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        running = asyncio.create_task(session.post(f"{url}/invocations", json={"prompt": "x"}))
        while not upstream.requests:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        response = await running
        assert response.status == 200
        assert (await response.json())["generation"] == "X"
    _, log = await asyncio.wait_for(process.communicate(), 15)
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.decode().splitlines() if line.startswith("{")]
    assert any(line["event"] == "invocation" and line["status"] == 200 and line["target_ms"] > 1000 for line in lines)


async def test_a_key_is_asked_for_where_one_is_set(tmp_path: Path, upstream: Target) -> None:
    async with proxied(tmp_path, IDENTITY, upstream.url, key="k") as proxy:
        assert (await proxy.post({"prompt": "x"}))[0] == 401
        assert (await proxy.get("/metrics"))[0] == 401
        assert (await proxy.post({"prompt": "x"}, authorization="Bearer k"))[0] == 200
        assert (await proxy.get("/ping"))[0] == 200
