"""What a server claims before it starts: its home, and a socket of its own or one that is handed down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.server import HAND_OVER

from outcrop.api.claims import address, claimed, opened
from outcrop.errors import BadSetting
from outcrop.settings import Settings

SAYS = "from outcrop.api import claims; print(claims.address(claims.opened('127.0.0.1', 0)))"


def test_who_connects_before_the_server_is_up_waits(tmp_path: Path) -> None:
    with claimed(Settings(home=tmp_path, port=0)) as listener:
        with socket.create_connection(listener.getsockname()[:2], timeout=5) as caller:
            caller.sendall(b"x")
            accepted, _ = listener.accept()
            assert accepted.recv(1) == b"x"
            accepted.close()


def test_a_home_has_one_server_and_an_address_too(tmp_path: Path) -> None:
    with claimed(Settings(home=tmp_path / "one", port=0)) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(BadSetting, match="another server uses OUTCROP_HOME"),
            claimed(Settings(home=tmp_path / "one", port=0)),
        ):
            pass
        with (
            pytest.raises(BadSetting, match=f"cannot listen on 127.0.0.1:{port}.*OUTCROP_PORT"),
            claimed(Settings(home=tmp_path / "two", port=port)),
        ):
            pass


def test_an_address_is_written_as_in_a_url() -> None:
    with opened("127.0.0.1", 0) as four:
        assert address(four) == f"127.0.0.1:{four.getsockname()[1]}"
    six = SimpleNamespace(getsockname=lambda: ("::1", 7070, 0, 0))
    assert address(six) == "[::1]:7070"  # type: ignore[arg-type]


def test_a_socket_that_is_handed_down_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert handed(held) == (0, f"127.0.0.1:{held.getsockname()[1]}")


@pytest.mark.parametrize(
    ("count", "is_listening", "told"), [(1, False, "no listening TCP socket"), (2, True, "LISTEN_FDS='2'")]
)
def test_one_that_cannot_be_used_stops_the_start_and_says_why(count: int, is_listening: bool, told: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if is_listening:
            held.listen()
        status, said = handed(held, count)

    assert status != 0
    assert told in said


def test_variables_that_mean_another_process_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with opened("127.0.0.1", 0) as listener:
        assert listener.fileno() != 3
    assert "LISTEN_FDS" not in os.environ


def handed(held: socket.socket, count: int = 1) -> tuple[int, str]:
    """Status and last line of a process that opens its address with *held* handed down to it."""
    program = HAND_OVER.replace("'1'", f"'{count}'")
    argv = [sys.executable, "-c", program, str(held.fileno()), sys.executable, "-c", SAYS]
    ended = subprocess.run(argv, pass_fds=[held.fileno()], capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, (ended.stdout or ended.stderr).strip().splitlines()[-1]
