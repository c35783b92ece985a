"""The client to engines against a server that writes exactly the bytes that a test wants."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from outcrop.engines import copy_socket
from outcrop.engines.http1 import Client, ProtocolBroken
from outcrop.launchers import sockets

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Listen = Callable[[Serve], Awaitable[str]]

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5;a=b\r\nworld\r\n0\r\nX: y\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world"


@pytest.fixture(params=["loopback", "unix"])
async def listen(request: pytest.FixtureRequest) -> AsyncIterator[Listen]:
    servers: list[asyncio.Server] = []
    folder = sockets.Sockets()

    async def start(serve: Serve) -> str:
        if request.param == "unix":
            path, _ = folder.fresh()
            servers.append(await asyncio.start_unix_server(serve, path))
            return copy_socket.url(path)
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    folder.close()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client(connect_timeout_s=5, read_timeout_s=5, keep_s=5)
    yield client
    await client.aclose()


async def get(client: Client, url: str, *, reuse: bool = True) -> bytes:
    answer = await client.request("GET", url, "/", bearer="secret", reuse=reuse)
    try:
        return await answer.read()
    finally:
        answer.close()


def writes(data: bytes, *, cut: int = 0) -> Serve:
    """A server that answers every request with *data*, in two writes when *cut* is given."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(data[:cut] if cut else data)
            await writer.drain()
            if cut:
                await asyncio.sleep(0.001)
                writer.write(data[cut:])

    return serve


@pytest.mark.parametrize("data", [CHUNKED, SIZED])
async def test_an_answer_is_the_same_wherever_it_is_cut(listen: Listen, client: Client, data: bytes) -> None:
    for cut in range(1, len(data)):
        url = await listen(writes(data, cut=cut))
        assert await get(client, url) == b"hello world", cut


async def test_a_request_carries_its_key_its_body_and_its_length(listen: Listen, client: Client) -> None:
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head + await reader.readexactly(4))
        writer.write(SIZED)

    url = await listen(serve)
    answer = await client.request("POST", url, "/v1/x", bearer="secret", body=b"body")

    assert answer.status == 200
    assert re.match(rb"POST /v1/x HTTP/1.1\r\nHost: (localhost|127\.0\.0\.1:\d+)\r\n", seen[0])
    assert b"\r\nAuthorization: Bearer secret\r\n" in seen[0]
    assert seen[0].endswith(b"\r\nContent-Length: 4\r\n\r\nbody")


async def test_connections_are_kept_unless_one_side_says_otherwise(listen: Listen, client: Client) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await writes(SIZED)(reader, writer)

    url = await listen(serve)
    for _ in range(3):
        await get(client, url)
    assert connections == 1
    await get(client, url, reuse=False)  # takes the kept one and ends it
    await get(client, url)
    assert connections == 2

    last_words = await listen(writes(SIZED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert [await get(client, last_words) for _ in range(2)] == [b"hello world"] * 2


async def test_a_kept_connection_that_its_peer_closed_is_replaced(listen: Listen, client: Client) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SIZED)
        await reader.readuntil(b"\r\n\r\n")  # reads the second request and closes without a word
        writer.close()

    url = await listen(serve)
    await get(client, url)
    assert await get(client, url) == b"hello world"
    assert connections == 2


async def test_an_answer_without_a_length_ends_with_its_connection(listen: Listen, client: Client) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello ")
        await writer.drain()
        writer.write(b"world")
        writer.close()

    assert await get(client, await listen(serve)) == b"hello world"


@pytest.mark.parametrize(
    "data",
    [b"SSH-2.0-x\r\n\r\n", SIZED[:-3], CHUNKED[:-9], CHUNKED.replace(b"6\r\n", b"zz\r\n"), SIZED + b"more", b""],
)
async def test_an_answer_that_breaks_the_protocol_is_an_error(listen: Listen, client: Client, data: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        writer.close()

    with pytest.raises(ProtocolBroken):
        await get(client, await listen(serve))


async def test_a_peer_that_falls_silent_is_a_timeout(listen: Listen) -> None:
    client = Client(connect_timeout_s=5, read_timeout_s=0.1, keep_s=5)
    url = await listen(writes(SIZED[:-3]))

    with pytest.raises(TimeoutError):
        await get(client, url)
    await client.aclose()


async def test_nobody_there_is_an_os_error(client: Client) -> None:
    with pytest.raises(OSError, match="Connect"):
        await get(client, "http://127.0.0.1:1")


async def test_a_stream_comes_in_parts_and_closing_it_early_ends_the_connection(listen: Listen, client: Client) -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED[: CHUNKED.index(b"5;a=b")])
        assert await reader.read() == b""
        ended.set()
        writer.close()

    answer = await client.request("GET", await listen(serve), "/", bearer="secret")
    assert await anext(answer.parts()) == b"hello "
    answer.close()

    await asyncio.wait_for(ended.wait(), 5)


async def test_parts_that_follow_soon_are_gathered_but_the_first_and_the_end_never_wait(
    listen: Listen, client: Client
) -> None:
    read, read_all = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED[: CHUNKED.index(b"6\r\n")] + b"1\r\na\r\n")
        await read.wait()
        for chunk in (b"1\r\nb\r\n", b"1\r\nc\r\n"):
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"1\r\nd\r\n")
        await writer.drain()
        await read_all.wait()
        writer.write(b"0\r\n\r\n")

    answer = await client.request("GET", await listen(serve), "/", bearer="secret")
    parts = answer.parts(gather_s=3600, end=b"d")
    assert await anext(parts) == b"a"
    read.set()
    assert await anext(parts) == b"bcd"
    read_all.set()
    assert [part async for part in parts] == []
    answer.close()


async def test_a_stream_that_nobody_reads_is_held_back_at_its_source(listen: Listen, client: Client) -> None:
    part = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED[: CHUNKED.index(b"6\r\n")])
        for _ in range(1000):
            writer.write(part)
            await writer.drain()
            sent += 0x10000
        writer.write(b"0\r\n\r\n")

    answer = await client.request("GET", await listen(serve), "/", bearer="secret")
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.1)
    assert sent < 1000 * 0x10000

    assert sum([len(part) async for part in answer.parts()]) == 1000 * 0x10000
    answer.close()
