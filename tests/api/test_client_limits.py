"""What one client may cost is set by the operator: headers, their number, the time that they take."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from tests.support.server import Server


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"header_bytes": 4096, "headers": 20, "header_timeout_s": 1, "idle_timeout_s": 2, "max_body_bytes": 2000}
    server = Server(tmp_path_factory.mktemp("strict"), cpu_threads=1, **limits).start()
    yield server
    server.stop()


def connected(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(server: Server, request: bytes) -> bytes:
    """All that is answered until the connection ends; empty when it ends without a word."""
    with connected(server) as connection:
        connection.sendall(request)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


def test_headers_within_the_limits_pass(strict: Server) -> None:
    assert answer(strict, GET + b"\r\n").startswith(b"HTTP/1.1 200")


def test_headers_that_are_too_large_or_too_many_are_refused(strict: Server) -> None:
    assert answer(strict, GET + b"A: " + b"x" * 5000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431")
    assert answer(strict, GET + b"".join(b"H%d: x\r\n" % number for number in range(30)) + b"\r\n").startswith(
        b"HTTP/1.1 431"
    )


@pytest.mark.parametrize("begun", [GET, b""], ids=["slow headers", "no request"])
def test_a_client_that_takes_its_time_is_left(strict: Server, begun: bytes) -> None:
    with connected(strict) as connection:  # whose own patience of 20 s the defaults of 30 s and 75 s would outlast
        connection.sendall(begun)
        while connection.recv(65536):
            pass


def test_a_body_over_the_limit_is_refused(strict: Server) -> None:
    key = strict.credentials.bearer_key.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer " + key
    found = answer(strict, head + b"\r\nContent-Length: 3000\r\n\r\n" + b"x" * 3000)

    assert found.startswith(b"HTTP/1.1 413")
    assert b"limit of 2000 bytes" in found
