"""What is known of one inference request: where its time went, who answered, what it waited for.

``RequestFacts`` is filled while the request runs, ``RequestRecord`` is what stays of it. Both hold names, numbers and
ids only; an error is kept by its name, since its message may repeat what the caller sent.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Any, Literal

from msgspec import Struct

from outcrop.errors import Passing, Refused, ShuttingDown
from outcrop.inference.canonical import Usage

Blame = Literal["", "throttled", "client", "server"]

# W3C Trace Context, level 1: version 00; a trace or span id of zeros only is invalid.
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Decision(Struct, frozen=True):
    """The scaling decision that ordered a copy, with what it saw. *at*: seconds since the epoch."""

    at: float
    current: int
    desired: int
    reason: str
    facts: dict[str, Any]


class ColdStart(Struct, frozen=True):
    """How a copy came to be. *at*: when it was ordered, in seconds since the epoch.

    *stages*: seconds by stage, in the order they happened; they add up to *total_s*, order to first ready answer.
    """

    copy_id: str
    tier: str
    at: float
    total_s: float
    stages: dict[str, float]
    decision: Decision | None = None


class Attempt(Struct):
    """One copy that was asked. Times in seconds since the request began; None where it did not come so far.

    *is_cold*: no copy was ready when it was asked for. *held_s*: how much of the wait for a slot passed until one was.
    """

    asked_s: float
    is_cold: bool = False
    copy_id: str = ""
    held_s: float = 0.0
    placed_s: float | None = None
    ended_s: float | None = None


class RequestRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request, after the fact or as far as it got. *at*: its beginning, in seconds since the epoch.

    *held_s*: no copy was ready. *queued_s*: copies were, their slots were taken. *engine_s*: with an engine.
    *first_token_s* counts from the beginning and is there for streams only; *decode_s*, first token to last as the
    engine says, for whole answers. *outcome*: ``ok``, ``cancelled``, the name of an error, or ``running``.
    *cold_start*: the start that the request waited for.
    """

    request_id: str
    at: float
    operation: str
    account: str
    principal: str
    outcome: str
    status: int = 0
    blame: Blame = ""
    model: str = ""
    model_id: str = ""
    is_stream: bool = False
    size_bytes: int = 0
    total_s: float = 0.0
    held_s: float = 0.0
    queued_s: float = 0.0
    engine_s: float = 0.0
    first_token_s: float | None = None
    decode_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    chunks: int = 0
    attempts: list[Attempt] = []
    cold_start: ColdStart | None = None
    invocation_id: str | None = None
    sdk_attempt: str | None = None
    traceparent: str | None = None

    @property
    def copy_id(self) -> str:
        """The copy that was asked last; empty when there was none."""
        return self.attempts[-1].copy_id if self.attempts else ""

    @property
    def retries(self) -> int:
        """Copies that broke before this request's first byte."""
        return max(0, len(self.attempts) - 1)


