"""Faults under continuous load: no request fails but streams whose copy was killed after their first byte.

``make test`` plays the short ones, ``make test-faults`` all.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.e2e.test_survival import is_alive
from tests.support.checkpoints import make_checkpoint
from tests.support.load import BODY, Load, default_client
from tests.support.server import Server, wait_for

SETTINGS = {"cpu_threads": 1, "probe_s": 1, "drain_s": 20, "log_level": "info"}


@pytest.fixture(scope="module")
def port() -> int:
    """A free port that stays the same when a server starts again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("steady") / "home", port=port, **SETTINGS).start()
    yield server
    server.stop()


@pytest.fixture
def steady(shared: Server) -> Iterator[Server]:
    """A server without models; after the test, that again, also where it was killed."""
    yield shared
    shared.empty()


def pids(server: Server) -> list[int]:
    return [
        copy["pid"] for copy in server.status()["copies"] if copy["pid"] and copy["state"] in ("ready", "evictable")
    ]


def thread_states(pid: int) -> list[str]:
    """What the kernel says of each thread of *pid*; T is stopped."""
    return [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]


def generated(server: Server) -> float:
    """Requests that the server counts as answered."""
    request = urllib.request.Request(
        server.url + "/metrics", headers={"Authorization": f"Bearer {server.credentials.bearer_key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        lines = response.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("outcrop_requests_total") and '"ok"' in line
    )


def settled(load: Load, more: int = 10, within_s: float = 60) -> None:
    """Wait until the load got *more* further answers."""
    target = load.total + more
    wait_for(lambda: load.total >= target or bool(load.failed), within_s)


def test_a_killed_copy_costs_no_request_under_load(steady: Server, tiny: Path) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn], tokens=60) as load:
        for _ in range(2):
            settled(load)
            for pid in pids(steady):
                os.kill(pid, signal.SIGKILL)
        settled(load)

    assert not load.failed
    assert load.total >= 30


def test_the_server_killed_and_started_again_costs_no_request_of_a_client_that_retries_as_advised(
    steady: Server, tiny: Path
) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn], open_s=None, as_advised=True) as load:
        settled(load)
        steady.kill()
        steady.start()
        settled(load)

    assert not load.failed


def test_an_engine_that_a_killed_server_could_not_take_along_is_reaped_by_the_next(steady: Server, tiny: Path) -> None:
    arn = steady.import_model(tiny, "tiny")
    default_client(steady).invoke_model(modelId=arn, body=json.dumps({**BODY, "max_gen_len": 1}))
    (pid,) = pids(steady)
    os.kill(pid, signal.SIGSTOP)  # it cannot see that its parent is gone
    # Until every thread has stopped, one may still see it and leave.
    wait_for(lambda: all(state == "T" for state in thread_states(pid)))
    steady.kill()
    assert is_alive(pid)

    steady.start()

    wait_for(lambda: not is_alive(pid), 10)
    assert not list((steady.home / "run" / "copies").glob("*.json"))


def test_a_model_imported_again_takes_an_alias_over_without_a_failed_request(
    steady: Server, tiny: Path, tmp_path: Path
) -> None:
    old = steady.import_model(tiny, "first")
    new = steady.import_model(make_checkpoint(tmp_path / "again", seed=9), "second")
    move(steady, "live", old)
    with Load(steady, ["live"]) as load:
        settled(load)
        move(steady, "live", new)
        settled(load)

    assert not load.failed
    assert not load.broken
    # The old copy goes once its last request has ended, which may be after the first answers of the new one.
    wait_for(lambda: {copy["model_arn"] for copy in steady.status()["copies"] if copy["state"] == "ready"} == {new}, 30)


