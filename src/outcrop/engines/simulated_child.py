"""The process of one simulated copy: ``python -m outcrop.engines.simulated_child``.

It serves the OpenAI API over HTTP as an engine does, takes the time that a calibration says, and answers in made-up
words. Its protocol with the server is that of the other copies: one line of JSON on standard input (``ChildConfig``),
one back, and the end of standard input ends it. Written onto asyncio's protocols, so that three copies with a hundred
streams leave the machine to what is measured in front of them.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import random
import re
import signal
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import msgspec

from outcrop.engines import copy_socket
from outcrop.engines.simulated_timing import Batch, Calibration, Sequence

CHARS_PER_TOKEN = 4  # of text; a prompt of token ids is counted exactly
_WORDS = (
    *("light", "stone", "river", "over", "under", "green", "small", "often", "every", "paper", "morning", "quiet"),
    *("table", "window", "about", "between", "seven", "little", "water", "round", "again", "after", "before"),
    *("slowly", "almost", "never", "always", "second", "third", "another", "open"),
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BEARER = re.compile(rb"\r\nauthorization: *bearer +(\S+)", re.IGNORECASE)
_MOST_HEAD_BYTES = 65_536


class ChildConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The line on standard input. *speedup*: how many times faster than the calibration everything runs."""

    calibration: Calibration
    secret: str
    context_tokens: int
    seed: int
    speedup: float


@dataclass(slots=True)
class Answer:
    """One request as it is generated. *pieces*: its tokens as text, known from the start."""

    is_chat: bool
    is_streamed: bool
    prompt_tokens: int
    pieces: list[str]
    finish_reason: str
    logprobs: list[float] | None
    wants_usage: bool
    transport: asyncio.Transport
    ended: Callable[[], None]
    said: int = 0
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = "chat.completion" if self.is_chat else "text_completion"


class Refused(Exception):
    """A request that cannot be answered: HTTP status and OpenAI error object."""

    def __init__(self, status: int, **error: Any) -> None:
        super().__init__(error["message"])
        self.status = status
        self.error = {"code": status, "type": "invalid_request_error", **error}


class Copy:
    """One simulated engine: the batch, its clock, and the answers in it."""

    def __init__(self, config: ChildConfig) -> None:
        self.config = config
        self.batch = Batch(config.calibration)
        self.is_started = False
        self._answers: dict[Hashable, Answer] = {}
        self._number = 0
        self._work = asyncio.Event()
        self.generated_tokens = 0

    async def run(self) -> None:
        loop, speedup = asyncio.get_running_loop(), self.config.speedup
        await asyncio.sleep(self.config.calibration.start_s / speedup)
        self.is_started = True
        due = loop.time()
        while True:
            step = self.batch.step()
            if step is None:
                self._work.clear()
                await self._work.wait()
                due = loop.time()
                continue
            # Due times add up, so that a late wake-up makes one token late and not the whole run slow.
            due += step.seconds / speedup
            await asyncio.sleep(max(0.0, due - loop.time()))
            ended = set(step.ended)
            for key, count in step.tokens.items():
                if (answer := self._answers.get(key)) is not None:
                    self.generated_tokens += count
                    self._say(answer, count, is_last=key in ended)
            for key in ended:
                self._answers.pop(key, None)

    def submit(self, answer: Answer) -> int:
        """Queue *answer*; the key to cancel it by."""
        self._number += 1
        self._answers[self._number] = answer
        self.batch.add(Sequence(self._number, answer.prompt_tokens, len(answer.pieces)))
        self._work.set()
        return self._number

    def cancel(self, key: int) -> None:
        self._answers.pop(key, None)
        self.batch.cancel(key)

    def _say(self, answer: Answer, count: int, *, is_last: bool) -> None:
        pieces = answer.pieces[answer.said : answer.said + count]
        if answer.is_streamed:
            answer.transport.write(b"".join(stream_events(answer, pieces, is_last=is_last)))
        elif is_last:
            answer.transport.write(_response(200, whole(answer)))
        answer.said += len(pieces)
        if is_last:
            answer.ended()

    def metrics(self) -> bytes:
        batch, kv = self.batch, self.config.calibration.kv_tokens
        values = {
            "requests_running": batch.running,
            "requests_waiting": batch.waiting,
            "kv_cache_usage": min(1.0, batch.reserved_tokens / kv),
            "generated_tokens_total": self.generated_tokens,
        }
        return "".join(f"outcrop_simulated_{name} {value}\n" for name, value in values.items()).encode()


