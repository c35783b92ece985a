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
from collections.abc import Mapping
from pathlib import Path

import structlog

from outcrop.engines.http1 import Client
from outcrop.errors import EngineFault

log = structlog.get_logger(__name__)

_POLL_S = 0.1
_STOP_S = 30.0
_LONGEST_BACK_OFF_S = 30.0
_LOG_TAIL = 1500


def write_privately(path: Path, text: str) -> None:
    """Write *text* to a file that nobody else may read, whatever was there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


class ProxyProcess:
    """One proxy on loopback. *settings* are variables of ``outcrop proxy``; a proxy that ends is started again."""

    def __init__(self, name: str, settings: Mapping[str, str], log_file: Path) -> None:
        self.name = name
        self.key = secrets.token_urlsafe(24)
        self.url = ""
        self._settings = settings
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self, client: Client, timeout_s: float) -> None:
        """Start it and wait for its ping. Raises EngineFault with the end of its log."""
        await self._spawn()
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_ready(client)
        except BaseException as exc:
            await self.stop(0)
            if isinstance(exc, TimeoutError):
                raise EngineFault(f"The proxy of {self.name} was not ready within {timeout_s:g} s.") from exc
            raise
        self._watch = asyncio.create_task(self._keep(client, timeout_s), name=f"proxy {self.name}")

    async def _spawn(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        own = {"OUTCROP_PROXY_HOST": "127.0.0.1", "OUTCROP_PROXY_PORT": str(port)}
        # Its script and whatever that starts inherit the environment, so the key is not there.
        key_file = self._log_file.with_name("proxy.key")
        write_privately(key_file, self.key)
        own["OUTCROP_PROXY_KEY_FILE"] = str(key_file)
        own["OUTCROP_PROXY_ENDS_WITH_PARENT"] = "true"  # a killed server leaves no proxy behind
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH", "LANG", "TZ") if name in os.environ}
        with self._log_file.open("ab") as out:
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
        """Start it again whenever it ends."""
        pause_s = 0.5
        while True:
            assert self._process is not None
            await self._process.wait()
            log.error("a proxy ended; it is started again", proxy=self.name, status=self._process.returncode)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_BACK_OFF_S, pause_s * 2)
            await self._spawn()
            with contextlib.suppress(EngineFault, TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._until_ready(client)
                pause_s = 0.5

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_text(errors="replace")[-_LOG_TAIL:].strip().splitlines()
        except OSError:
            return "it left no log"
        return " / ".join(lines[-3:]) or "it left no log"

    async def stop(self, grace_s: float = _STOP_S) -> None:
        """End it; invocations that run get *grace_s*."""
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