def test_with_room_for_one_copy_the_alias_moves_and_requests_are_held_meanwhile(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", memory_bytes=150_000_000, **SETTINGS).start()
    try:
        old = server.import_model(tiny, "first")
        new = server.import_model(make_checkpoint(tmp_path / "again", seed=9), "second")
        move(server, "live", old)
        with Load(server, ["live"], open_s=None) as load:
            settled(load)
            move(server, "live", new)
            settled(load)
            assert len(pids(server)) == 1

        assert not load.failed
        assert not load.broken
    finally:
        server.stop()


def test_many_clients_at_once_on_a_cold_model_are_all_answered_and_each_generated_once(
    steady: Server, tiny: Path
) -> None:
    crowd(steady, tiny, 60)


def test_a_held_stream_hears_heartbeats_that_boto3_skips_and_openai_reads_as_comments(
    tmp_path: Path, tiny: Path
) -> None:
    # Idle copies stop by themselves, so that each request finds none, and none that is starting either.
    server = Server(tmp_path / "home", heartbeat_s=0.05, keep_alive_s=0.1, stop_idle=True, **SETTINGS).start()
    try:
        arn = server.import_model(tiny, "tiny")
        body = {**BODY, "max_gen_len": 4}
        stream = default_client(server).invoke_model_with_response_stream(modelId=arn, body=json.dumps(body))["body"]
        kinds = [next(iter(event)) for event in stream]
        assert set(kinds) == {"chunk"}

        wait_for(lambda: not server.status()["copies"], 30)
        talk = default_client(server).converse_stream(
            modelId=arn, messages=[{"role": "user", "content": [{"text": "x"}]}], inferenceConfig={"maxTokens": 3}
        )["stream"]
        assert next(iter(next(iter(talk)))) == "messageStart"

        wait_for(lambda: not server.status()["copies"], 30)
        heard = raw_stream(server, {"model": "tiny", "prompt": "x", "max_tokens": 3, "stream": True})
        assert heard.startswith(": waiting for a copy\n\n")
        assert heard.endswith("data: [DONE]\n\n")
    finally:
        server.stop()


def test_the_caller_chooses_how_long_to_wait(steady: Server, tiny: Path) -> None:
    steady.import_model(tiny, "tiny")
    request = {"model": "tiny", "prompt": "x", "max_tokens": 1}

    status, headers, body = raw_post(steady, request, {"x-outcrop-hold": "fail-fast"})
    assert (status, json.loads(body)["error"]["code"]) == (503, "model_not_ready")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["x-amz-retry-after"]) >= 1000
    assert raw_post(steady, request, {"x-outcrop-hold": "soon"})[0] == 400
    assert raw_post(steady, request, {"x-outcrop-hold": "30"})[0] == 200


def test_a_retry_of_an_answered_invocation_gets_that_answer_and_generates_nothing(steady: Server, tiny: Path) -> None:
    steady.import_model(tiny, "tiny")
    headers = {"amz-sdk-invocation-id": "8c1f4c5e-0000-4000-8000-1d6a3c1c2f11"}
    request = {"model": "tiny", "prompt": "for each", "max_tokens": 24, "temperature": 1.5}

    answers = [json.loads(raw_post(steady, request, headers)[2])["choices"] for _ in range(3)]
    others = [json.loads(raw_post(steady, request, {})[2])["choices"] for _ in range(2)]

    assert answers[0] == answers[1] == answers[2]
    assert answers[0] not in others  # it is drawn anew each time otherwise
    assert generated(steady) == 3
    assert sum(copy["requests"] for copy in steady.status()["copies"]) == 3


def test_held_requests_of_a_deleted_model_hear_at_once_that_it_is_gone_and_running_ones_end(
    steady: Server, talkative: Path
) -> None:
    arn = steady.import_model(talkative, "going")
    put(steady, "models/going/scaling", {"slots": 1, "max_copies": 1})
    client = default_client(steady)
    long = json.dumps({**BODY, "max_tokens": 3000, "ignore_eos": True})
    stream = iter(client.invoke_model_with_response_stream(modelId=arn, body=long)["body"])
    next(stream)
    heard: list[tuple[str, float]] = []

    def held() -> None:
        try:
            client.invoke_model(modelId=arn, body=json.dumps(BODY))
        except ClientError as exc:
            heard.append((exc.response["Error"]["Code"], time.monotonic()))

    callers = [threading.Thread(target=held) for _ in range(3)]
    for caller in callers:
        caller.start()
    wait_for(lambda: steady.status()["models"][0]["held"] == 3)
    begun = time.monotonic()
    removal = threading.Thread(target=lambda: steady.client("bedrock").delete_imported_model(modelIdentifier=arn))
    removal.start()
    for caller in callers:
        caller.join(30)

    assert [code for code, _ in heard] == ["ResourceNotFoundException"] * 3
    assert max(at for _, at in heard) - begun < 10  # long before the stream and its copy end
    last = [json.loads(event["chunk"]["bytes"]) for event in stream][-1]
    assert last["amazon-bedrock-invocationMetrics"]["outputTokenCount"] == 3000
    removal.join(30)
    assert not steady.status()["copies"]


