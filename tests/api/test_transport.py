"""One port, HTTP/1.1 and HTTP/2: what travels, what is refused, and that nothing stays behind."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError, EventStreamError
from tests.support.front_door import BEARER, CHUNK, KEY, SECRET, FrontDoor
from tests.support.http2 import Http2
from tests.support.server import wait_for

from outcrop import errors

SESSIONS = int(os.environ.get("OUTCROP_TEST_SESSIONS", "1000"))
LIMIT = 100_000
BEARER_HEADER = ("authorization", f"Bearer {BEARER}")
ECHO = "/model/echo/invoke"
FLOOD = "/model/flood/invoke-with-response-stream"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    with FrontDoor(tmp_path_factory.mktemp("door"), max_body_bytes=LIMIT) as door:
        yield door


def http2(door: FrontDoor) -> Http2:
    return Http2(socket.create_connection(door.address, timeout=20), "host:1")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def raw(door: FrontDoor, request: bytes) -> tuple[int, bytes]:
    """Status and what follows of the answer to *request*, byte by byte as given, on a connection of its own."""
    with socket.create_connection(door.address, timeout=20) as sock:
        sock.sendall(request)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        return answer.status, answer.read()


def head(path: str, *lines: str, method: str = "POST") -> bytes:
    fixed = [f"{method} {path} HTTP/1.1", "host: h", f"authorization: Bearer {BEARER}"]
    return "\r\n".join([*fixed, *lines, "", ""]).encode("latin-1")


def test_http_1_keeps_its_connection(door: FrontDoor) -> None:
    connection = http.client.HTTPConnection(*door.address, timeout=20)
    connection.connect()
    first = connection.sock
    for number in range(3):
        connection.request("POST", ECHO, body=str(number), headers=dict([BEARER_HEADER]))
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, str(number).encode())
        assert connection.sock is first
    connection.close()


def test_http_2_by_prior_knowledge_carries_many_requests_at_once(door: FrontDoor) -> None:
    client = http2(door)
    bodies = {client.send("POST", ECHO, [BEARER_HEADER], b'{"n":%d}' % n): b'{"n":%d}' % n for n in range(50)}
    answers = client.read(list(bodies))
    client.close()

    assert {stream: answer.body for stream, answer in answers.items()} == bodies
    assert all(answer.status == 200 and answer.headers["x-amzn-requestid"] for answer in answers.values())


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_tls_offers_both_protocols(tmp_path: Path, protocol: str) -> None:
    with FrontDoor(tmp_path, tls=True) as door:
        trust = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.pem"))
        trust.set_alpn_protocols([protocol])
        with trust.wrap_socket(socket.create_connection(door.address, timeout=20), server_hostname="localhost") as sock:
            assert sock.selected_alpn_protocol() == protocol
            if protocol == "h2":
                client = Http2(sock, "localhost", scheme="https")
                stream = client.send("POST", ECHO, [BEARER_HEADER], b"{}")
                assert client.read([stream])[stream].body == b"{}"
            else:
                sock.sendall(head(ECHO, "content-length: 2") + b"{}")
                assert sock.recv(99).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "model",
    [
        "arn%3Aaws%3Abedrock%3Aus-east-1%3A000000000000%3Aimported-model%2Fabcdef123456",
        "arn:aws:bedrock:us-east-1:000000000000:imported-model%2Fabcdef123456",
        "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456",
    ],
)
def test_an_arn_arrives_whole_however_it_is_encoded(door: FrontDoor, model: str) -> None:
    path = f"/model/{model}/invoke"
    client = http2(door)
    stream = client.send("POST", path, [BEARER_HEADER], b"{}")

    assert raw(door, head(path, "content-length: 2") + b"{}") == (200, b"{}")
    assert client.read([stream])[stream].body == b"{}"
    client.close()


@pytest.mark.parametrize("encoded", ["%3A", ":"])
def test_a_signature_over_a_half_encoded_path_and_no_content_type_verifies(door: FrontDoor, encoded: str) -> None:
    model = "arn:aws:bedrock:us-east-1:000000000000:imported-model%2Fabcdef123456".replace(":", encoded)
    request = AWSRequest("POST", f"{door.url}/model/{model}/invoke", data=b"{}")
    SigV4Auth(Credentials(KEY, SECRET), "bedrock", "us-east-1").add_auth(request)
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    host, port = door.address
    wire = [f"POST /model/{model}/invoke HTTP/1.1", f"host: {host}:{port}", *lines, "content-length: 2", "", "{}"]

    assert raw(door, "\r\n".join(wire).encode()) == (200, b"{}")


def test_boto3_finds_the_server_by_the_environment(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", door.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK", door.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    assert boto3.client("bedrock-runtime").invoke_model(modelId="echo", body=b"{}")["body"].read() == b"{}"
    with pytest.raises(ClientError, match="ListGuardrails is not implemented"):
        boto3.client("bedrock", config=Config(retries={"total_max_attempts": 1})).list_guardrails()


@pytest.mark.parametrize(
    "path", ["/model//echo/invoke", "/model/./echo/invoke", "/x/../model/echo/invoke", "/model/echo/invoke/."]
)
def test_a_path_spelled_otherwise_is_not_routed(door: FrontDoor, path: str) -> None:
    status, body = raw(door, head(path, "content-length: 0"))

    assert (status, json.loads(body)["message"].startswith("No operation is bound")) == (501, True)


def test_chunked_bodies_and_bodies_without_a_type_are_read(door: FrontDoor) -> None:
    sent = head(ECHO, "transfer-encoding: chunked") + b'3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n'

    assert raw(door, sent) == (200, b'{"a":1}')


@pytest.mark.parametrize("framing", [f"content-length: {LIMIT + 1}", "transfer-encoding: chunked"])
def test_a_body_over_the_limit_is_refused_and_the_client_hears_it(door: FrontDoor, framing: str) -> None:
    body = b"x" * (LIMIT + 1)
    sent = body if "length" in framing else b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    status, answer = raw(door, head(ECHO, framing) + sent)

    assert status == 400
    assert f"limit of {LIMIT} bytes" in json.loads(answer)["message"]


def test_a_strangers_body_is_dropped_and_the_stranger_told(door: FrontDoor) -> None:
    sent = head(ECHO, f"content-length: {20 * LIMIT}").replace(BEARER.encode(), b"nobody") + b"x" * 20 * LIMIT
    status, answer = raw(door, sent)

    assert (status, json.loads(answer)["message"]) == (403, "The security token included in the request is invalid.")


@pytest.mark.parametrize("length", ["2", "-1", "1e9", "\xb2", "9" * 30, "2, 3"])
def test_a_content_length_that_lies_never_becomes_a_defect(door: FrontDoor, length: str) -> None:
    with socket.create_connection(door.address, timeout=20) as sock:
        sock.sendall(head(ECHO, f"content-length: {length}") + b"{")
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)

    assert not answer or answer.startswith(b"HTTP/1.1 4")


def test_a_body_that_stalls_is_given_up(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outcrop.api.http._STALL_S", 0.2)
    status, answer = raw(door, head(ECHO, "content-length: 2") + b"{")

    assert (status, "stalled" in json.loads(answer)["message"]) == (400, True)


def test_the_answer_to_head_has_no_body(door: FrontDoor) -> None:
    client = http2(door)
    stream = client.send("HEAD", "/healthz", [])
    answer = client.read([stream])[stream]

    assert (answer.status, answer.headers["content-length"], answer.body, answer.is_whole) == (200, "2", b"", True)


def test_a_flood_of_headers_is_refused(door: FrontDoor) -> None:
    status, _ = raw(door, head(ECHO, *(f"x-{n}: y" for n in range(500)), "content-length: 0"))
    assert status in (400, 431)
    client = http2(door)
    stream = client.send("POST", ECHO, [BEARER_HEADER, *((f"x-{n}", "y" * 1000) for n in range(200))])
    assert client.read([stream])[stream].status in (0, 431)
    client.close()
    assert raw(door, head(ECHO, "content-length: 2") + b"{}") == (200, b"{}")


EXCEPTIONS = [
    (
        lambda: errors.ModelNotReady("wait", retry_after_s=0.01),
        "ModelNotReadyException",
        429,
        {"legacy": 5, "standard": 3},
    ),
    (lambda: errors.Throttled("full", retry_after_s=0.01), "ThrottlingException", 429, {"legacy": 5, "standard": 3}),
    (
        lambda: errors.ShuttingDown("bye", retry_after_s=0.01),
        "ServiceUnavailableException",
        503,
        {"legacy": 5, "standard": 3},
    ),
    (lambda: errors.ServiceFault("oops"), "InternalServerException", 500, {"legacy": 5, "standard": 3}),
    (lambda: errors.EngineTimeout("slow"), "ModelTimeoutException", 408, {"standard": 1}),
    (lambda: errors.EngineFault("broke", engine_status=502), "ModelErrorException", 424, {"standard": 1}),
    (lambda: errors.QuotaExceeded("many"), "ServiceQuotaExceededException", 400, {"standard": 1}),
    (lambda: errors.InvalidRequest("bad"), "ValidationException", 400, {"standard": 1}),
    (lambda: errors.ModelNotFound("gone"), "ResourceNotFoundException", 404, {"standard": 1}),
    (lambda: errors.NotAllowed("no"), "AccessDeniedException", 403, {"standard": 1}),
]


@pytest.mark.parametrize(
    ("made", "code", "status", "attempts"), EXCEPTIONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_boto3_raises_each_exception_and_retries_as_it_does_on_aws(
    door: FrontDoor, monkeypatch: pytest.MonkeyPatch, made: Any, code: str, status: int, attempts: dict[str, int]
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    door.runtime.script["scripted"] = made
    for mode, times in attempts.items():
        client = door.client(retries={"mode": mode})
        sent: list[str] = []
        client.meta.events.register(
            "before-send", lambda request, sent=sent, **_: sent.append(request.headers["amz-sdk-invocation-id"])
        )
        for call in (client.invoke_model, client.invoke_model_with_response_stream):
            sent.clear()
            with pytest.raises(ClientError) as caught:
                call(modelId="scripted", body="{}")
            response = caught.value.response
            assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
            assert type(caught.value) is client.exceptions.from_code(code)
            assert len(sent) == times
            assert len(set(sent)) == 1
    if code == "ModelErrorException":
        assert (response["originalStatusCode"], response["resourceName"]) == (502, "scripted")


def test_a_client_that_was_told_to_try_ten_times_does(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    door.runtime.script["scripted"] = lambda: errors.ModelNotReady("wait", retry_after_s=4)
    client = door.client(retries={"total_max_attempts": 10, "mode": "standard"})
    with pytest.raises(client.exceptions.ModelNotReadyException) as caught:
        client.invoke_model(modelId="scripted", body="{}")

    metadata = caught.value.response["ResponseMetadata"]
    assert metadata["RetryAttempts"] == 9
    assert metadata["HTTPHeaders"]["x-amz-retry-after"] == "4000"
    assert metadata["HTTPHeaders"]["retry-after"] == "4"


def test_boto3_waits_as_long_as_the_server_asks(door: FrontDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setenv("AWS_NEW_RETRIES_2026", "true")
    door.runtime.script["scripted"] = lambda: errors.ModelNotReady("wait", retry_after_s=4)
    client = door.client()
    with pytest.raises(client.exceptions.ModelNotReadyException):
        client.invoke_model(modelId="scripted", body="{}")

    assert [round(wait) for wait in waits] == [4, 4]


def test_a_defect_inside_an_open_stream_is_an_event_of_the_stream(door: FrontDoor) -> None:
    stream = door.client().invoke_model_with_response_stream(modelId="defect", body="{}")["body"]

    assert next(iter(stream))["chunk"]["bytes"] == b"{}"
    with pytest.raises(EventStreamError) as caught:
        list(stream)
    assert caught.value.response["Error"]["Code"] == "internalServerException"
    assert "Zero" not in str(caught.value)


def test_a_client_that_stops_reading_stops_the_stream_and_frees_it_when_it_leaves(door: FrontDoor) -> None:
    for protocol in ("http/1.1", "h2"):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.settimeout(20)
        sock.connect(door.address)
        before = door.runtime.given_chunks
        if protocol == "h2":
            Http2(sock, "h").send("POST", FLOOD, [BEARER_HEADER], b"{}")
        else:
            sock.sendall(head(FLOOD, "content-length: 2") + b"{}")
        wait_for(lambda: door.runtime.open_streams == 1)
        last = -1
        while last != door.runtime.given_chunks:  # until it stands still
            last = door.runtime.given_chunks
            time.sleep(0.3)
        assert 0 < last - before < 20_000_000 // len(CHUNK)
        sock.close()
        wait_for(lambda: door.runtime.open_streams == 0)


def test_sessions_of_one_request_and_streams_that_are_cut_off_leave_nothing_behind(door: FrontDoor) -> None:
    def session(number: int) -> None:
        client = http2(door)
        if number % 5:
            stream = client.send("POST", ECHO, [BEARER_HEADER], b'{"n":1}')
            assert client.read([stream])[stream].body == b'{"n":1}'
        else:
            client.send("POST", FLOOD, [BEARER_HEADER], b"{}")
            client.sock.recv(65536)
        client.close()

    def stands_still() -> bool:
        return door.runtime.open_streams == 0 and door.tasks() <= tasks and descriptors() <= files

    for number in range(50):  # what is made once is made now
        session(number)
    wait_for(lambda: door.runtime.open_streams == 0)
    time.sleep(0.5)
    tasks, files, memory = door.tasks(), descriptors(), resident_bytes()
    for number in range(SESSIONS):
        session(number)

    wait_for(stands_still, 30)
    assert resident_bytes() - memory < 32_000_000


PAGE = ("origin", "https://chat.example")
ASKS = ("access-control-request-method", "POST")


def answered(door: FrontDoor, method: str, path: str, *headers: tuple[str, str], body: bytes = b"") -> Any:
    """The answer, its body read, over HTTP/1.1; *headers* are all that is sent."""
    connection = http.client.HTTPConnection(*door.address, timeout=20)
    connection.request(method, path, body or None, dict(headers))
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


@pytest.mark.parametrize("path", [ECHO, "/v1/chat/completions", "/imported-models"])
def test_a_page_in_a_browser_may_ask_and_read_the_answer(door: FrontDoor, path: str) -> None:
    names = "authorization,content-type,x-amz-date"
    asked = answered(door, "OPTIONS", path, PAGE, ASKS, ("access-control-request-headers", names))

    assert asked.status == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert asked.headers["access-control-allow-headers"] == names
    assert "POST" in asked.headers["access-control-allow-methods"]
    refused = answered(door, "POST", path, PAGE)
    assert refused.status in (401, 403)
    assert refused.headers["access-control-allow-origin"] == "*"  # or the page could not read why
    assert refused.headers["access-control-expose-headers"] == "*"


def test_who_is_no_page_is_told_nothing_about_pages(door: FrontDoor) -> None:
    assert answered(door, "OPTIONS", ECHO).status == 403
    assert answered(door, "OPTIONS", ECHO, PAGE).status == 403  # asks for nothing
    assert answered(door, "POST", ECHO, BEARER_HEADER, body=b"{}").headers["access-control-allow-origin"] is None


def test_pages_of_other_origins_are_not_let_in(tmp_path: Path) -> None:
    with FrontDoor(tmp_path, browser_origins=["https://chat.example/"]) as door:
        other = ("origin", "https://other.example")

        assert answered(door, "OPTIONS", ECHO, other, ASKS).status == 403
        assert answered(door, "POST", ECHO, other, BEARER_HEADER).headers["access-control-allow-origin"] is None
        let_in = answered(door, "OPTIONS", ECHO, PAGE, ASKS)
        assert (let_in.status, let_in.headers["vary"]) == (200, "origin")
        assert let_in.headers["access-control-allow-origin"] == PAGE[1]


def test_a_compressed_body_is_refused_by_name(door: FrontDoor) -> None:
    status, said = raw(door, head(ECHO, "content-encoding: gzip", "content-length: 4") + b"abcd")

    assert status == 400
    assert b"Content-Encoding 'gzip'" in said
    assert raw(door, head(ECHO, "content-encoding: identity", "content-length: 2") + b"{}") == (200, b"{}")
