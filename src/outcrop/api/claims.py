"""What a server claims for itself before anything else is imported: its home and its socket.

Whoever calls while the server starts then waits in the kernel's queue instead of being refused: the retries of SDKs
span seconds, and so does a start. A socket that a process above this one holds (systemd's socket activation) is taken
instead. It outlives a killed server, so that a restart refuses nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from outcrop.errors import BadSetting
from outcrop.settings import Settings

BACKLOG = 1024
FIRST_INHERITED = 3  # sd_listen_fds(3)


@contextlib.contextmanager
def claimed(settings: Settings) -> Iterator[socket.socket]:
    """The socket that the server listens on, its home made and locked, until the end of the block.

    Raises BadSetting when either cannot be used or is another server's.
    """
    _prepare(settings.home)
    with _only_server_of(settings.home), contextlib.closing(opened(settings.host, settings.port)) as listener:
        yield listener


def opened(host: str, port: int, setting: str = "OUTCROP_PORT") -> socket.socket:
    """A listening socket: the one that was handed down, else one on *host* and *port* (0: a free one).

    Raises BadSetting when the address cannot be used (set it by *setting*), or when what was handed down is none that
    this server can use.
    """
    handed = handed_down()
    if handed is not None:
        return handed
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as exc:
        raise BadSetting(f"cannot listen on {host}:{port}: {exc}. Choose another {setting} (0: any).") from exc


def handed_down() -> socket.socket | None:
    """The socket that this process was started with, by systemd's protocol (LISTEN_PID, LISTEN_FDS); None without one.

    The variables are taken away, so that no child believes that they mean it.
    """
    meant_for, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()):
        return None
    if count != "1":
        raise BadSetting(f"LISTEN_FDS={count!r}: this server takes one socket. Give its unit one ListenStream.")
    try:
        found = socket.socket(fileno=FIRST_INHERITED)
        is_listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise BadSetting(f"LISTEN_FDS=1, but descriptor {FIRST_INHERITED} is no socket: {exc}.") from exc
    if not is_listening or found.family not in (socket.AF_INET, socket.AF_INET6):
        found.detach()
        raise BadSetting(
            f"descriptor {FIRST_INHERITED} is no listening TCP socket. Write ListenStream=127.0.0.1:7070 in the unit."
        )
    found.set_inheritable(False)
    return found


def address(listener: socket.socket) -> str:
    """``host:port`` under which the server is reached, as in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _prepare(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise BadSetting(f"cannot use OUTCROP_HOME={home}: {exc}") from exc


@contextlib.contextmanager
def _only_server_of(home: Path) -> Iterator[None]:
    """Hold the home's lock, so that no second server drives the same jobs and copies."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise BadSetting(f"another server uses OUTCROP_HOME={home}; stop it or choose another home.") from exc
        yield