@pytest.mark.parametrize("change", [{"slots": 3}, {"context_tokens": 256}], ids=["slots", "context"])
def test_a_changed_configuration_rolls_a_model_s_copies_without_a_failed_request(
    steady: Server, tiny: Path, change: dict[str, int]
) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn]) as load:
        settled(load)
        before = set(pids(steady))
        put(steady, "models/tiny/scaling", change)
        wait_for(lambda: bool(pids(steady)) and not before & set(pids(steady)), 60)
        settled(load)

    assert not load.failed
    assert not load.broken
    (told,) = steady.status()["models"]
    assert {key: told[key] for key in change} == change
    assert {copy["slots"] for copy in steady.status()["copies"]} == {told["slots"]}


@pytest.mark.long
def test_a_stopped_copy_is_replaced_and_costs_no_request(steady: Server, tiny: Path) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn], open_s=None) as load:
        settled(load)
        (pid,) = pids(steady)
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: not is_alive(pid), 60)
        settled(load)

    assert not load.failed


@pytest.mark.long
def test_copies_come_and_go_with_the_load_and_no_request_notices(tmp_path: Path, tiny: Path) -> None:
    server = Server(
        tmp_path / "home", cpu_cores=4, slots=1, keep_alive_s=1, stop_idle=True, max_copies=3, **SETTINGS
    ).start()
    try:
        arn = server.import_model(tiny, "tiny")
        put(server, "models/tiny/scaling", {"window_s": 1})
        most = []
        for _ in range(3):
            with Load(server, [arn], closed=6, open_s=None, tokens=40) as load:
                wait_for(lambda: len(pids(server)) == 3, 60)
                settled(load, more=20)
            most.append(load.total)
            assert not load.failed
            assert not load.broken
            with Load(server, [arn], closed=1, open_s=None, tokens=40) as calm:
                wait_for(lambda: len(pids(server)) == 1, 60)
            assert not calm.failed
            assert not calm.broken
            wait_for(lambda: not server.status()["copies"], 60)
        assert min(most) > 0
    finally:
        server.stop()


@pytest.mark.long
def test_a_server_stopped_by_sigterm_and_started_again_costs_no_request_of_a_client_that_retries_as_advised(
    steady: Server, tiny: Path
) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn], open_s=None, tokens=60, as_advised=True) as load:
        for _ in range(2):
            settled(load)
            assert steady.stop() == 0
            steady.start()
        settled(load)

    assert not load.failed
    assert not load.broken


