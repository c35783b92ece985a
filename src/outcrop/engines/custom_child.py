"""The parent of one custom engine: ``python -m outcrop.engines.custom_child``.

It stands between the server and a command that knows nothing of Outcrop: reads one line of JSON (``ChildConfig``) from
standard input, starts the command in this process group, announces ``{"url": "..."}`` on standard output, and ends the
whole group when standard input closes, which it does by whatever death of the server. The command listens on the copy's
Unix socket, or on a free port of loopback, where others of the machine reach it unless it is guarded.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import msgspec

from outcrop.engines import copy_socket

_GRACE_S = 4.0  # less than the launcher's own, so that the group is gone when it looks


class ChildConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The line on standard input; ``{socket}`` or ``{port}`` in *argv* is still to be filled in.

    *environment*: variables of the command beside those of this process. *links*: symbolic links to make first, as
    path -> target. *is_guarded*: the command can listen on a port only, so it gets a network of its own, into which
    only connections with the key are let, by the socket (``guard``).
    """

    argv: list[str]
    secret: str
    environment: dict[str, str] = {}
    links: dict[str, str] = {}
    is_guarded: bool = False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _link(links: dict[str, str]) -> None:
    """Make *links*; each appears whole, since another copy may be using it."""
    for path, target in links.items():
        place = Path(path)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = place.with_name(f"{place.name}.{os.getpid()}")
        fresh.symlink_to(target)
        fresh.replace(place)


def _kill_group() -> None:
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _end(engine_pid: int) -> None:
    """Ask the engine to end; what it started besides is killed with this process, at the latest after the grace."""
    with suppress(ProcessLookupError):
        os.kill(engine_pid, signal.SIGTERM)
    timer = threading.Timer(_GRACE_S, _kill_group)
    timer.daemon = True
    timer.start()


def main() -> None:
    announce = os.dup(1)
    os.dup2(2, 1)  # what the engine prints must not reach the announcement
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the parent's to handle
    stdin = os.fdopen(os.dup(0), "rb", buffering=0)
    config = msgspec.json.decode(stdin.readline(), type=ChildConfig)
    keys = {"VLLM_API_KEY": config.secret, "OPENAI_API_KEY": config.secret}
    environment = {**os.environ, **config.environment, **keys}
    address = copy_socket.path()
    try:
        if config.is_guarded:
            from outcrop.engines.guard import isolate

            isolate()
        port = _free_port()
        _link(config.links)
        argv = [word.replace("{port}", str(port)).replace("{socket}", address) for word in config.argv]
        # The folder of the socket, by whose descriptor the path goes, is inherited on purpose.
        engine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environment, close_fds=False)
    except OSError as exc:
        os.write(announce, msgspec.json.encode({"error": f"cannot start {config.argv[0]}: {exc}"}) + b"\n")
        return
    is_ending = threading.Event()

    def end(*_: object) -> None:
        if not is_ending.is_set():
            is_ending.set()
            _end(engine.pid)

    def watch_parent() -> None:
        while stdin.read(4096):
            pass
        end()

    def watch_engine() -> None:
        status = engine.wait()
        if is_ending.is_set():
            _kill_group()
        os._exit(status % 256)

    signal.signal(signal.SIGTERM, end)
    for watch in (watch_parent, watch_engine):
        threading.Thread(target=watch, daemon=True).start()
    is_on_socket = config.is_guarded or any("{socket}" in word for word in config.argv)
    url = copy_socket.url(address) if is_on_socket else f"http://127.0.0.1:{port}"
    told = msgspec.json.encode({"url": url}) + b"\n"
    if not config.is_guarded:
        os.write(announce, told)
        os.close(announce)
        threading.Event().wait()
    else:
        import asyncio

        from outcrop.engines.guard import relay

        asyncio.run(relay(address, port, config.secret, lambda: os.write(announce, told)))


if __name__ == "__main__":
    main()
