"""The port itself: what a client may do to a connection, in HTTP/1.1 and HTTP/2, and what it hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import h2.connection
import h2.events
import pytest
import uvloop
from hyperframe.frame import GoAwayFrame
from tests.support.http2 import Http2
from tests.support.server import wait_for

from outcrop.access.tls import ServerTls
from outcrop.api.claims import opened
from outcrop.api.http import ClientGone, Request, Response, Stream, respond, while_connected
from outcrop.api.listener.door import Limits
from outcrop.api.listener.listening import Listener, listening

QUICK = Limits(
    head_bytes=8000, headers=50, pipelined=4, streams=10, head_s=0.5, idle_s=1.5, stall_s=0.5, linger_s=0.5, sweep_s=0.1
)


class App:
    """Answers by path: ``/echo`` the body, ``/seen`` the scope, ``/slow`` when told to, ``/flood`` without end."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running: list[str] = []
        self.given_bytes = 0
        self.read_bytes = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        path = request.raw_path.decode()
        self.running.append(path)
        try:
            if path == "/refuse":  # without a look at the body
                await respond(Response(403, [], b"no"), "id", send)
                return
            if path == "/hold":
                await self.go.wait()
            try:
                body = await request.body(10**9)
            except ClientGone:
                await respond(Response(400, [], b"cut"), "id", request.sender(send))
                return
            self.read_bytes += len(body)
            await while_connected(request, self._answer(path, scope, body, request, send))
        except ClientGone:
            pass
        finally:
            self.running.remove(path)

    async def _answer(self, path: str, scope: dict[str, Any], body: bytes, request: Request, send: Any) -> None:
        if path == "/slow":
            await self.go.wait()
        if path == "/defect":
            raise ZeroDivisionError
        if path == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ZeroDivisionError
        if path == "/flood":
            await respond(Stream(200, [], self._flood()), "id", send)
            return
        if path == "/seen":
            seen = {key: scope[key] for key in ("http_version", "client", "server", "scheme")}
            body = json.dumps(seen | {"path": scope["raw_path"].decode(), "query": request.query.decode()}).encode()
        await respond(Response(200, [("content-type", "text/plain")], body), "id", request.sender(send))

    async def _flood(self) -> AsyncIterator[bytes]:
        while True:
            self.given_bytes += 65536
            yield b"x" * 65536