@dataclass(slots=True)
class RequestFacts:
    """One request while it runs. *started*: ``time.perf_counter`` at its first byte here; *at*: the same as epoch."""

    started: float
    request_id: str
    at: float
    operation: str = ""
    account: str = ""
    principal: str = ""
    size_bytes: int = 0
    invocation_id: str | None = None
    sdk_attempt: str | None = None
    traceparent: str | None = None
    model: str = ""
    model_id: str = ""
    is_stream: bool = False
    outcome: str = "cancelled"
    blame: Blame = ""
    status: int = 0
    first_byte_at: float | None = None
    ended_at: float | None = None
    chunks: int = 0
    usage: Usage | None = None
    decode_s: float | None = None
    cold_start: ColdStart | None = None
    attempts: list[Attempt] = field(default_factory=list)

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    # -- what happens to it, in this order -------------------------------------------------------------

    def of_model(self, name: str, model_id: str) -> None:
        self.model, self.model_id = name, model_id

    def asks(self, *, is_cold: bool) -> None:
        """A slot is wanted from now on; *is_cold*: no copy is ready."""
        self.attempts.append(Attempt(self.elapsed(), is_cold))

    def placed(self, copy_id: str, held_s: float, cold_start: ColdStart | None) -> None:
        """A slot of a copy was lent, after *held_s* seconds without a ready copy."""
        last = self.attempts[-1]
        last.copy_id, last.placed_s = copy_id, self.elapsed()
        last.held_s = min(held_s, last.placed_s - last.asked_s)
        self.cold_start = cold_start or self.cold_start

    def left(self) -> None:
        """The copy is done with, well or not."""
        if self.attempts and self.attempts[-1].ended_s is None:
            self.attempts[-1].ended_s = self.elapsed()

    def answered(self, usage: Usage | None, decode_s: float | None = None) -> None:
        """*decode_s*: what the engine says that generating took, first token to last, of a whole answer."""
        self.outcome, self.usage, self.status, self.decode_s = "ok", usage, 200, decode_s

    def replayed(self) -> None:
        """An earlier attempt's answer is given again: nothing was generated, nothing is metered."""
        self.outcome, self.status = "replayed", 200

    def failed(self, exc: BaseException, status: int = 200) -> None:
        """*status*: what the caller was told; 200 inside a stream that is open."""
        self.outcome, self.status = type(exc).__name__, status
        if isinstance(exc, Passing) and not isinstance(exc, ShuttingDown):
            self.blame = "throttled"
        else:
            self.blame = "client" if isinstance(exc, Refused) else "server"

    # -- what it amounts to ----------------------------------------------------------------------------

    def spent(self, now_s: float) -> tuple[float, float, float]:
        """Seconds held, queued and with engines, of the *now_s* since the request began."""
        held_s = waited_s = engine_s = 0.0
        for attempt in self.attempts:
            ended_s = now_s if attempt.ended_s is None else attempt.ended_s
            if attempt.placed_s is None:
                waited_s += ended_s - attempt.asked_s
                held_s += ended_s - attempt.asked_s if attempt.is_cold else 0.0
            else:
                waited_s += attempt.placed_s - attempt.asked_s
                held_s += attempt.held_s
                engine_s += ended_s - attempt.placed_s
        return held_s, max(0.0, waited_s - held_s), engine_s

    def gateway_ms(self) -> float:
        """What this server added so far: all but waiting for a copy and for the engine."""
        now_s = self.elapsed()
        return (now_s - sum(self.spent(now_s))) * 1000

    def record(self) -> RequestRecord:
        """What stays of it, or what is known so far."""
        total_s = (self.ended_at or time.perf_counter()) - self.started
        held_s, queued_s, engine_s = self.spent(total_s)
        usage, first = self.usage, self.first_byte_at
        return RequestRecord(
            request_id=self.request_id,
            at=self.at,
            operation=self.operation,
            account=self.account,
            principal=self.principal,
            outcome="running" if self.ended_at is None else self.outcome,
            status=self.status,
            blame=self.blame,
            model=self.model,
            model_id=self.model_id,
            is_stream=self.is_stream,
            size_bytes=self.size_bytes,
            total_s=total_s,
            held_s=held_s,
            queued_s=queued_s,
            engine_s=engine_s,
            first_token_s=None if first is None else first - self.started,
            decode_s=self.decode_s,
            input_tokens=None if usage is None else usage.prompt_tokens,
            output_tokens=None if usage is None else usage.completion_tokens,
            chunks=self.chunks,
            attempts=self.attempts,
            cold_start=self.cold_start,
            invocation_id=self.invocation_id,
            sdk_attempt=self.sdk_attempt,
            traceparent=self.traceparent,
        )

    def headers(self) -> list[tuple[str, str]]:
        """``x-outcrop-timing`` and ``x-outcrop-cold-start``, in the syntax of Server-Timing: milliseconds."""
        now_s = self.elapsed()
        held_s, queued_s, _ = self.spent(now_s)
        parts = [f"held;dur={held_s * 1e3:.3f}", f"queued;dur={queued_s * 1e3:.3f}"]
        if self.first_byte_at is not None:
            parts.append(f"first-token;dur={(self.first_byte_at - self.started) * 1e3:.3f}")
        parts.append(f"total;dur={now_s * 1e3:.3f}")
        return [("x-outcrop-timing", ", ".join(parts)), ("x-outcrop-cold-start", self._cold_start())]

    def _cold_start(self) -> str:
        start = self.cold_start
        if start is not None:
            stages = [f"{stage};dur={seconds * 1e3:.3f}" for stage, seconds in start.stages.items()]
            return ", ".join([f"{start.tier};dur={start.total_s * 1e3:.3f}", *stages])
        last = self.attempts[-1] if self.attempts else None
        return "pending" if last is not None and last.is_cold and last.placed_s is None else "none"


def traceparent(value: str | None) -> str | None:
    """The caller's ``traceparent`` when it is one, else None, as the recommendation says."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None
