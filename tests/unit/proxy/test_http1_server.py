"""The proxy's HTTP/1.1: what clients send in pieces, ahead, too large, half or not at all."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator

import pytest

from outcrop.proxy import http1_server
from outcrop.proxy.http1_server import Exchange, Server, listening

HEAD = b"POST /x HTTP/1.1\r\nHost: h\r\n"


class Callers:
    """A server that keeps what it heard; ``/x`` is answered with its body, other paths not at all."""

    def __init__(self) -> None:
        self.heard: list[Exchange] = []
        self.gone = 0
        self.server = Server(self._heard, most_body_bytes=100_000, refused=self._refused)
        self.address = ("", 0)

    def _refused(self, exchange: Exchange) -> tuple[int, str] | None:
        return (401, "no") if exchange.path == "/secret" else None

    def _heard(self, exchange: Exchange) -> None:
        self.heard.append(exchange)
        exchange.on_gone = self._gone
        if exchange.refusal is not None:
            exchange.refuse(*exchange.refusal)
        elif exchange.path == "/x":
            exchange.answer(200, [("content-type", "text/plain"), ("x-two", "a\r\nb")], exchange.body)

    def _gone(self) -> None:
        self.gone += 1

    async def say(self, *pieces: bytes, until: bytes = b"") -> bytes:
        """What comes back until the connection ends or *until* was read."""
        reader, writer = await asyncio.open_connection(*self.address)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(10):
                return await (reader.readuntil(until) if until else reader.read())
        finally:
            writer.close()


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    found = Callers()
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        found.address = sock.getsockname()[:2]
        async with listening(found.server, sock):
            yield found


async def test_a_request_in_pieces_is_one_and_header_values_stay_on_their_line(callers: Callers) -> None:
    said = await callers.say(
        HEAD[:9], HEAD[9:] + b"A: 1\r\na: 2\r\nContent-Length: 5\r\n\r\nab", b"cde", until=b"\r\n\r\nabcde"
    )

    assert said.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-two: a  b\r\ncontent-length: 5\r\n\r\n")
    assert callers.heard[0].headers["a"] == "1,2"


async def test_a_chunked_body_is_put_together(callers: Callers) -> None:
    body = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    assert await callers.say(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body, until=b"\r\n\r\nabcde")


async def test_requests_sent_ahead_are_answered_in_their_order(callers: Callers) -> None:
    ahead = b"".join(HEAD + b"Content-Length: 2\r\n\r\n%02d" % number for number in range(50))
    last = HEAD + b"Connection: close\r\nContent-Length: 3\r\n\r\nend"

    said = await callers.say(ahead + last)

    bodies = [part.partition(b"\r\n\r\n")[2] for part in said.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [*(b"%02d" % number for number in range(50)), b"end"]
    assert b"connection: close" in said


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n30d40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n",
    ],
)
async def test_a_body_over_the_limit_is_read_and_dropped_and_its_sender_told(callers: Callers, sent: bytes) -> None:
    said = await callers.say(sent, HEAD + b"Content-Length: 1\r\n\r\nz", until=b"\r\n\r\nz")

    assert said.startswith(b"HTTP/1.1 413 ")
    assert callers.heard[0].body == b""


async def test_a_request_that_its_head_condemns_has_no_body(callers: Callers) -> None:
    sent = b"POST /secret HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"

    assert (await callers.say(sent)).startswith(b"HTTP/1.1 401 ")
    assert callers.heard[0].body == b""


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no http\r\n\r\n", b"400"),
        (HEAD + b"A: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02", b"400"),
    ],
)
async def test_what_is_no_request_is_said_to_be_none(callers: Callers, sent: bytes, status: bytes) -> None:
    assert (await callers.say(sent)).startswith(b"HTTP/1.1 " + status)
    assert callers.heard == []


async def test_a_client_that_asks_first_is_told_to_go_on(callers: Callers) -> None:
    said = await callers.say(HEAD + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n", b"z", until=b"\r\n\r\nz")

    assert said.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(("path", "length", "status"), [(b"/x", 100_001, b"413"), (b"/secret", 5, b"401")])
async def test_a_client_that_asks_first_hears_a_refusal_and_need_not_send(
    callers: Callers, path: bytes, length: int, status: bytes
) -> None:
    said = await callers.say(
        b"POST %b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (path, length)
    )

    assert said.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in said
    assert len(callers.heard) == 1


async def test_of_large_bodies_sent_ahead_few_are_kept(callers: Callers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_server, "_MOST_WAITING_BYTES", 1000)
    large = HEAD + b"Content-Length: 90000\r\n\r\n" + b"l" * 90_000
    reader, writer = await asyncio.open_connection(*callers.address)
    writer.write(b"POST /held HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
    sender = asyncio.create_task(_sent(writer, large * 200))
    while not callers.heard:
        await asyncio.sleep(0.01)
    (connection,) = callers.server.connections
    await asyncio.wait({sender}, timeout=0.5)
    assert not sender.done()  # the rest is not read
    assert len(connection._waiting) < 16

    callers.heard[0].answer(200, (), b"")
    async with asyncio.timeout(20):
        for _ in range(201):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.findall(rb"content-length: (\d+)", head)[0])
            await reader.readexactly(length)
        await sender
    writer.close()


async def _sent(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_a_client_that_offers_http2_is_answered_over_http1(callers: Callers) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"

    assert await callers.say(HEAD + offer + b"Content-Length: 1\r\n\r\nz", until=b"\r\n\r\nz")


async def test_an_old_client_gets_parts_without_chunks(callers: Callers) -> None:
    asking = asyncio.create_task(callers.say(b"GET /stream HTTP/1.0\r\n\r\n"))
    async with asyncio.timeout(5):
        while not callers.heard:
            await asyncio.sleep(0.01)
    exchange = callers.heard[0]
    exchange.begin(200, ())
    exchange.part(b"ab")
    exchange.part(b"cd")
    exchange.end()

    assert (await asking).endswith(b"\r\n\r\nabcd")


async def test_a_stream_that_is_broken_off_has_no_last_chunk(callers: Callers) -> None:
    asking = asyncio.create_task(callers.say(b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"))
    async with asyncio.timeout(5):
        while not callers.heard:
            await asyncio.sleep(0.01)
    callers.heard[0].begin(200, ())
    callers.heard[0].part(b"ab")
    callers.heard[0].break_off()

    assert (await asking).endswith(b"2\r\nab\r\n")


async def test_a_caller_that_leaves_is_noticed_once(callers: Callers) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await callers.say(b"GET /never HTTP/1.1\r\nHost: h\r\n\r\n")
    async with asyncio.timeout(5):
        while not callers.gone:
            await asyncio.sleep(0.01)

    callers.heard[0].answer(200, (), b"too late")
    assert callers.gone == 1
    assert callers.server.connections == set()
