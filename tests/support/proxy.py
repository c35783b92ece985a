"""A proxy inside the test's event loop, with real worker processes, and a client to it."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from outcrop.proxy.pool import Pool
from outcrop.proxy.serve import running
from outcrop.proxy.settings import ProxySettings

ARN = "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdefghijkl"


class Proxied:
    """One running proxy."""

    def __init__(self, url: str, pool: Pool, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.pool = pool
        self.session = session

    async def post(self, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and answer of one invocation; the answer parsed when it is JSON."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kwargs: dict[str, Any] = {"json": body} if not isinstance(body, bytes | str) else {"data": body}
        if "json" not in kwargs and "content-type" not in named:
            named["content-type"] = "application/json"
        async with self.session.post(f"{self.url}/invocations", headers=named, **kwargs) as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, (await response.read()).decode()

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()


@contextlib.asynccontextmanager
async def proxied(
    folder: Path, script: str | None, url: str, *, name: str = "model.py", **settings: Any
) -> AsyncIterator[Proxied]:
    """A proxy over a bundle in *folder* that holds *script*; one worker unless said otherwise."""
    if script is not None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(script))
    chosen = ProxySettings(
        model_dir=folder,
        endpoint_url=url,
        **{"target": ARN, "region": "us-east-1", "host": "127.0.0.1", "port": 0, "workers": 1, **settings},
    )
    async with running(chosen) as (base, pool):
        await pool.settled.wait()
        async with aiohttp.ClientSession() as session:
            yield Proxied(base, pool, session)