class Port:
    """A listener in a thread of its own."""

    def __init__(self, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self._limits, self._tls = limits, tls
        self.app: App = None  # type: ignore[assignment]
        self.listener: Listener = None  # type: ignore[assignment]
        self._loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment]

    def __enter__(self) -> Port:
        up = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve(up)), daemon=True)
        self._thread.start()
        assert up.wait(20)
        return self

    async def _serve(self, up: threading.Event) -> None:
        self._loop, self._stop, self.app = asyncio.get_running_loop(), asyncio.Event(), App()
        with contextlib.closing(opened("127.0.0.1", 0)) as sock:
            async with listening(self.app, sock, tls=self._tls, limits=self._limits) as self.listener:
                up.set()
                await self._stop.wait()

    def __exit__(self, *_: object) -> None:
        self.call(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()
        assert self.app.running == []

    def call(self, what: Callable[[], Any]) -> None:
        self._loop.call_soon_threadsafe(what)

    def connect(self) -> socket.socket:
        host, _, port = self.listener.url.rpartition("//")[2].partition(":")
        return socket.create_connection((host, int(port)), timeout=20)


@pytest.fixture
def port() -> Iterator[Port]:
    with Port(QUICK, None) as port:
        yield port


def ask(path: str, *lines: str, body: bytes = b"", method: str = "POST") -> bytes:
    length = [f"content-length: {len(body)}"] if body and not lines else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: h", *length, *lines, "", ""]).encode() + body


def answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """*count* answers in the order they came; interim ones are passed over, as every client does."""
    file = sock.makefile("rb")
    found = []
    for _ in range(count):
        status = 100
        while status == 100:
            status = int(file.readline().split()[1])
            headers = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(": ")
                headers[name] = value
        found.append((status, headers, file.read(int(headers.get("content-length", 0)))))
    return found


def rest(sock: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            found += data
    return found


# -- one connection, many requests -----------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(b"".join(ask("/echo", body=b"%d" % n) for n in range(3)))
        assert [body for _, _, body in answers(sock, 3)] == [b"0", b"1", b"2"]


def test_the_answer_to_a_pipelined_request_waits_for_the_one_before(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/slow", body=b"first") + ask("/echo", body=b"second"))
        wait_for(lambda: port.app.running == ["/slow"])
        port.call(port.app.go.set)
        assert [body for _, _, body in answers(sock, 2)] == [b"first", b"second"]


def test_more_pipelined_requests_than_may_wait_end_the_connection_after_those(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/slow", body=b"0") + b"".join(ask("/echo", body=b"%d" % n) for n in range(1, 50)))
        wait_for(lambda: port.app.running == ["/slow"])
        port.call(port.app.go.set)
        found = answers(sock, 1 + QUICK.pipelined)
        assert [body for _, _, body in found] == [b"0", b"1", b"2", b"3", b"4"]
        assert [headers.get("connection") for _, headers, _ in found] == [None] * 4 + ["close"]
        assert rest(sock) == b""


def test_what_follows_a_request_that_closes_is_not_answered(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", "connection: close", "content-length: 0") + ask("/echo", body=b"more"))
        assert answers(sock, 1)[0][1]["connection"] == "close"
        assert rest(sock) == b""


def test_a_client_of_http_1_0_gets_an_answer_that_ends_with_the_connection(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.0\r\nhost: h\r\ncontent-length: 2\r\n\r\nhi")
        assert answers(sock, 1)[0][2] == b"hi"
        assert rest(sock) == b""


def test_every_byte_may_come_alone(port: Port) -> None:
    with port.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in ask("/echo", body=b"hello") + ask("/echo", body=b"again"):
            sock.sendall(bytes([byte]))
        assert [body for _, _, body in answers(sock, 2)] == [b"hello", b"again"]


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", "content-length: 2", "expect: 100-continue"))
        assert sock.recv(99) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hi")
        assert answers(sock, 1)[0][2] == b"hi"


def test_asking_for_another_protocol_is_passed_over(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", "connection: upgrade", "upgrade: h2c", "content-length: 2") + b"hi")
        assert answers(sock, 1)[0][2] == b"hi"
        sock.sendall(ask("/echo", "connection: upgrade", "upgrade: h2c", "content-length: 4") + b"in")
        sock.sendall(b"to" + ask("/echo", body=b"next"))
        assert [body for _, _, body in answers(sock, 2)] == [b"into", b"next"]
        sock.sendall(ask("/echo", "connection: upgrade", "upgrade: websocket", method="GET"))
        assert answers(sock, 1)[0][0] == 200
        sock.sendall(ask("/echo", body=b"still here"))
        assert answers(sock, 1)[0][2] == b"still here"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/seen?a=%2F&b", "/seen", "a=%2F&b"),
        ("http://somewhere:1/seen?x", "/seen", "x"),
    ],
)
def test_path_and_query_arrive_as_they_were_sent(port: Port, target: str, path: str, query: str) -> None:
    with port.connect() as sock:
        sock.sendall(ask(target, method="GET"))
        seen = json.loads(answers(sock, 1)[0][2])
    assert (seen["path"], seen["query"]) == (path, query)


# -- clients that end early ------------------------------------------------------------------------------


def test_a_client_that_closes_its_half_after_sending_is_answered(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", body=b"at once"))
        sock.shutdown(socket.SHUT_WR)
        assert answers(sock, 1)[0][2] == b"at once"
        assert rest(sock) == b""
    with port.connect() as sock:
        sock.sendall(ask("/slow", body=b"later"))
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)  # it is asked whether it is there meanwhile
        port.call(port.app.go.set)
        assert answers(sock, 1)[0][2] == b"later"
        assert rest(sock) == b""


def test_http_client_skips_the_question_whether_it_is_there(port: Port) -> None:
    connection = http.client.HTTPConnection(*port.connect().getpeername(), timeout=20)
    connection.request("POST", "/slow", body=b"x")
    connection.sock.shutdown(socket.SHUT_WR)
    time.sleep(0.3)
    port.call(port.app.go.set)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"x")
    connection.close()


def test_a_client_that_leaves_while_it_waits_frees_its_request(port: Port) -> None:
    for leave in ("close", "reset", "half, then all"):
        sock = port.connect()
        sock.sendall(ask("/slow", body=b"x"))
        wait_for(lambda: port.app.running == ["/slow"])
        if leave == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if leave == "half, then all":
            sock.shutdown(socket.SHUT_WR)
            time.sleep(0.2)
            assert port.app.running == ["/slow"]
        sock.close()
        wait_for(lambda: port.app.running == [])


def test_a_client_of_http_2_that_leaves_or_cancels_frees_its_request(port: Port) -> None:
    client = Http2(port.connect(), "h")
    stream = client.send("POST", "/slow", [], b"x")
    wait_for(lambda: port.app.running == ["/slow"])
    client.connection.reset_stream(stream)
    client.flush()
    wait_for(lambda: port.app.running == [])
    client.send("POST", "/slow", [], b"x")
    wait_for(lambda: port.app.running == ["/slow"])
    client.close()
    wait_for(lambda: port.app.running == [])


def test_a_body_that_ends_early_is_answered_with_what_was_wrong(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", "content-length: 10") + b"short")
        sock.shutdown(socket.SHUT_WR)
        assert answers(sock, 1)[0][::2] == (400, b"cut")


def test_a_request_that_is_refused_before_its_body_is_told_so_although_it_goes_on(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/refuse", f"content-length: {10**7}") + b"x" * 100_000)
        status, headers, _ = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (403, "close")
        assert rest(sock) == b""
        with contextlib.suppress(ConnectionError):  # and no connection is kept for who never stops
            while True:
                sock.sendall(b"x" * 65536)


# -- clients that cost too much --------------------------------------------------------------------------


def test_a_head_that_does_not_come_to_its_end_is_given_up(port: Port) -> None:
    for before in (b"", ask("/echo", body=b"x")):
        with port.connect() as sock:
            sock.sendall(before + ask("/echo")[:-4])
            status, headers, body = answers(sock, 2 if before else 1)[-1]
            assert (status, headers["connection"]) == (408, "close")
            assert "0.5 s" in json.loads(body)["message"]
            assert rest(sock) == b""


def test_a_connection_that_idles_is_closed(port: Port) -> None:
    with port.connect() as silent, port.connect() as begun, port.connect() as kept, port.connect() as other:
        begun.sendall(b"P")  # may become either protocol
        kept.sendall(ask("/echo", body=b"x"))
        assert answers(kept, 1)[0][0] == 200
        client = Http2(other, "h")
        assert client.read([client.send("POST", "/echo", [], b"x")])
        assert rest(kept) == b""
        assert rest(silent) == rest(begun) == b""
        events = client.connection.receive_data(rest(other))
        assert any(isinstance(event, h2.events.ConnectionTerminated) for event in events)


@pytest.mark.parametrize(
    "lines",
    [
        ["x: " + "y" * QUICK.head_bytes],
        [f"x-{n}: {'y' * 200}" for n in range(45)],
        [f"x-{n}: y" for n in range(QUICK.headers)],
    ],
    ids=["one", "together", "many"],
)
def test_headers_over_the_limit_are_refused_in_words(port: Port, lines: list[str]) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/echo", *lines, "content-length: 0"))
        status, _, body = answers(sock, 1)[0]
        assert status == 431
        assert json.loads(body)["message"] == json.loads(body)["error"]["message"] != ""
        assert rest(sock) == b""


def test_a_header_without_end_is_refused(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                sock.sendall(b"y" * 10_000)
                time.sleep(0.0005)
            pytest.fail("ten megabytes of a header were taken")
    assert port.app.running == []


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS where none is spoken
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_400_and_closed(port: Port, wire: bytes) -> None:
    with port.connect() as sock:
        sock.sendall(wire)
        status, headers, body = answers(sock, 1)[0]
        assert (status, headers["connection"]) == (400, "close")
        assert json.loads(body)["message"]
        assert rest(sock) == b""


def test_a_broken_request_after_a_good_one_does_not_take_its_answer(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/slow", body=b"good") + b"nonsense\r\n\r\n")
        wait_for(lambda: port.app.running == ["/slow"])
        port.call(port.app.go.set)
        assert [(status, body[:4]) for status, _, body in answers(sock, 2)] == [(200, b"good"), (400, b'{"me')]


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_client_that_takes_nothing_is_given_up(port: Port, protocol: str) -> None:
    with port.connect() as sock:
        if protocol == "h2":
            Http2(sock, "h").send("POST", "/flood", [], b"x")
        else:
            sock.sendall(ask("/flood", body=b"x"))
        wait_for(lambda: port.app.given_bytes > 0)
        wait_for(lambda: port.app.running == [])
    assert port.app.given_bytes < 30_000_000


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_a_body_that_nobody_reads_is_not_taken(port: Port, protocol: str) -> None:
    with port.connect() as sock:
        sock.settimeout(1)
        sent = 0
        if protocol == "h2":
            client = Http2(sock, "h")
            stream = client.connection.get_next_available_stream_id()
            names = [(":method", "POST"), (":scheme", "http"), (":authority", "h"), (":path", "/hold")]
            client.connection.send_headers(stream, names)
            client.flush()
            client.connection.receive_data(sock.recv(65536))
            while client.connection.local_flow_control_window(stream):
                size = min(client.connection.local_flow_control_window(stream), 16384)
                client.connection.send_data(stream, b"x" * size)
                sent += size
            client.flush()
        else:
            sock.sendall(ask("/hold", f"content-length: {10**9}"))
            with contextlib.suppress(TimeoutError):
                while sent < 20_000_000:
                    sent += sock.send(b"x" * 65536)
        assert sent < 20_000_000
        sock.settimeout(20)
    port.call(port.app.go.set)
    wait_for(lambda: port.app.running == [])


def test_streams_over_the_limit_and_floods_of_cancelled_ones_end_the_connection(port: Port) -> None:
    client = Http2(port.connect(), "h")
    with contextlib.suppress(ConnectionError):  # it ends
        for _ in range(1000):
            client.connection.reset_stream(client.send("POST", "/slow", [], b"x"))
            client.flush()
    rest(client.sock)
    client.close()
    wait_for(lambda: port.app.running == [])


def test_too_many_headers_over_http_2_are_refused_in_words(port: Port) -> None:
    client = Http2(port.connect(), "h")
    stream = client.send("POST", "/echo", [(f"x-{n}", "y") for n in range(60)], b"x")
    answer = client.read([stream])[stream]
    assert (answer.status, "50 headers" in json.loads(answer.body)["message"]) == (431, True)
    client.close()


def test_a_client_of_http_2_may_say_goodbye_and_read_on(port: Port) -> None:
    client = Http2(port.connect(), "h")
    stream = client.send("POST", "/slow", [], b"late")
    client.sock.sendall(GoAwayFrame(0, last_stream_id=0).serialize())  # as Node does
    time.sleep(0.2)
    port.call(port.app.go.set)
    assert client.read([stream])[stream].body == b"late"
    assert rest(client.sock) == b""  # and nobody waits for another request of it
    client.close()


def test_a_broken_frame_ends_the_streams_that_are_open_and_is_no_defect(
    port: Port, capfd: pytest.CaptureFixture[str]
) -> None:
    client = Http2(port.connect(), "h")
    client.send("POST", "/flood", [], b"x")
    client.send("POST", "/slow", [], b"x")
    wait_for(lambda: port.app.given_bytes > 0 and len(port.app.running) == 2)
    client.sock.sendall(b"\0\0\1\1\4\0\0\0\0x")  # headers of stream 0
    wait_for(lambda: port.app.running == [])
    client.close()
    port.call(port.listener.drain)
    assert "defect" not in "".join(capfd.readouterr())


# -- both protocols on one port --------------------------------------------------------------------------


def test_the_preface_of_http_2_may_come_in_pieces(port: Port) -> None:
    sock = port.connect()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    class InPieces:
        def sendall(self, data: bytes) -> None:
            for byte in data:
                sock.sendall(bytes([byte]))

        def recv(self, size: int) -> bytes:
            return sock.recv(size)

        def close(self) -> None:
            sock.close()

    client = Http2(InPieces(), "h")  # type: ignore[arg-type]
    stream = client.send("POST", "/echo", [], b"hello")
    assert client.read([stream])[stream].body == b"hello"
    client.close()


def test_the_clients_own_address_is_seen_over_both(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/seen", method="GET"))
        seen = json.loads(answers(sock, 1)[0][2])
        assert seen["client"] == list(sock.getsockname())
        assert seen["server"] == list(sock.getpeername())
        assert (seen["http_version"], seen["scheme"]) == ("1.1", "http")
    client = Http2(port.connect(), "h")
    stream = client.send("GET", "/seen", [])
    seen = json.loads(client.read([stream])[stream].body)
    assert seen["client"] == list(client.sock.getsockname())
    assert seen["http_version"] == "2"
    client.close()


def test_a_large_body_and_a_large_answer_pass_over_http_2(port: Port) -> None:
    client = Http2(port.connect(), "h")
    state, body = client.connection, bytes(range(256)) * 20_000
    stream = state.get_next_available_stream_id()
    names = [(":method", "POST"), (":scheme", "http"), (":authority", "h"), (":path", "/echo")]
    state.send_headers(stream, names)
    client.flush()
    at = 0
    while at < len(body):
        room = min(state.local_flow_control_window(stream), state.max_outbound_frame_size)
        if not room:
            state.receive_data(client.sock.recv(65536))
            continue
        state.send_data(stream, body[at : at + room], end_stream=at + room >= len(body))
        at += room
        client.flush()
    assert client.read([stream])[stream].body == body
    client.close()


@pytest.mark.parametrize("protocols", [["h2"], ["http/1.1"], ["h2", "http/1.1"], []], ids=str)
def test_tls_decides_by_alpn_and_shows_a_certificate_loaded_later(tmp_path: Path, protocols: list[str]) -> None:
    context = ServerTls(tmp_path / "first", ["127.0.0.1"]).context
    with Port(QUICK, context) as port:
        for name in ("first", "second"):
            if name == "second":
                ServerTls(tmp_path / "second", ["127.0.0.1"])
                context.load_cert_chain(tmp_path / "second" / "server.pem", tmp_path / "second" / "server.key")
            trust = ssl.create_default_context(cafile=str(tmp_path / name / "ca.pem"))
            if protocols:
                trust.set_alpn_protocols(protocols)
            with trust.wrap_socket(port.connect(), server_hostname="127.0.0.1") as sock:
                if "h2" in protocols:
                    assert sock.selected_alpn_protocol() == "h2"
                    client = Http2(sock, "h", scheme="https")
                    stream = client.send("GET", "/seen", [])
                    seen = json.loads(client.read([stream])[stream].body)
                else:
                    sock.sendall(ask("/seen", method="GET"))
                    seen = json.loads(answers(sock, 1)[0][2])
                assert seen["scheme"] == "https"


def test_a_defect_of_the_application_is_answered_500_or_ends_the_connection(port: Port) -> None:
    with port.connect() as sock:
        sock.sendall(ask("/defect", body=b"x"))
        status, _, body = answers(sock, 1)[0]
        assert (status, b"ZeroDivision" in body) == (500, False)
    with port.connect() as sock:
        sock.sendall(ask("/half", body=b"x"))
        assert not rest(sock).endswith(b"0\r\n\r\n")
    client = Http2(port.connect(), "h")
    whole, half = client.send("POST", "/defect", [], b"x"), client.send("POST", "/half", [], b"x")
    found = client.read([whole, half])
    assert (found[whole].status, found[half].is_whole) == (500, False)
    client.close()


# -- the end ---------------------------------------------------------------------------------------------


def test_draining_ends_idle_connections_and_lets_running_requests_end_theirs(port: Port) -> None:
    idle, busy, two = port.connect(), port.connect(), Http2(port.connect(), "h")
    idle.sendall(ask("/echo", body=b"x"))
    assert answers(idle, 1)
    busy.sendall(ask("/slow", body=b"busy"))
    two.send("POST", "/slow", [], b"two")
    wait_for(lambda: port.app.running == ["/slow", "/slow"])
    port.call(port.listener.drain)

    assert rest(idle) == b""
    events: list[Any] = []
    while not any(isinstance(event, h2.events.ConnectionTerminated) for event in events):
        events += two.connection.receive_data(two.sock.recv(65536))
    late = port.connect()
    late.sendall(ask("/echo", body=b"late"))
    _, headers, body = answers(late, 1)[0]
    assert (headers["connection"], body) == ("close", b"late")
    port.call(port.app.go.set)
    status, headers, body = answers(busy, 1)[0]
    assert (status, headers["connection"], body) == (200, "close", b"busy")
    assert b"two" in rest(two.sock)
    for sock in (idle, busy, late, two.sock):
        sock.close()


def test_leaving_waits_for_running_requests_and_cuts_those_that_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outcrop.api.listener.listening.CLOSE_S", 0.3)
    with Port(QUICK, None) as port:
        sock = port.connect()
        sock.sendall(ask("/slow", body=b"x"))
        wait_for(lambda: port.app.running == ["/slow"])
        silent = port.connect()
        time.sleep(0.1)
    assert rest(sock) == rest(silent) == b""
    sock.close()
    silent.close()
