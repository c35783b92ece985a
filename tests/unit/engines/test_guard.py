"""An engine that asks for no key, behind a door that does: real processes, real network namespaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from tests.support.copies import UnixConnection, asked
from tests.support.server import wait_for
from tests.unit.engines.test_gpu_engines import H100S, OPTIONS

from outcrop.engines import copy_socket
from outcrop.engines.base import Endpoint
from outcrop.engines.custom_child import ChildConfig
from outcrop.engines.tensorrt_llm import TensorRTLLM
from outcrop.inference.canonical import GenerateRequest

KEY = "k3y"
# Writes its port down, then is an engine that answers whoever comes.
ENGINE = (
    "import pathlib, runpy, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2]); sys.argv[1:] = sys.argv[2:];"
    " runpy.run_module('tests.support.openai_engine', run_name='__main__')"
)


@contextmanager
def copy(folder: Path, prefix: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, object]]]:
    """The process of a guarded copy, and what it announced."""
    argv = [sys.executable, "-c", ENGINE, str(folder / "port"), "{port}", str(folder / "asked")]
    config = ChildConfig(argv=argv, secret=KEY, is_guarded=True)
    door = folder / "door.sock"
    here = os.open(folder, os.O_DIRECTORY)  # pytest's folders have names that are too long for a socket
    process = subprocess.Popen(
        [*prefix, sys.executable, "-P", "-m", "outcrop.engines.custom_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        pass_fds=(here,),
        env={
            **os.environ,
            copy_socket.VARIABLE: f"/proc/self/fd/{here}/{door.name}",
            "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(config) + b"\n")
        process.stdin.flush()
        yield process, json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
        os.close(here)


async def test_only_who_bears_the_key_reaches_an_engine_that_asks_for_none(tmp_path: Path) -> None:
    with copy(tmp_path) as (_, announced):
        engine, endpoint = TensorRTLLM(OPTIONS, H100S, request_timeout_s=5), Endpoint(str(announced["url"]), KEY)
        try:
            while not await engine.is_ready(endpoint):
                pass
            answer = await engine.complete(endpoint, GenerateRequest("completion", {"prompt": "x"}))
            stream = engine.stream(endpoint, GenerateRequest("chat", {"messages": [], "stream": True}))
            pieces = [chunk.text async for chunks in stream for chunk in chunks]
        finally:
            await engine.aclose()

        assert answer.choices[0].text == "".join(pieces) == "0 images"
        short = Path(copy_socket.split(str(announced["url"]))[0])
        found = {key: asked(UnixConnection(short), "GET", "/health", key)[0] for key in (None, KEY + "x", KEY)}
        assert found == {None: 401, KEY + "x": 401, KEY: 200}
        inner = int((tmp_path / "port").read_text())
        with socket.socket() as stranger:
            assert stranger.connect_ex(("127.0.0.1", inner)) != 0, "the engine itself cannot be reached"


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    with copy(tmp_path) as (process, announced):
        assert "url" in announced
        wait_for((tmp_path / "port").exists)
        group = process.pid
    wait_for(lambda: not _has_members(group))


def test_where_it_cannot_have_a_network_of_its_own_it_does_not_start_and_says_what_would_help(tmp_path: Path) -> None:
    forbids = ("unshare", "-U", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_net_namespaces && exec "$@"', "sh")
    with copy(tmp_path, forbids) as (_, announced):
        assert "every user of this machine could ask it" in str(announced["error"])
        assert "Allow user namespaces" in str(announced["error"])
    assert not (tmp_path / "port").exists()


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
