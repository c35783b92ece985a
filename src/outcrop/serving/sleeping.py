"""The tier between ready and gone: a copy gives its GPUs up and keeps its process, so that it is back in seconds.

Only engines that can do it; a copy sleeps instead of being evicted, when the node has the memory for what it keeps.
Before it sleeps it is asked a short fixed question, and again when it wakes: one that answers otherwise, with garbage
or not at all is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from outcrop.engines.base import Asleep, Engine
from outcrop.errors import EngineFault
from outcrop.inference.canonical import Completion, GenerateRequest
from outcrop.serving import proof
from outcrop.serving.copies import Copy
from outcrop.serving.starts import SLOWEST_READ_BYTES_PER_S

log = structlog.get_logger(__name__)

SLEEP_DEADLINE_S = 60.0  # weights to RAM: some 20 GB/s were seen, so this is generous
WAKE_DEADLINE_S = 60.0  # beside the time to read the weights again, where they were dropped
POLL_S = 0.01
CANARY = GenerateRequest("completion", {"prompt": proof.PROMPTS[0], "max_tokens": 4, "temperature": 0, "logprobs": 1})


class Sleeping:
    """Puts copies to sleep and wakes them. Times are seconds on *clock*."""

    def __init__(self, engines: Mapping[str, Engine], clock: Callable[[], float]) -> None:
        self._engines = engines
        self._clock = clock

    def ways(self, copy: Copy) -> Sequence[Asleep]:
        """How *copy* could sleep, the soonest to wake first; nothing when its engine cannot."""
        return self._engines[copy.spec.engine].asleep(copy.spec)

    async def put(self, copy: Copy, way: Asleep) -> None:
        """Let *copy* sleep; from then on it takes what *way* says. Raises EngineFault, EngineTimeout."""
        assert copy.endpoint is not None
        engine = self._engines[copy.spec.engine]
        try:
            async with asyncio.timeout(SLEEP_DEADLINE_S):
                copy.canary = _beginning(await engine.complete(copy.endpoint, CANARY))
                await engine.sleep(copy.endpoint, way.level)
        except TimeoutError as exc:
            raise EngineFault(f"the copy was not asleep after {SLEEP_DEADLINE_S:g} s") from exc
        copy.spec, copy.sleep_level = way.spec, way.level

    async def wake(self, copy: Copy) -> float:
        """Bring *copy* back; the seconds that took. Raises EngineFault when it does not answer as it did before.

        Raises EngineTimeout when it says nothing at all.
        """
        assert copy.endpoint is not None
        engine, begun = self._engines[copy.spec.engine], self._clock()
        read_bytes = copy.spec.model.weight_bytes if copy.sleep_level > 1 else 0
        deadline_s = WAKE_DEADLINE_S + read_bytes / SLOWEST_READ_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline_s):
                await engine.wake(copy.endpoint, copy.sleep_level)
                while not await engine.is_ready(copy.endpoint):
                    await asyncio.sleep(POLL_S)
                answer = await engine.complete(copy.endpoint, CANARY)
        except TimeoutError as exc:
            raise EngineFault(f"the copy was not awake after {deadline_s:g} s") from exc
        said = _beginning(answer)
        if proof.is_not_finite(answer) or said != copy.canary:
            raise EngineFault("the copy answers otherwise since it was asleep")
        copy.sleep_level = 0
        return self._clock() - begun


def _beginning(answer: Completion) -> str:
    """The first word of an answer: later ones may differ where two tokens are nearly as likely."""
    text = answer.choices[0].text if answer.choices else ""
    return text.split()[0] if text.split() else ""
