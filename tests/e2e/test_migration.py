"""Migrations under load: not one request fails, forwards and back, over kills of the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.load import Load
from tests.support.server import Server, wait_for
from tests.support.side import OtherService, aws_profiles, other_service


def command(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "outcrop.cli.main", "migrate", *arguments, "--home", str(server.home)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def start(server: Server, *arguments: str) -> None:
    found = command(server, "start", *arguments)
    assert found.returncode == 0, found.stderr


def told(server: Server, name: str) -> dict[str, Any]:
    return server.admin(f"/outcrop/v1/migrations/{name}")


def ended(server: Server, name: str, timeout_s: float = 60) -> dict[str, Any]:
    wait_for(lambda: told(server, name)["phase"] in ("completed", "rolled-back", "aborted"), timeout_s)
    return told(server, name)


def alias(server: Server, name: str) -> str | None:
    rows = server.admin("/outcrop/v1/aliases")["aliases"]
    return next((row["model_name"] for row in rows if row["alias"] == name), None)


def set_alias(server: Server, name: str, model: str) -> None:
    import urllib.request

    request = urllib.request.Request(
        f"{server.url}/outcrop/v1/aliases/{name}",
        json.dumps({"model": model}).encode(),
        {"Authorization": f"Bearer {server.credentials.bearer_key}"},
        method="PUT",
    )
    with urllib.request.urlopen(request, timeout=60):
        pass


def invoke(server: Server, name: str, body: dict[str, Any] | None = None) -> tuple[Any, str]:
    """The answer, and what its migration header says."""
    body = body or {"prompt": "for each", "temperature": 0, "max_gen_len": 4}
    found = server.client("bedrock-runtime").invoke_model(modelId=name, body=json.dumps(body))
    return json.loads(found["body"].read()), found["ResponseMetadata"]["HTTPHeaders"].get("x-outcrop-migration", "")


@pytest.fixture(scope="module")
def other() -> Iterator[OtherService]:
    with other_service() as service:
        yield service


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    """A server with the models ``old`` and ``new``, and keys for another service."""
    folder = tmp_path_factory.mktemp("migration")
    variables = aws_profiles(folder, elsewhere=("AKIAELSEWHERE", "s" * 40))
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    server = Server(folder / "home", cpu_threads=1, imports_in_parallel=2).start()
    server.import_model(tiny, "old")
    server.import_model(make_checkpoint(folder / "new", seed=7), "new")
    yield server
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(autouse=True)
def calm(other: OtherService) -> None:
    other.__dict__.update(refusal=None, delay_s=0.0, breaks=False, text="hello")


def remote(other: OtherService, kind: str = "bedrock") -> str:
    return f"{kind}:there@{other.url}?region=us-east-1&profile=elsewhere"


FAST = ("--hold-s", "1", "--min-requests", "5", "--agreement-drop", "1", "--p95-ratio", "100", "--p95-s", "60")


def test_an_alias_is_migrated_under_load_without_a_failed_request(two: Server) -> None:
    set_alias(two, "live", "old")
    with Load(two, ["live"]) as load:
        start(two, "live", "--from", "bedrock:old", "--to", "bedrock:new", "--steps", "shadow:50,10,50,100", *FAST)
        found = ended(two, "live")
        time.sleep(1)
    assert found["phase"] == "completed", found["reason"]
    assert (load.failed, load.broken) == ([], [])
    assert load.total > 20
    assert alias(two, "live") == "new"
    totals = found["totals"]
    assert totals["source"]["requests"] > 0
    assert totals["target"]["requests"] >= 10
    assert totals["target"]["shadows"] >= 5
    assert totals["target"]["failed"] == 0
    assert found["comparison"]["pairs"] >= 5
    assert [event["what"] for event in found["events"]][-1] == "completed: the target has taken over"
    assert found["rows"]
    # Whoever was answered by which side, the answer said so.
    assert invoke(two, "live")[1] == ""


def test_a_target_that_begins_to_fail_is_rolled_back_within_seconds_and_no_request_fails(
    two: Server, other: OtherService
) -> None:
    set_alias(two, "risky", "old")
    with Load(two, ["risky"]) as load:
        start(two, "risky", "--from", "bedrock:old", "--to", remote(other), "--steps", "50@300,100", *FAST)
        wait_for(lambda: told(two, "risky")["totals"]["target"]["requests"] > 5, 30)
        other.refusal = (500, "InternalServerException")
        found = ended(two, "risky")  # long before the step is over
        time.sleep(1)
    assert found["phase"] == "rolled-back"
    assert (load.failed, load.broken) == ([], [])
    assert found["evidence"][0]["guard"] == "error_rate"
    assert "InternalServerException" in found["evidence"][0]["said"]
    assert found["totals"]["target"]["fallbacks"]["InternalServerException"] >= 1
    assert alias(two, "risky") == "old"
    asked = len(other.requests)
    assert invoke(two, "risky")[1] == ""
    assert len(other.requests) == asked
    assert command(two, "status", "risky").returncode == 6
    page = two.home / "risky.html"
    assert command(two, "report", "risky", "-o", str(page)).returncode == 0
    assert page.read_text().count("<svg") >= 4
    assert "InternalServerException" in page.read_text()


@pytest.mark.parametrize("moment", ["warming", "running", "paused", "completing"])
def test_a_killed_server_goes_on_with_the_migration(
    tmp_path: Path, tiny: Path, other: OtherService, moment: str
) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, imports_in_parallel=2).start()
    try:
        server.import_model(tiny, "old")
        server.import_model(make_checkpoint(tmp_path / "new", seed=7), "new")
        set_alias(server, "live", "old")
        steps = "50@2,100@0" if moment != "completing" else "50@0,100@0"
        start(
            server,
            "live",
            "--from",
            "bedrock:old",
            "--to",
            "bedrock:new",
            "--steps",
            steps,
            *FAST,
            "--min-requests",
            "2",
        )
        if moment == "paused":
            wait_for(lambda: told(server, "live")["phase"] == "running", 30)
            assert command(server, "pause", "live").returncode == 0
        elif moment == "running":
            wait_for(lambda: told(server, "live")["phase"] == "running", 30)
            invoke(server, "live")
        elif moment == "completing":
            wait_for(
                lambda: (invoke(server, "live"), told(server, "live")["phase"] in ("completing", "completed"))[1], 30
            )
        server.kill()
        server.start()
        found = told(server, "live")
        if moment == "paused":
            assert found["phase"] == "paused"
            assert command(server, "resume", "live").returncode == 0
        with Load(server, ["live"], closed=1, open_s=None) as load:
            found = ended(server, "live")
        assert found["phase"] == "completed", found["reason"]
        assert (load.failed, load.broken) == ([], [])
        assert alias(server, "live") == "new"
    finally:
        server.stop()
