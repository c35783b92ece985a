"""The Lambda handler under Lambda's own runtime client, against a stand-in of the Runtime API."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web
from tests.support.proxy import ARN
from tests.support.target import Target

SCRIPT = """
import time

def preprocess(request, ctx):
    body = request.json()
    if "slow" in body:
        time.sleep(30)
    return {"prompt": body["q"]}

def postprocess(response, ctx):
    return {"text": response.json()["generation"], "header": ctx.request.headers.get("x-who", "")}
"""


class Runtime:
    """Hands out events and collects what becomes of them; a timeout in s goes with each."""

    def __init__(self, events: list[tuple[Any, float]]) -> None:
        self._events = list(enumerate(events))
        self.answers: dict[int, Any] = {}
        self.errors: dict[int, Any] = {}
        self.is_over = asyncio.Event()

    async def next(self, request: web.Request) -> web.Response:
        if not self._events:
            self.is_over.set()
            await asyncio.sleep(60)
        number, (event, left_s) = self._events.pop(0)
        headers = {
            "Lambda-Runtime-Aws-Request-Id": str(number),
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + left_s) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:us-east-1:000000000000:function:f",
        }
        # Without a charset: the runtime client hands on anything else as text.
        return web.Response(body=json.dumps(event).encode(), headers={"Content-Type": "application/json", **headers})

    async def response(self, request: web.Request) -> web.Response:
        self.answers[int(request.match_info["id"])] = await request.json()
        return web.Response(status=202)

    async def error(self, request: web.Request) -> web.Response:
        self.errors[int(request.match_info.get("id", "-1"))] = await request.json()
        if "id" not in request.match_info:
            self.is_over.set()
        return web.Response(status=202)


async def run(
    folder: Path,
    url: str,
    *events: Any,
    left_s: float = 30,
    handler: str = "outcrop.proxy.lambda_handler.handler",
    **more: str,
) -> tuple[Runtime, str]:
    """What the function answers to *events*, in the order in which they came, and its log."""
    runtime = Runtime([event if isinstance(event, tuple) else (event, left_s) for event in events])
    app = web.Application()
    base = "/2018-06-01/runtime"
    app.router.add_get(f"{base}/invocation/next", runtime.next)
    app.router.add_post(f"{base}/invocation/{{id}}/response", runtime.response)
    app.router.add_post(f"{base}/invocation/{{id}}/error", runtime.error)
    app.router.add_post(f"{base}/init/error", runtime.error)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    settings = {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}",
        "LAMBDA_TASK_ROOT": str(folder),
        "OUTCROP_PROXY_TARGET": ARN,
        "OUTCROP_PROXY_ENDPOINT_URL": url,
        "AWS_REGION": "us-east-1",
    }
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "awslambdaric", handler],
        env={**os.environ, **settings, **more},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            await runtime.is_over.wait()
    finally:
        process.kill()
        log, _ = await process.communicate()
        await runner.cleanup()
    return runtime, log.decode()


async def test_events_of_every_source_are_answered_in_its_shape(tmp_path: Path, upstream: Target) -> None:
    (tmp_path / "model.py").write_text(SCRIPT)
    body = json.dumps({"q": "hi"})
    headers = {"Content-Type": "application/json", "X-Who": "me"}
    v1 = {"httpMethod": "POST", "path": "/", "headers": headers, "requestContext": {"stage": "s"}, "body": body}
    v2 = {
        "version": "2.0",
        "rawPath": "/",
        "headers": {name.lower(): value for name, value in headers.items()},
        "requestContext": {"http": {"method": "POST"}},
        "body": base64.b64encode(body.encode()).decode(),
        "isBase64Encoded": True,
    }
    many = {name: [value] for name, value in headers.items()}
    elb = {"httpMethod": "POST", "multiValueHeaders": many, "requestContext": {"elb": {}}, "body": body}

    runtime, log = await run(tmp_path, upstream.url, {"source": "aws.events"}, v1, v2, elb, {"q": "direct"})

    assert runtime.errors == {}, log
    assert runtime.answers[0] == {"status": "warm"}
    for number in (1, 2, 3):
        answer = runtime.answers[number]
        assert answer["statusCode"] == 200
        assert json.loads(answer["body"]) == {"text": "HI", "header": "me"}
        assert answer["headers"]["content-type"] == "application/json"
    assert runtime.answers[3]["statusDescription"] == "200 OK"
    assert runtime.answers[4] == {"text": "DIRECT", "header": ""}
    assert log.count("outcrop: cold start: imports") == 1
    assert len(upstream.requests) == 4  # the scheduled event asked nobody


async def test_failures_are_answers_of_http_and_errors_of_direct_invocations(tmp_path: Path, upstream: Target) -> None:
    (tmp_path / "model.py").write_text(SCRIPT)
    v2 = {"version": "2.0", "headers": {}, "requestContext": {"http": {"method": "POST"}}, "body": "{}"}

    runtime, log = await run(tmp_path, upstream.url, v2, {"other": 1}, ({"q": "x", "slow": 1}, 2.0), {"q": "after"})

    assert runtime.answers[0]["statusCode"] == 500
    assert "preprocess (model.py:8): KeyError" in json.loads(runtime.answers[0]["body"])["message"]
    assert runtime.errors[1]["errorType"] == "FunctionFailed"
    assert "did not finish within" in runtime.errors[2]["errorMessage"]
    assert runtime.answers[3]["text"] == "AFTER", log


async def test_a_function_whose_script_does_not_load_says_so(tmp_path: Path, upstream: Target) -> None:
    (tmp_path / "model.py").write_text("import nothing_of_that_name\n")

    runtime, _ = await run(tmp_path, upstream.url, {"q": "x"})

    assert "does not load: import (model.py:1)" in runtime.errors[0]["errorMessage"]
