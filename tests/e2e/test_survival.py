"""Processes killed in the middle, full and read-only disks: nothing half-made is ever seen."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server, wait_for

from outcrop.cli.top import follow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("fresh") / "home"
    server = Server(home, keep_alive_s=1, stop_idle=True, drain_s=5, cpu_threads=1).start()
    yield server
    server.stop()


@pytest.fixture
def fresh(shared: Server) -> Iterator[Server]:
    """A server without models, with short times; after the test, that again, also where it was killed."""
    yield shared
    shared.empty()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def generate(server: Server, arn: str, tokens: int = 2) -> dict[str, Any]:
    body = json.dumps({"prompt": "for each", "max_gen_len": tokens, "temperature": 0})
    return server.client("bedrock-runtime").invoke_model(modelId=arn, body=body)  # type: ignore[no-any-return]


def test_a_model_sleeps_after_its_keep_alive_and_wakes_for_the_next_request(fresh: Server, tiny: Path) -> None:
    arn = fresh.import_model(tiny, "tiny")

    generate(fresh, arn)
    pid = fresh.status()["copies"][0]["pid"]
    wait_for(lambda: not fresh.status()["copies"])

    assert not is_alive(pid)
    generate(fresh, arn)
    assert fresh.status()["copies"][0]["pid"] != pid


def test_one_start_serves_everyone_who_waits(fresh: Server, tiny: Path) -> None:
    arn = fresh.import_model(tiny, "tiny")
    failures: list[Exception] = []

    def call() -> None:
        try:
            generate(fresh, arn)
        except Exception as exc:
            failures.append(exc)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert not failures
    assert [copy["requests"] for copy in fresh.status()["copies"]] == [8]


def test_a_copy_killed_mid_request_costs_the_caller_nothing_before_the_first_byte(fresh: Server, tiny: Path) -> None:
    arn = fresh.import_model(tiny, "tiny")
    generate(fresh, arn)
    pid = fresh.status()["copies"][0]["pid"]
    answers: list[Any] = []
    caller = threading.Thread(target=lambda: answers.append(generate(fresh, arn, 400)))
    os.kill(pid, signal.SIGSTOP)
    caller.start()
    wait_for(lambda: any(copy["in_flight"] for copy in fresh.status()["copies"]))
    os.kill(pid, signal.SIGKILL)
    caller.join(30)

    assert len(answers) == 1
    assert fresh.status()["copies"][0]["pid"] != pid


def test_a_copy_killed_mid_stream_ends_the_stream_with_a_modelled_error(fresh: Server, talkative: Path) -> None:
    arn = fresh.import_model(talkative, "talkative")
    body = json.dumps({"prompt": "for each", "max_tokens": 16_000, "ignore_eos": True})
    stream = iter(fresh.client("bedrock-runtime").invoke_model_with_response_stream(modelId=arn, body=body)["body"])
    next(stream)
    os.kill(fresh.status()["copies"][0]["pid"], signal.SIGKILL)

    with pytest.raises(ClientError) as broken:
        list(stream)
    assert broken.value.response["Error"]["Code"] == "modelStreamErrorException"


def test_copies_end_with_a_server_that_was_killed(fresh: Server, tiny: Path) -> None:
    arn = fresh.import_model(tiny, "tiny")
    generate(fresh, arn)
    pid = fresh.status()["copies"][0]["pid"]
    fresh.kill()

    wait_for(lambda: not is_alive(pid))
    fresh.start()
    generate(fresh, arn)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15, 0.3, 0.5, 0.8])
def test_an_import_survives_a_server_killed_at_any_moment(fresh: Server, tiny: Path, delay_s: float) -> None:
    uri = fresh.put(tiny, "tiny")
    arn = fresh.create_job(uri, "tiny")
    time.sleep(delay_s)
    fresh.kill()
    fresh.start()
    job = fresh.ended_job(arn)

    assert job["status"] == "Completed", job.get("failureMessage")
    generate(fresh, job["importedModelArn"])
    assert not list((fresh.home / "store" / "staging").iterdir())


def test_sigterm_lets_a_running_stream_end(fresh: Server, tiny: Path) -> None:
    arn = fresh.import_model(tiny, "tiny")
    body = json.dumps({"prompt": "for each", "max_gen_len": 300, "temperature": 0})
    stream = iter(fresh.client("bedrock-runtime").invoke_model_with_response_stream(modelId=arn, body=body)["body"])
    next(stream)
    assert fresh.process is not None
    fresh.process.terminate()

    chunks = [json.loads(event["chunk"]["bytes"]) for event in stream]
    assert chunks[-1]["stop_reason"] in ("length", "stop")
    assert fresh.stop() == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("size=200k", "The import needs 0.88 MB"),
        ("size=64m,nr_inodes=18", "The weight store has no space left"),
        ("size=64m,nr_inodes=23", "No space left on device"),
        ("ro", "Read-only file system"),
    ],
    ids=["too small", "full while transferring", "full while converting", "read-only"],
)
def test_a_store_that_cannot_be_written_fails_the_job_and_says_why(
    tmp_path: Path, tiny: Path, options: str, told: str
) -> None:
    server = Server(tmp_path / "home", store_mount=options, store_spare_bytes=0, cpu_threads=1).start()
    try:
        job = server.ended_job(server.create_job(server.put(tiny, "tiny"), "tiny"))

        assert job["status"] == "Failed"
        assert told in job["failureMessage"]
        assert str(server.home) in job["failureMessage"]
        assert not server.client("bedrock").list_imported_models()["modelSummaries"]
        assert not server.status()["copies"]
    finally:
        assert server.stop() == 0


def test_a_second_server_of_the_same_home_is_refused(fresh: Server) -> None:
    address = fresh.home / "run" / "server.json"
    told = address.read_bytes()
    with pytest.raises(AssertionError, match="another server uses OUTCROP_HOME"):
        Server(fresh.home).start()
    address.write_bytes(told)  # the test's own way of starting one takes it away


def test_everything_is_there_after_a_restart(fresh: Server, tmp_path: Path) -> None:
    arn = fresh.import_model(make_checkpoint(tmp_path / "other", seed=3), "kept")
    fresh.stop()
    fresh.start()

    assert fresh.client("bedrock").get_imported_model(modelIdentifier="kept")["modelArn"] == arn
    generate(fresh, arn)


def test_the_live_view_waits_for_a_server_that_restarts(fresh: Server) -> None:
    looks = follow(fresh.home, 0.1)
    assert not next(looks)[1]

    fresh.stop()
    before, missing = next(looks)
    assert "does not answer" in missing or "no server is running" in missing
    fresh.start()

    assert not next(looks)[1]
    after, missing = next(looks)
    assert not missing
    assert after["at"] > before["at"]
