"""Mixed load for a while: what the server holds must not grow. ``make soak`` runs 20 minutes, ``make test`` a slice."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.checkpoints import make_checkpoint
from tests.support.load import BODY, Load
from tests.support.server import Server, wait_for

SOAK_S = float(os.environ.get("OUTCROP_TEST_SOAK_S", "10"))
LOOKS = 24
WATCHED = {
    "rss_mb": "process_resident_memory_bytes",
    "fds": "process_open_fds",
    "tasks": "outcrop_tasks",
    "live": "outcrop_requests_live",
}
Look = dict[str, float]


def look(server: Server) -> Look:
    request = urllib.request.Request(
        server.url + "/metrics", headers={"Authorization": f"Bearer {server.credentials.bearer_key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        lines = response.read().decode().splitlines()
    # A label's value may hold a space; what is watched has no labels.
    found = {
        name: float(value) for name, _, value in (line.partition(" ") for line in lines) if name in WATCHED.values()
    }
    return {short: found[name] / (1e6 if short == "rss_mb" else 1) for short, name in WATCHED.items()}


def hang_up(server: Server, stop: threading.Event) -> None:
    """Clients that leave in the middle of a stream, and ones whose request is refused."""
    parts = urlsplit(server.url)
    headers = {"Authorization": f"Bearer {server.credentials.bearer_key}", "Content-Type": "application/json"}
    bodies = [
        {"model": "steady", "prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True},
        {"model": "nobody", "prompt": "x"},
        {"model": "steady", "max_tokens": -1},
    ]
    number = 0
    while not stop.wait(0.2):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", json.dumps(bodies[number % 3]), headers)
            connection.getresponse().read(20)
        except OSError:
            pass  # the copy that answered was killed
        finally:
            connection.close()
        number += 1


def come_and_go(server: Server, folder: Path, stop: threading.Event) -> None:
    """Copies that die, models that come and go, aliases that move, configurations that change."""
    number = 0
    while not stop.wait(max(2.0, SOAK_S / 100)):
        number += 1
        for copy in server.status()["copies"]:
            if copy["pid"] and copy["state"] == "ready":
                os.kill(copy["pid"], signal.SIGKILL)
                break
        name = f"passing-{number}"
        checkpoint = make_checkpoint(folder / name, seed=number)
        arn = server.import_model(checkpoint, name)
        server.client("bedrock-runtime", attempts=3).invoke_model(
            modelId=arn, body=json.dumps({**BODY, "max_gen_len": 2})
        )
        server.client("bedrock").delete_imported_model(modelIdentifier=arn)


@pytest.mark.timeout(4000)
def test_memory_descriptors_and_tasks_stay_flat_under_mixed_load(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, slots=4, hold_queue_requests=64, log_level="warning").start()
    stop, looks, broke = threading.Event(), list[Look](), list[BaseException]()

    def guarded(work: object, *args: object) -> None:
        try:
            work(*args)  # type: ignore[operator]
        except BaseException as exc:
            broke.append(exc)

    try:
        arn = server.import_model(tiny, "steady")
        others = [
            threading.Thread(target=guarded, args=(hang_up, server, stop)),
            threading.Thread(target=guarded, args=(come_and_go, server, tmp_path, stop)),
        ]
        with Load(server, [arn], closed=3, open_s=0.3, tokens=24) as load:
            for other in others:
                other.start()
            for _ in range(LOOKS):
                time.sleep(SOAK_S / LOOKS)
                looks.append(look(server))
            stop.set()
            for other in others:
                other.join(120)
        wait_for(lambda: look(server)["live"] == 0)
        at_rest = look(server)
    finally:
        stop.set()
        server.stop()

    third = LOOKS // 3
    early, late = looks[third : 2 * third], looks[2 * third :]
    for name in WATCHED:
        told = ", ".join(f"{each[name]:.1f}" for each in looks)
        sys.stdout.write(f"{name}: {told}; at rest {at_rest[name]:.1f}\n")
    sys.stdout.write(f"{load.total} requests answered, {len(load.broken)} streams cut by killed copies\n")
    assert not broke
    assert not load.failed
    assert load.total > SOAK_S
    # The last third beside the one before it: what leaks with every request would show in each of these.
    assert min(each["rss_mb"] for each in late) < 1.1 * max(each["rss_mb"] for each in early)
    assert min(each["fds"] for each in late) <= max(each["fds"] for each in early)
    assert min(each["tasks"] for each in late) <= max(each["tasks"] for each in early)
    assert at_rest["tasks"] <= min(each["tasks"] for each in looks)
