"""A server of the OpenAI API that computes nothing, as the engine of the gateway benchmark.

``python -m outcrop.bench.upstream --port N --port-file F``. It answers whole chats and completions after a delay and
streams ``max_tokens`` pieces at an interval. ``GET /pace?delay_ms=D&token_ms=T`` sets both, so that one process
serves every level of a run. The text of a piece is the time at which it was written (CLOCK_MONOTONIC, ns, which all
processes of a machine share), so that a reader knows how long it travelled.

Written straight onto asyncio's protocols: it must be far faster than anything that is measured in front of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

from outcrop.awswire.eventstream import encode_chunk

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_AWS_HEAD = _STREAM_HEAD.replace(b"text/event-stream", b"application/vnd.amazon.eventstream")
ANSWER_CHARACTERS = 1200  # of a whole answer, about 1.5 kB with its envelope


def _chat(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    return _whole("chat.completion", choice)


def _completion(text: str) -> bytes:
    return _whole("text_completion", {"index": 0, "text": text, "finish_reason": "length"})


def _whole(kind: str, choice: dict[str, object]) -> bytes:
    usage = {"prompt_tokens": 250, "completion_tokens": 64, "total_tokens": 314}
    body = {"id": "bench", "object": kind, "created": 1, "model": "bench", "choices": [choice], "usage": usage}
    encoded = json.dumps(body).encode()
    return _HEAD % len(encoded) + encoded


CHAT = _chat("x" * ANSWER_CHARACTERS)
COMPLETION = _completion("x" * ANSWER_CHARACTERS)
_EVENT = (
    b'data: {"id":"bench","object":"%s","created":1,"model":"bench","choices":[{"index":0,%s,"finish_reason":%s}]}\n\n'
)
_USAGE = (
    b'data: {"id":"bench","object":"%s","created":1,"model":"bench","choices":[],'
    b'"usage":{"prompt_tokens":250,"completion_tokens":%d,"total_tokens":%d}}\n\ndata: [DONE]\n\n'
)


class Pace:
    """Shared by all connections; seconds."""

    delay_s = 0.0
    token_s = 0.0


class Connection(asyncio.Protocol):
    """One client; requests are answered one after the other."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._buffer = bytearray()
        self._need = 0
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) < self._need:
            return
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._buffer[:head_end])
        length = _LENGTH.search(head)
        self._need = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < self._need:
            return
        # The prompt is of no interest; what is asked for stands near the ends of the body.
        body = bytes(self._buffer[head_end + 4 : self._need])
        self._buffer.clear()
        self._need = 0
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        target = head.split(b" ", 2)[1].decode()
        if head.startswith(b"GET"):
            if target.startswith("/pace?"):
                asked = parse_qs(target.partition("?")[2])
                self._pace.delay_s = float(asked["delay_ms"][0]) / 1000
                self._pace.token_s = float(asked["token_ms"][0]) / 1000
            self._transport.write(_HEAD % 2 + b"{}")
            return
        is_chat = target.endswith("chat/completions")
        is_aws = target.endswith("/invoke-with-response-stream")
        if is_aws or b'"stream":true' in body or b'"stream": true' in body:
            found = _MAX_TOKENS.search(body)
            tokens = int(found[1]) if found else 16
            self._task = asyncio.ensure_future(self._aws_stream(tokens) if is_aws else self._stream(is_chat, tokens))
            return
        answer = CHAT if is_chat else COMPLETION
        if self._pace.delay_s:
            asyncio.get_running_loop().call_later(self._pace.delay_s, self._transport.write, answer)
        else:
            self._transport.write(answer)

    async def _stream(self, is_chat: bool, tokens: int) -> None:
        assert self._transport is not None
        write, pace = self._transport.write, self._pace
        kind = b"chat.completion.chunk" if is_chat else b"text_completion"
        piece = b'"delta":{"content":"%d "}' if is_chat else b'"text":"%d "'
        if pace.delay_s:
            await asyncio.sleep(pace.delay_s)
        write(_STREAM_HEAD)
        due = time.monotonic()
        for number in range(tokens):
            is_last = number == tokens - 1
            event = _EVENT % (kind, piece % time.monotonic_ns(), b'"length"' if is_last else b"null")
            write(b"%x\r\n%s\r\n" % (len(event), event))
            if pace.token_s:
                due += pace.token_s
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            else:
                await asyncio.sleep(0)  # one write per token, as engines do
        end = _USAGE % (kind, tokens, 250 + tokens)
        write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))

    async def _aws_stream(self, tokens: int) -> None:
        """The same pieces in the frames of InvokeModelWithResponseStream."""
        assert self._transport is not None
        write, pace = self._transport.write, self._pace
        if pace.delay_s:
            await asyncio.sleep(pace.delay_s)
        write(_AWS_HEAD)
        due = time.monotonic()
        for _ in range(tokens):
            frame = encode_chunk(b'{"generation":"%d "}' % time.monotonic_ns())
            write(b"%x\r\n%s\r\n" % (len(frame), frame))
            due += pace.token_s
            await asyncio.sleep(max(0.0, due - time.monotonic()) if pace.token_s else 0)
        write(b"0\r\n\r\n")


async def serve(port: int, listening: Callable[[int], object]) -> None:
    pace = Pace()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(pace), "127.0.0.1", port, backlog=1024)
    listening(server.sockets[0].getsockname()[1])
    async with server:
        await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="An OpenAI server that computes nothing.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, help="where to write the port down")
    arguments = parser.parse_args()

    def listening(port: int) -> None:
        if arguments.port_file:
            arguments.port_file.write_text(str(port))

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.port, listening))


if __name__ == "__main__":
    main()