@pytest.mark.long
def test_five_models_with_room_for_two_all_get_their_turn(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", memory_bytes=260_000_000, cpu_cores=8, imports_in_parallel=5, **SETTINGS).start()
    try:
        arns = [server.import_model(make_checkpoint(tmp_path / str(n), seed=n), f"model-{n}") for n in range(5)]
        with Load(server, arns, closed=5, open_s=1.0, tokens=8) as load:
            deadline = time.monotonic() + 90
            while time.monotonic() < deadline and not load.failed and min(load.answered[arn] for arn in arns) < 6:
                assert len(pids(server)) <= 2
                time.sleep(0.2)

        assert not load.failed
        assert not load.broken
        assert min(load.answered[arn] for arn in arns) >= 6
    finally:
        server.stop()


@pytest.mark.long
def test_five_hundred_clients_at_once_on_a_cold_model_are_all_answered_once(steady: Server, tiny: Path) -> None:
    crowd(steady, tiny, 500)


@pytest.mark.long
def test_a_full_disk_under_the_logs_keeps_no_copy_from_starting(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", log_mount="size=64k", **SETTINGS).start()
    try:
        arn = server.import_model(tiny, "tiny")
        assert server.process is not None
        inside = Path(f"/proc/{server.process.pid}/root") / (server.home / "logs").relative_to("/")
        with pytest.raises(OSError, match="No space"):
            (inside / "filler").write_bytes(b"x" * 1_000_000)
        with Load(server, [arn]) as load:
            settled(load)
            for pid in pids(server):
                os.kill(pid, signal.SIGKILL)
            settled(load)

        assert not load.failed
    finally:
        server.stop()


@pytest.mark.long
def test_a_full_disk_under_the_registry_fails_changes_by_name_and_no_request(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", database_mount="size=2m", **SETTINGS).start()
    try:
        arn = server.import_model(tiny, "tiny")
        assert server.process is not None
        filler = Path(f"/proc/{server.process.pid}/root") / (server.home / "database" / "filler").relative_to("/")
        with Load(server, [arn]) as load:
            settled(load)
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(b"x" * 3_000_000)
            told = []
            for number in range(40):  # what fits into pages that are there already still goes through
                try:
                    move(server, f"name-{number}", arn)
                except urllib.error.HTTPError as exc:
                    told.append((exc.code, exc.read().decode()))
            for pid in pids(server):
                os.kill(pid, signal.SIGKILL)  # the next start cannot be written down either
            settled(load)
            filler.unlink()
            move(server, "after", arn)
            settled(load)

        assert not load.failed
        assert told
        assert {code for code, _ in told} == {500}
        assert all("disk" in text or "space" in text for _, text in told), told[0]
    finally:
        server.stop()


@pytest.mark.long
@pytest.mark.parametrize(("closed", "open_s"), [(4, None), (0, 0.1)], ids=["closed loop", "open loop"])
def test_a_server_killed_again_and_again_costs_no_request_of_a_client_that_retries_as_advised(
    steady: Server, tiny: Path, closed: int, open_s: float | None
) -> None:
    arn = steady.import_model(tiny, "tiny")
    with Load(steady, [arn], closed=closed, open_s=open_s, as_advised=True) as load:
        for _ in range(3):
            settled(load)
            steady.kill()
            steady.start()
        settled(load)

    assert not load.failed


@pytest.mark.long
@pytest.mark.parametrize("end", [Server.kill, Server.stop], ids=["killed", "stopped"])
@pytest.mark.parametrize(("closed", "open_s"), [(4, None), (0, 0.1)], ids=["closed loop", "open loop"])
def test_a_server_ended_again_and_again_behind_a_held_socket_costs_no_request_of_a_client_as_it_comes(
    tmp_path: Path, tiny: Path, closed: int, open_s: float | None, end: Callable[[Server], object]
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        server = Server(tmp_path / "home", listener=listener, **SETTINGS).start()
        try:
            arn = server.import_model(tiny, "tiny")
            with Load(server, [arn], closed=closed, open_s=open_s) as load:
                for _ in range(3):
                    settled(load)
                    end(server)
                    server.start()
                settled(load)
        finally:
            server.stop()

    assert not load.failed


def crowd(server: Server, checkpoint: Path, size: int) -> None:
    """*size* clients ask a cold model in the same moment; every one is answered, by one generation each."""
    arn = server.import_model(checkpoint, "tiny")
    client, begin = default_client(server), threading.Barrier(size)
    body = json.dumps({**BODY, "max_gen_len": 2})
    answers: list[int] = []
    failures: list[str] = []

    def call() -> None:
        begin.wait()
        try:
            answer = json.loads(client.invoke_model(modelId=arn, body=body)["body"].read())
            answers.append(answer["generation_token_count"])
        except Exception as exc:
            failures.append(repr(exc))

    callers = [threading.Thread(target=call) for _ in range(size)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(170)

    assert not failures
    assert len(answers) == size
    assert generated(server) == size
    assert sum(copy["requests"] for copy in server.status()["copies"]) == size


def put(server: Server, path: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{server.url}/outcrop/v1/{path}",
        method="PUT",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.credentials.bearer_key}"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def move(server: Server, alias: str, model: str) -> None:
    put(server, f"aliases/{alias}", {"model": model})


def raw_post(server: Server, body: Any, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        method="POST",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {server.credentials.bearer_key}", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as exc:
        return exc.code, {name.lower(): value for name, value in exc.headers.items()}, exc.read()


def raw_stream(server: Server, body: Any) -> str:
    return raw_post(server, body, {})[2].decode()
