"""Tasks that run as long as the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any


def runs_until_closed(undo: contextlib.AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run *work* in a task of its own, which *undo* cancels and waits for."""
    undo.push_async_callback(_ended, asyncio.create_task(work, name=name))


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
