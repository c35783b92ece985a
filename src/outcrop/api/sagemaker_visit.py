"""One invocation of an endpoint: to a copy, to another when its connection breaks, to its record and capture."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from outcrop.api.generation import Measured
from outcrop.api.http import Response
from outcrop.serving.data_capture import DataCapture
from outcrop.serving.endpoints import Endpoints, Lent
from outcrop.serving.invocation import JSON, Answerer, Invocation, Reply
from outcrop.serving.rollout import Endpoint, Fleet
from outcrop.serving.shadows import Shadows
from outcrop.serving.variants import Variant

_DEFAULT_TIMEOUT_S = 60.0
_ATTEMPTS = 2  # a copy whose connection breaks before it says anything costs the caller nothing: another one answers
_MESSAGE_BYTES = 8_192  # of a container's answer that a ModelError repeats


@dataclass(frozen=True, slots=True)
class Callees:
    """What an invocation reaches."""

    endpoints: Endpoints
    capture: DataCapture
    shadows: Shadows


class Visit:
    """One invocation from the choice of its copy to its record. *deadline*: on the event loop's clock."""

    def __init__(self, callees: Callees, endpoint: Endpoint, asked: Invocation, measured: Measured) -> None:
        self._callees = callees
        self._endpoints = callees.endpoints
        self.endpoint = endpoint
        self.asked = asked
        self.measured = measured
        self.deadline = 0.0
        self.variant: Variant | None = None
        self._config: Mapping[str, Any] | None = None  # of the data capture, when this one is captured
        self._fleet: Fleet = endpoint.fleet

    @property
    def is_captured(self) -> bool:
        return self._config is not None

    async def begun(self, stack: AsyncExitStack, target: str | None, sticky: str | None) -> tuple[Lent, Reply]:
        """A copy and the head of its answer, both given back with *stack*. Raises OSError and TimeoutError."""
        tried: list[Answerer] = []
        while True:
            async with AsyncExitStack() as attempt:
                lent = await attempt.enter_async_context(self._endpoints.lent(self.endpoint, target, sticky, tried))
                self._chose(lent.variant)
                self.measured.asks(is_cold=False)
                self.measured.placed(lent.copy.copy_id, 0.0, None)
                attempt.callback(self.measured.left)
                try:
                    async with asyncio.timeout_at(self.deadline):
                        reply = await lent.copy.send(self._endpoints.client, self.asked)
                except ConnectionError:
                    tried.append(lent.copy)
                    if len(tried) < _ATTEMPTS and any(c.is_ready for c in lent.variant.copies if c not in tried):
                        continue
                    raise
                attempt.callback(reply.close)
                stack.push_async_exit(attempt.pop_all())
                return lent, reply

    def _chose(self, variant: Variant) -> None:
        coming = self.endpoint.coming
        is_new = coming is not None and any(each is variant for each in coming.variants)
        self._fleet = coming if coming is not None and is_new else self.endpoint.fleet
        if self.variant is None:
            self.deadline = asyncio.get_running_loop().time() + _timeout_s(variant)
            capture = self._fleet.capture
            self._config = capture if self._callees.capture.wants(capture) else None
        self.variant = variant

    def ended(self, status: int, content_type: str, body: bytes) -> None:
        """The container's answer is whole: record, capture, and copy the request to the shadows."""
        measured = self.measured
        measured.left()
        if status < 400:
            measured.answered(None)
        self._tell(status)
        variant = self.variant
        assert variant is not None
        self._captured(variant, content_type, body)
        if self._fleet.shadows:
            self._callees.shadows.send(self.endpoint, self._fleet, self.asked, variant.weight, self._shadow_answered)

    def _shadow_answered(self, shadow: Variant, status: int, content_type: str, body: bytes) -> None:
        self._captured(shadow, content_type, body)

    def _captured(self, variant: Variant, content_type: str, body: bytes) -> None:
        if self._config is not None:
            self._callees.capture.note(
                self._config,
                self.endpoint.name,
                variant.name,
                request=(self.asked.content_type, self.asked.body),
                answer=(content_type, body),
                inference_id=self.asked.passed.get("x-amzn-sagemaker-inference-id", ""),
                attributes=self.asked.passed.get("x-amzn-sagemaker-custom-attributes", ""),
            )

    def _tell(self, status: int) -> None:
        now_s = self.measured.elapsed()
        model_s = self.measured.spent(now_s)[2]
        if self.variant is not None:
            tell(self._endpoints, self.endpoint, self.variant, status, model_s, now_s - model_s)

    # -- what a caller is told instead ----------------------------------------------------------------

    def refused(self, status: int, body: bytes) -> Response:
        """The container's own refusal."""
        said = body[:_MESSAGE_BYTES].decode(errors="replace")
        whose = "client" if status < 500 else "server"
        message = (
            f'Received {whose} error ({status}) from primary with message "{said}". See the log of endpoint '
            f"{self.endpoint.name} in account {self.endpoint.account} for more information."
        )
        self.ended(status, JSON, body)
        return self._error("ModelError", 424, message, status, OriginalStatusCode=status, OriginalMessage=said)

    def timed_out(self) -> Response:
        message = (
            'Received server error (0) from primary with message "Your invocation timed out while waiting for a '
            "response from container primary. Review the latency metrics for each container, resolve the issue, and "
            'try again."'
        )
        self._tell(500)
        return self._error("ModelError", 424, message, 500, OriginalStatusCode=0, OriginalMessage="timed out")

    def unreachable(self, exc: OSError) -> Response:
        self._tell(500)
        message = f"The container is not reachable: {exc}. It is started again; try again later."
        return self._error("ServiceUnavailable", 503, message, 500)

    def _error(self, code: str, status: int, message: str, container: int, **more: Any) -> Response:
        self.measured.outcome, self.measured.status = code, status
        self.measured.blame = "client" if container < 500 else "server"
        headers = [("content-type", JSON), ("x-amzn-errortype", code)]
        return Response(status, headers, msgspec.json.encode({"Message": message, **more}))

    def broke(self, code: str) -> None:
        """An open stream ended before its end."""
        self._tell(500)
        self.measured.outcome, self.measured.status, self.measured.blame = code, 200, "server"


def tell(
    endpoints: Endpoints, endpoint: Endpoint, variant: Variant, status: int, model_s: float, overhead_s: float
) -> None:
    """Add one answer of a container to what alarms see."""
    overhead_s = max(0.0, overhead_s)
    endpoints.watch.note(endpoint.account, endpoint.name, variant.name, status, model_s=model_s, overhead_s=overhead_s)


def _timeout_s(variant: Variant) -> float:
    seconds = variant.environment.get("SAGEMAKER_MODEL_SERVER_TIMEOUT", "")
    return float(seconds) + 1 if seconds.isdecimal() else _DEFAULT_TIMEOUT_S + 1