def read_request(config: ChildConfig, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What *body* asks for: everything of an ``Answer`` but its connection. Raises Refused."""
    is_chat = path.endswith("/chat/completions")
    prompt = body.get("messages") if is_chat else body.get("prompt")
    if not prompt:
        raise Refused(400, message=f"{'messages' if is_chat else 'prompt'} is required")
    prompt_tokens = count_tokens(prompt)
    room = config.context_tokens - prompt_tokens
    if room < 1:
        raise Refused(
            400,
            message="the request exceeds the available context size",
            type="exceed_context_size_error",
            n_prompt_tokens=prompt_tokens,
            n_ctx=config.context_tokens,
        )
    asked = body.get("max_completion_tokens") or body.get("max_tokens")
    limit = min(asked or room, room)
    rng = random.Random(f"{config.seed} {body.get('seed')} {crc32(msgspec.json.encode(prompt))}")  # noqa: S311
    natural = natural_length(rng, config.calibration)
    ends_itself = natural <= limit and not body.get("ignore_eos")
    pieces = [_piece(rng, index) for index in range(natural if ends_itself else limit)]
    stops = body.get("stop") or []
    pieces, is_stopped = cut(pieces, [stops] if isinstance(stops, str) else stops)
    wants_logprobs = body.get("logprobs") not in (None, False)
    options = body.get("stream_options") or {}
    return {
        "is_chat": is_chat,
        "is_streamed": bool(body.get("stream")),
        "prompt_tokens": prompt_tokens,
        "pieces": pieces,
        "finish_reason": "stop" if ends_itself or is_stopped else "length",
        "logprobs": [-rng.expovariate(2.0) for _ in pieces] if wants_logprobs else None,
        "wants_usage": bool(options.get("include_usage")),
    }


def count_tokens(prompt: Any) -> int:
    """Tokens of a prompt: ids are counted, text is four characters a token, and a message costs four more."""
    if isinstance(prompt, str):
        return max(1, math.ceil(len(prompt) / CHARS_PER_TOKEN))
    if prompt and isinstance(prompt[0], int):
        return len(prompt)
    return sum(4 + count_tokens(_text(message.get("content")) or " ") for message in prompt)


def natural_length(rng: random.Random, calibration: Calibration) -> int:
    """Tokens of an answer that ends by itself: log-normal, as measured lengths are."""
    spread = math.sqrt(math.log(1 + calibration.answer_cv**2))
    return max(1, round(rng.lognormvariate(math.log(calibration.answer_tokens) - spread**2 / 2, spread)))


def cut(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """*pieces* before the first stop sequence, and whether there was one; the last token may lose its end."""
    text = "".join(pieces)
    found = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    if not found:
        return pieces, False
    kept: list[str] = []
    left = min(found)
    for piece in pieces:
        kept.append(piece[:left])  # the token that began the stop sequence was generated too
        left -= len(kept[-1])
        if left <= 0:
            break
    return kept, True


def stream_events(answer: Answer, pieces: list[str], *, is_last: bool) -> Iterator[bytes]:
    """Server-sent events of the next *pieces*, each in a chunk of its own."""
    kind = "chat.completion.chunk" if answer.is_chat else answer.kind
    for number, piece in enumerate(pieces):
        at = answer.said + number
        ends = is_last and number == len(pieces) - 1
        choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish_reason if ends else None}
        choice |= {"delta": {"content": piece}} if answer.is_chat else {"text": piece}
        if answer.logprobs is not None:
            choice["logprobs"] = {"content": [_logprob(piece, answer.logprobs[at])]}
        yield _chunk({"object": kind, "choices": [choice]})
    if is_last:
        if answer.wants_usage:
            yield _chunk({"object": kind, "choices": [], "usage": _usage(answer)})
        yield b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def whole(answer: Answer) -> dict[str, Any]:
    text = "".join(answer.pieces)
    choice: dict[str, Any] = {"index": 0, "finish_reason": answer.finish_reason}
    choice |= {"message": {"role": "assistant", "content": text}} if answer.is_chat else {"text": text}
    if answer.logprobs is not None:
        pairs = zip(answer.pieces, answer.logprobs, strict=True)
        choice["logprobs"] = {"content": [_logprob(piece, value) for piece, value in pairs]}
    return {"object": answer.kind, "choices": [choice], "usage": _usage(answer)}


class Connection(asyncio.Protocol):
    """One client; requests are answered one after the other. Its end cancels what it waits for."""

    def __init__(self, copy: Copy) -> None:
        self._copy = copy
        self._buffer = bytearray()
        self._key: int | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._key is not None:
            self._copy.cancel(self._key)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MOST_HEAD_BYTES:
                self._close()
            return
        head = bytes(self._buffer[: end + 2])
        length = _LENGTH.search(head)
        whole_bytes = end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < whole_bytes:
            return
        body = bytes(self._buffer[end + 4 : whole_bytes])
        del self._buffer[:whole_bytes]
        self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        method, path, _ = head.split(b" ", 2)
        try:
            self._route(head, method.decode(), path.decode("latin-1"), body)
        except Refused as exc:
            self._transport.write(_response(exc.status, {"error": exc.error}))

    def _route(self, head: bytes, method: str, path: str, body: bytes) -> None:
        assert self._transport is not None
        copy = self._copy
        key = _BEARER.search(head)
        if key is None or not hmac.compare_digest(key[1], copy.config.secret.encode()):
            raise Refused(401, message="this copy is reached through its gateway only")
        if method == "GET" and path == "/health":
            self._transport.write(_response(200 if copy.is_started else 503, {}))
        elif method == "GET" and path == "/metrics":
            self._transport.write(_response(200, copy.metrics(), "text/plain; version=0.0.4"))
        elif method == "GET" and path == "/v1/models":
            self._transport.write(_response(200, {"object": "list", "data": [{"id": "simulated", "object": "model"}]}))
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/completions"):
            self._generate(path, body)
        else:
            raise Refused(404, message=f"there is nothing at {method} {path}")

    def _generate(self, path: str, body: bytes) -> None:
        assert self._transport is not None
        if not self._copy.is_started:
            raise Refused(503, message="the copy is starting")
        try:
            asked = read_request(self._copy.config, path, msgspec.json.decode(body, type=dict[str, Any]))
        except (msgspec.MsgspecError, AttributeError, TypeError) as exc:
            raise Refused(400, message=f"the body is no request: {exc}") from exc
        answer = Answer(**asked, transport=self._transport, ended=self._ended)
        if answer.is_streamed:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nx-outcrop-engine: simulated\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
        self._key = self._copy.submit(answer)

    def _ended(self) -> None:
        self._key = None

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _piece(rng: random.Random, index: int) -> str:
    return ("" if index == 0 else " ") + rng.choice(_WORDS)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.prompt_tokens, len(answer.pieces)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _logprob(piece: str, value: float) -> dict[str, Any]:
    return {"token": piece, "logprob": value, "bytes": list(piece.encode()), "top_logprobs": []}


def _chunk(event: dict[str, Any]) -> bytes:
    data = b"data: " + msgspec.json.encode({"id": "simulated", "model": "simulated", **event}) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _response(status: int, body: dict[str, Any] | bytes, content_type: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {content_type}\r\nx-outcrop-engine: simulated\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


async def _serve(config: ChildConfig, announce: Callable[[str], None], parent_gone: asyncio.Event) -> None:
    copy = Copy(config)
    loop = asyncio.get_running_loop()
    socket = copy_socket.path()
    server = await loop.create_unix_server(lambda: Connection(copy), socket, backlog=1024)
    announce(copy_socket.url(socket))
    loop.add_signal_handler(signal.SIGTERM, parent_gone.set)

    def heard() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            parent_gone.set()

    loop.add_reader(0, heard)
    running = asyncio.ensure_future(copy.run())
    running.add_done_callback(lambda _: parent_gone.set())
    await parent_gone.wait()
    server.close()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to handle
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return
        line += part
    config = msgspec.json.decode(line, type=ChildConfig)
    asyncio.run(_serve(config, lambda url: print(f'{{"url": "{url}"}}', flush=True), asyncio.Event()))  # noqa: T201


if __name__ == "__main__":
    main()
