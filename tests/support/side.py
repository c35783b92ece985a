"""Another service as a side of a migration: Bedrock, SageMaker and OpenAI over HTTP, answering what a test tells it to.

It runs on a thread with an event loop of its own, so that tests with blocking clients can have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import web

from outcrop.awswire.eventstream import encode_chunk, encode_exception, encode_message

_PART = ((":event-type", "PayloadPart"), (":content-type", "application/octet-stream"), (":message-type", "event"))


class OtherService:
    """*text* is every answer. *refusal*: (status, errortype) of every answer instead. *breaks*: streams end in an error."""

    def __init__(self) -> None:
        self.text = "hello"
        self.refusal: tuple[int, str] | None = None
        self.delay_s = 0.0
        self.go = threading.Event()  # cleared, it answers nobody
        self.go.set()
        self.breaks = False
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""
        self.responses = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        self.requests.append((request.raw_path, {k.lower(): v for k, v in request.headers.items()}, body))
        await asyncio.sleep(self.delay_s)
        while not self.go.is_set():
            await asyncio.sleep(0.02)
        if self.refusal is not None:
            status, name = self.refusal
            return web.json_response({"message": "told to"}, status=status, headers={"x-amzn-errortype": name})
        if request.path.endswith("/async-invocations"):
            places = {f"x-amzn-sagemaker-{kind}location": f"s3://far/{kind}" for kind in ("output", "failure")}
            return web.json_response({"InferenceId": "far"}, status=202, headers=places)
        if request.path.endswith("/count-tokens"):
            return web.json_response({"inputTokens": 77})
        if request.path.endswith("/responses"):
            return self._response(body)
        is_sagemaker = request.path.startswith("/endpoints/")
        if request.path.endswith("-stream") or body.get("stream"):
            return await self._stream(request, is_sagemaker=is_sagemaker)
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        if "messages" in body:
            message = {"role": "assistant", "content": self.text}
            return web.json_response({"choices": [{"index": 0, "message": message}], "usage": usage})
        return web.json_response({"generation": self.text, "prompt_token_count": 3, "generation_token_count": 1})

    def _response(self, body: Any) -> web.Response:
        self.responses += 1
        text = {"type": "output_text", "text": self.text, "annotations": []}
        message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
        told = {"id": f"resp_far{self.responses}", "object": "response", "status": "completed", "output": [message]}
        told |= {"created_at": 1, "model": "there", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        if not body.get("stream"):
            return web.json_response(told)
        events = [
            {"type": "response.created", "response": {**told, "output": []}, "sequence_number": 0},
            {"type": "response.output_text.delta", "delta": self.text, "item_id": "msg_1", "sequence_number": 1},
            {"type": "response.completed", "response": told, "sequence_number": 2},
        ]
        lines = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=lines, content_type="text/event-stream")

    async def _stream(self, request: web.Request, *, is_sagemaker: bool) -> web.StreamResponse:
        is_openai = "completions" in request.path
        kind = "text/event-stream" if is_openai else "application/vnd.amazon.eventstream"
        response = web.StreamResponse(headers={"content-type": kind})
        await response.prepare(request)
        for number, word in enumerate(self.text.split()):
            delta = {"choices": [{"index": 0, "delta": {"content": word}}]}
            piece = json.dumps(delta if is_openai or is_sagemaker else {"generation": word}).encode()
            event = b"data: " + piece + b"\n\n"
            framed = event if is_openai else encode_message(_PART, event) if is_sagemaker else encode_chunk(piece)
            await response.write(framed)
            if self.breaks and number == 0:
                await asyncio.sleep(0.2)  # a part of its own, so that the first one is with the caller
                await response.write(encode_exception("modelStreamErrorException", "told to"))
                return response
        if is_openai:
            await response.write(b"data: [DONE]\n\n")
        return response


@contextlib.contextmanager
def other_service() -> Iterator[OtherService]:
    found, loop, is_up = OtherService(), asyncio.new_event_loop(), threading.Event()

    async def run() -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/{tail:.*}", found.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        found.url = f"http://{host}:{port}"
        is_up.set()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def cancelled(task: asyncio.Task[None]) -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    task = loop.create_task(run())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    assert is_up.wait(10)
    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(cancelled(task), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def aws_profiles(folder: Path, **profiles: tuple[str, str]) -> dict[str, str]:
    """A credentials file of *profiles* (access key, secret); the variables that name it."""
    path = folder / "aws-credentials"
    lines = [
        f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        for name, (key, secret) in profiles.items()
    ]
    path.write_text("\n".join(lines))
    return {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": str(folder / "none")}
