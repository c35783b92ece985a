"""Thousands of broken requests at the front door: no defect, and nothing of them stays."""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.support.http2 import Http2
from tests.support.mutation import Sent, mutated, valid_requests
from tests.support.server import Server, wait_for

REQUESTS = int(os.environ.get("OUTCROP_TEST_FUZZ", "500"))
SEED = int(os.environ.get("OUTCROP_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
BATCH = 25


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Server, list[Sent]]]:
    """A server with one model, and its valid requests."""
    server = Server(tmp_path_factory.mktemp("fuzz"), cpu_threads=1, imports_in_parallel=4, keep_alive_s=3600).start()
    model = server.import_model(tiny, "fuzzed")
    job = server.client("bedrock").get_model_import_job(jobIdentifier="job-fuzzed")["jobArn"]
    yield server, valid_requests(model, job, server.credentials.bearer_key)
    assert server.stop() == 0


def address(server: Server) -> tuple[str, int]:
    host, _, port = server.url.rpartition("//")[2].partition(":")
    return host, int(port)


def http1_status(server: Server, wire: bytes) -> tuple[int, bytes]:
    """Status and answer; 0 where the connection was closed without one."""
    with socket.create_connection(address(server), timeout=1) as sock:
        answer = b""
        is_told = False
        while True:
            try:
                if not is_told:
                    sock.sendall(wire)
                is_told = True
                data = sock.recv(65536)
            except TimeoutError:  # perhaps it waits for a body that never comes
                sock.settimeout(60)
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                continue
            except ConnectionError:
                break
            if not data:
                break
            answer += data
    if not answer.startswith(b"HTTP/1.1 "):
        return 0, answer
    return int(answer[9:12]), answer


def http2_statuses(server: Server, batch: list[Sent]) -> list[tuple[int, bytes]]:
    client = Http2(socket.create_connection(address(server), timeout=60), "h")
    found = []
    try:
        for sent in batch:
            headers = [(name, value) for name, value in sent.headers if name not in ("upgrade", "te")]
            try:
                stream = client.send(sent.method, sent.path, headers, sent.body[:60_000])
                answer = client.read([stream])[stream]
            except (OSError, ValueError):  # the server ended the connection: go on with another
                answer = None
            found.append((answer.status, str(answer.headers).encode() + answer.body) if answer else (0, b""))
            if answer is None or not answer.is_whole:
                client.close()
                client = Http2(socket.create_connection(address(server), timeout=60), "h")
    finally:
        client.close()
    return found


def send_junk_frames(server: Server, rng: random.Random) -> None:
    """A connection that begins as HTTP/2 and goes on with frames that mean nothing."""
    with socket.create_connection(address(server), timeout=1) as sock:
        frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
        for _ in range(rng.randrange(20)):
            payload = rng.randbytes(rng.randrange(60))
            kind, flags, stream = rng.randrange(12), rng.randrange(256), rng.randrange(8)
            frames += len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
        with suppress(OSError):
            sock.sendall(frames)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass


def is_sound(status: int, answer: bytes) -> bool:
    """No defect: of all statuses over 499, only the one that says which operation is not served."""
    return status < 500 or (status == 501 and b"UnknownOperationException" in answer)


def state(server: Server) -> dict[str, Any]:
    assert server.process is not None
    folder = Path(f"/proc/{server.process.pid}")
    return {
        "descriptors": len(list((folder / "fd").iterdir())),
        "resident": int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
        "in_flight": sum(copy["in_flight"] for copy in server.status()["copies"]),
    }


def test_valid_requests_of_every_kind_are_answered(fuzzed: tuple[Server, list[Sent]]) -> None:
    server, valid = fuzzed
    for sent in valid:
        status, answer = http1_status(server, sent.http1())
        assert status in (200, 201) or b"ValidationException" in answer, (sent, answer)


def test_no_mutated_request_is_a_defect_and_none_leaves_anything_behind(fuzzed: tuple[Server, list[Sent]]) -> None:
    server, valid = fuzzed
    rng = random.Random(SEED)
    for sent in [*valid, *valid]:  # what is made once is made now
        http1_status(server, sent.http1())
        http2_statuses(server, [sent])
    before = state(server)
    statuses: Counter[int] = Counter()
    for number in range(0, REQUESTS, BATCH):
        batch = [mutated(rng.choice(valid), rng) for _ in range(BATCH)]
        if number // BATCH % 3:
            found = [http1_status(server, _garbled(sent.http1(), rng)) for sent in batch]
        else:
            found = http2_statuses(server, batch)
        send_junk_frames(server, rng)
        for sent, (status, answer) in zip(batch, found, strict=True):
            assert is_sound(status, answer), f"seed {SEED}, request {number}: {sent} got {answer[:2000]!r}"
            statuses[status] += 1

    # Most got past the door: a fuzz run that only ever hears "who are you" proves nothing.
    assert statuses[200] + statuses[400] > REQUESTS // 2, statuses
    log = (server.home / "server.log").read_text()
    assert "Traceback" not in log, log[-5000:]
    assert "defect" not in log
    wait_for(lambda: state(server)["in_flight"] == 0, 30)
    wait_for(lambda: state(server)["descriptors"] <= before["descriptors"], 30)
    assert state(server)["resident"] - before["resident"] < 100_000_000
    assert http1_status(server, valid[0].http1())[0] in (201, 400)


def _garbled(wire: bytes, rng: random.Random) -> bytes:
    """Now and then a byte of the framing itself changes."""
    if rng.random() > 0.1:
        return wire
    at = rng.randrange(min(len(wire), 400))
    return wire[:at] + bytes([rng.randrange(256)]) + wire[at + 1 :]
