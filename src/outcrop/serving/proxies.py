"""Proxy containers as child processes of the server: started with a key of their own, watched, started again.

The command is ``outcrop proxy``; nothing more is known of it here than its settings and its ``/ping``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from outcrop.engines.http1 import Answer, Client
from outcrop.errors import EngineFault
from outcrop.ids import random_id
from outcrop.serving.invocation import Invocation
from outcrop.serving.lifecycle import State

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_STOP_S = 30.0
_FIRST_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 30.0
_STEADY_S = 60.0  # a proxy that ran so long does not count as one that keeps ending
_LOG_TAIL = 1500


def write_privately(path: Path, text: str) -> None:
    """Write *text* to a file that nobody else may read, whatever was there; a reader sees the old or the new whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{random_id(6)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.replace(path)


class ProxyProcess:
    """One copy of a variant: a proxy on loopback. *settings* are variables of ``outcrop proxy``.

    A proxy that ends is started again. *changed* is called at every change of its state.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, str],
        log_folder: Path,
        key_folder: Path,
        changed: Callable[[ProxyProcess], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.copy_id = f"px-{random_id(9)}"
        self.state = State.STARTING
        self.in_flight = 0
        self.requests = 0
        self.restarts = 0
        self.born_at = time.monotonic()
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        self._changed = changed
        self._settings = settings
        self.log_file = log_folder / f"{name}-{self.copy_id}.log"
        self._key_file = key_folder / f"{self.copy_id}.key"
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self.state is State.READY

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def send(self, client: Client, asked: Invocation) -> Answer:
        """See ``Answerer``."""
        lines = f"Authorization: Bearer {self.key}\r\n{asked.lines()}"
        return await client.send("POST", self.url, "/invocations", head=lines, body=asked.body)

    def becomes(self, state: State) -> None:
        if state is not self.state and self.state is not State.STOPPED:
            self.state = state
            self._changed(self)

    async def start(self, client: Client, timeout_s: float) -> None:
        """Start it and wait for its ping. Raises EngineFault with the end of its log."""
        self._changed(self)
        try:
            await self._spawn()
        except BaseException:
            self.becomes(State.STOPPED)
            raise
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_ready(client)
        except BaseException as exc:
            await self.stop(0)
            if isinstance(exc, TimeoutError):
                raise EngineFault(f"The proxy of {self.name} was not ready within {timeout_s:g} s.") from exc
            raise
        self.becomes(State.READY)
        self._watch = asyncio.create_task(self._keep(client, timeout_s), name=f"proxy {self.name}")

    async def _spawn(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        own = {"OUTCROP_PROXY_HOST": "127.0.0.1", "OUTCROP_PROXY_PORT": str(port)}
        # Its script and whatever that starts inherit the environment, so the key is not there.
        write_privately(self._key_file, self.key)
        own["OUTCROP_PROXY_KEY_FILE"] = str(self._key_file)
        own["OUTCROP_PROXY_ENDS_WITH_PARENT"] = "true"  # a killed server leaves no proxy behind
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "LANG", "TZ") if name in os.environ}
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "outcrop.cli.main", "proxy"],
                env={**kept, **self._settings, **own},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    async def _until_ready(self, client: Client) -> None:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise EngineFault(f"The proxy of {self.name} ended at once: {self._last_words()}")
            with contextlib.suppress(OSError, TimeoutError):
                answer = await client.send("GET", self.url, "/ping", head="")
                try:
                    await answer.read()
                    if answer.status == 200:
                        return
                finally:
                    answer.close()
            await asyncio.sleep(_POLL_S)

    async def _keep(self, client: Client, timeout_s: float) -> None:
        """Start it again whenever it ends; one that keeps ending waits longer each time."""
        pause_s = _FIRST_BACK_OFF_S
        while True:
            assert self._process is not None
            up_since = time.monotonic()
            await self._process.wait()
            self.becomes(State.STARTING)
            self.restarts += 1
            log.error("a proxy ended; it is started again", proxy=self.name, status=self._process.returncode)
            if time.monotonic() - up_since > _STEADY_S:
                pause_s = _FIRST_BACK_OFF_S
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_BACK_OFF_S, pause_s * 2)
            try:
                await self._spawn()
                async with asyncio.timeout(timeout_s):
                    await self._until_ready(client)
            except (EngineFault, OSError, TimeoutError) as exc:
                log.error("a proxy does not come back; it is tried again", proxy=self.name, reason=str(exc))
                if self._process.returncode is None:
                    self._process.kill()
                continue
            self.becomes(State.READY)

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(errors="replace")[-_LOG_TAIL:].strip().splitlines()
        except OSError:
            return "it left no log"
        return " / ".join(lines[-3:]) or "it left no log"

    async def stop(self, grace_s: float = _STOP_S) -> None:
        """End it; invocations that run get *grace_s*."""
        self.becomes(State.DRAINING)
        try:
            await self._stop(grace_s)
        finally:
            self._key_file.unlink(missing_ok=True)
            self.becomes(State.STOPPED)

    async def _stop(self, grace_s: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), grace_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
