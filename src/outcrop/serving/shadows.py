"""Copies of requests to shadow variants: once the caller has the answer, on slots of their own, the first to go."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable

from outcrop.errors import ServiceError
from outcrop.serving.background import Background
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.invocation import JSON, Invocation
from outcrop.serving.rollout import Endpoint, Fleet
from outcrop.serving.traffic import is_shadowed
from outcrop.serving.variants import Variant

AT_A_TIME = 32
TIMEOUT_S = 60.0

# A shadow's answer: the variant, status, content type, body.
Answered = Callable[[Variant, int, str, bytes], None]


class Shadows:
    """One server's copied requests. Over AT_A_TIME at a time they are dropped and counted."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._background = Background()
        self._running = 0
        self.dropped = 0

    def send(self, endpoint: Endpoint, fleet: Fleet, asked: Invocation, weight: float, answered: Answered) -> None:
        """Begin to ask the shadows of *fleet* what a variant of *weight* has answered. Returns at once."""
        for shadow in fleet.shadows:
            if not is_shadowed(shadow.weight, weight, random.random()):  # noqa: S311  (a sample)
                continue
            if self._running >= AT_A_TIME:
                self.dropped += 1
                continue
            self._running += 1
            self._background.spawn(self._ask(endpoint, shadow, asked, answered), f"shadow of {endpoint.name}")

    async def _ask(self, endpoint: Endpoint, shadow: Variant, asked: Invocation, answered: Answered) -> None:
        begun = time.monotonic()
        status, content_type, body = 500, JSON, b""
        try:
            with contextlib.suppress(OSError, TimeoutError, ServiceError):
                async with asyncio.timeout(TIMEOUT_S), self._endpoints.counted(endpoint, shadow) as copy:
                    reply = await copy.send(self._endpoints.client, asked)
                    try:
                        body = b"".join([part async for part in reply.parts()])
                        status, content_type = reply.status, reply.headers().get("content-type", JSON)
                    finally:
                        reply.close()
            took_s = time.monotonic() - begun
            self._endpoints.watch.note(
                endpoint.account, endpoint.name, shadow.name, status, model_s=took_s, overhead_s=0.0
            )
            answered(shadow, status, content_type, body)
        finally:
            self._running -= 1

    async def close(self) -> None:
        await self._background.close()
