"""A target for proxies and calls: Bedrock, SageMaker and OpenAI over HTTP, answering what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from outcrop.awswire.eventstream import encode_chunk, encode_exception


class Target:
    """Echoes: the text of an answer is the prompt, or the last message, in upper case.

    *refusals*: answers given first, as (status, headers, body). *delay_s* before every answer.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        self.delay_s = 0.0
        self.pieces = 3
        self.piece_s = 0.0
        self.breaks_after: int | None = None
        self.left_early = 0
        self.url = ""

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.raw_path, {k.lower(): v for k, v in request.headers.items()}, body))
        if self.refusals:
            status, headers, said = self.refusals.pop(0)
            return web.Response(status=status, headers=headers, body=said)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.left_early += 1
            raise
        asked = json.loads(body)
        text = _asked_text(asked).upper()
        if request.path.endswith("/invoke-with-response-stream"):
            return await self._stream(request, text)
        if request.path.endswith("/converse"):
            content = [{"text": text}]
            return web.json_response({"output": {"message": {"role": "assistant", "content": content}}})
        if "messages" in asked:
            return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})
        return web.json_response({"generation": text, "stop_reason": "stop"})

    async def _stream(self, request: web.Request, text: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "application/vnd.amazon.eventstream"})
        await response.prepare(request)
        try:
            for number in range(self.pieces):
                if number == self.breaks_after:
                    await response.write(encode_exception("modelStreamErrorException", "the engine died"))
                    break
                piece = {"generation": f"{text}{number}"}
                await response.write(encode_chunk(json.dumps(piece).encode()))
                await asyncio.sleep(self.piece_s)
        except (ConnectionError, asyncio.CancelledError):
            self.left_early += 1
            raise
        return response


def _asked_text(asked: dict[str, Any]) -> str:
    if "messages" in asked:
        content = asked["messages"][-1]["content"]
        return content if isinstance(content, str) else content[0]["text"]
    return str(asked.get("prompt", ""))


@contextlib.asynccontextmanager
async def target() -> AsyncIterator[Target]:
    found = Target()
    app = web.Application(client_max_size=64 << 20)
    for path in ("/model/{tail:.*}", "/endpoints/{tail:.*}", "/v1/chat/completions"):
        app.router.add_post(path, found._answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        await runner.cleanup()
