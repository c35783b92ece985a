"""Who answers a request whose name is being migrated, and what is noted of it.

Fallback is only ever before the first byte: an answer, or the first part of a stream, is in hand before a byte goes to
the caller. What the other side is asked for comparison begins after the caller has its first byte (``shadows``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from outcrop.access.identities import Principal
from outcrop.api.http import Request, Response, Stream
from outcrop.api.migration import framing
from outcrop.api.migration.calls import Bound, Call, addressed, bound, call_of
from outcrop.api.migration.reading import Heard, Pieces, StreamFailed, read, response_id
from outcrop.api.migration.receipts import Receipts
from outcrop.api.migration.sides import Asked, Question, Sides, called
from outcrop.awswire.eventstream import BrokenFrame
from outcrop.errors import EngineFault, EngineMissing, ModelNotReady, NotAllowed, Refused, ServiceError
from outcrop.serving.migration.observe import Observation, Outcome, Role
from outcrop.serving.migration.runner import Live, Migrations
from outcrop.serving.migration.split import Caller, SideName
from outcrop.telemetry.recorder import Recorder

if TYPE_CHECKING:
    from outcrop.api.migration.shadows import Shadows

HEADER = "x-outcrop-migration"
GIVEN_UP_S = 5.0  # a caller that leaves sooner may have changed its mind
MOST_COMPARED_BYTES = 4 << 20  # of one answer; a longer one is given, and not compared
_OTHER: dict[SideName, SideName] = {"source": "target", "target": "source"}


Permit = Callable[[Request, str, str, Principal], None]  # (request, operation, name, caller): raises NotAllowed


def _refuse(request: Request, operation: str, name: str, principal: Principal) -> None:
    """Until somebody says who may."""
    raise NotAllowed("Nobody may call what is being migrated.")


class Splitter:
    """Finds the requests of migrations; one ``Split`` carries each through."""

    def __init__(
        self, migrations: Migrations, sides: Sides, recorder: Recorder, shadows: Callable[[Splitter], Shadows]
    ) -> None:
        self.migrations = migrations
        self.sides = sides
        self.recorder = recorder
        self.shadows = shadows(self)
        self.receipts = Receipts(migrations)
        self.permit: Permit = _refuse

    def split(self, request: Request, path: str, body: bytes, principal: Principal) -> Split | None:
        """None for a request that no migration concerns, which is nearly all of them."""
        if request.method != "POST" or not self.migrations.is_any:
            return None
        found = addressed(path)
        if found is None:
            return None
        (door, name), account = found, principal.account
        # A body is read here only where it may be one of a migration's.
        is_known = (
            self.migrations.has_door(account, door) if name is None else self.migrations.find(account, door, name)
        )
        call = call_of(door, name, path, body) if is_known else None
        live = None if call is None else self.migrations.find(account, call.door, call.name)
        return None if live is None or call is None else Split(self, live, call, request, principal)

    def observe(
        self,
        split: Split,
        asked: Asked,
        outcome: Outcome,
        role: Role,
        *,
        heard: Heard | None = None,
        seconds: float | None = None,
        error: str = "",
        fell_back: bool = False,
        excused: bool = False,
    ) -> None:
        """Note what came of asking a side. A count of tokens is no inference, and says nothing of the side."""
        if split.call.door == "count":
            return
        seen = Observation(
            at=time.monotonic(),
            side=asked.side,
            role=role,
            outcome=outcome,
            seconds=asked.took_s if seconds is None else seconds,
            is_stream=split.call.is_stream,
            fell_back=fell_back,
            excused=excused,
            tokens_in=heard.tokens_in if heard else 0,
            tokens_out=heard.tokens_out if heard else 0,
            error=error or asked.error_name,
        )
        self.migrations.observe(split.live, seen)


class Split:
    """One request of a migration. Call ``handle`` for its answer and ``answered`` once the caller has it."""

    def __init__(self, splitter: Splitter, live: Live, call: Call, request: Request, principal: Principal) -> None:
        self.live = live
        self.call = call
        self.request = request
        self.principal = principal
        self.caller = Caller(principal.arn, request.header_map())
        self.content: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._splitter = splitter
        self._bound: dict[SideName, Bound | None] = {}
        self._given: SideName | None = None
        self._is_shadowed = False
        self._is_tied = False  # to the side that has what this one follows

    def bound(self, side: SideName) -> Bound | None:
        """How the side is asked for it; None when it cannot be."""
        if side not in self._bound:
            self._bound[side] = bound(self.call, self.live.sides[side])
        return self._bound[side]

    async def ask(self, side: SideName, *, is_copy: bool = False, hold_s: float | None = None) -> Asked:
        """Never raises for what the side does."""
        wanted = self.bound(side)
        assert wanted is not None
        question = self._question(hold_s, is_copy=is_copy)
        begun = time.perf_counter()
        try:
            return await self._splitter.sides.ask(side, self.live.sides[side], wanted, question)
        except asyncio.CancelledError:
            if not is_copy:
                self._gave_up(Asked(side, wanted.door, begun), begun)
            raise

    def _gave_up(self, asked: Asked, since: float) -> None:
        """The caller left while the side owed it something: after a while that is the side's failure.

        Without it a side that answers nobody, and refuses nobody, would be one of which nothing is known.
        """
        waited_s = time.perf_counter() - since
        if waited_s >= GIVEN_UP_S:
            self._splitter.observe(self, asked, "failed", "primary", seconds=waited_s, error="CallerGaveUp")

    def _question(self, hold_s: float | None = None, *, is_copy: bool = False) -> Question:
        return Question(self.request, self.principal, self.call, hold_s, is_copy, self.live.plan.name)

    async def handle(self, request: Request, path: str, body: bytes, principal: Principal) -> Response | Stream:
        """The answer for the caller. Raises ServiceError as the door's own handler would.

        The caller must be allowed to call the name, since a side elsewhere is asked with the server's own keys.
        """
        request.called = called(self.call, self.call.name)
        self._splitter.permit(request, self.call.operation, self.call.name, principal)
        keeper = self.live.keeper(self.call.followed)
        self._is_tied = keeper is not None
        chosen = keeper or self.live.side_for(self.caller)
        if self.bound(chosen) is None:
            return await self._unable(chosen)
        if chosen == "source":
            asked = await self.ask("source")
            return self._give(asked) if asked.error is None else self._fail(asked, "primary")
        plan = self.live.plan
        has_source = self.bound("source") is not None and not self._is_tied
        can_fall_back = plan.fallback and self.live.is_open and has_source
        wants_cold_source = plan.cold == "source" and has_source
        hold_s = 0.0 if wants_cold_source else plan.fallback_after_s if can_fall_back else None
        asked = await self.ask("target", hold_s=hold_s)
        if asked.error is None:
            return self._give(asked)
        is_excused = wants_cold_source and isinstance(asked.error, ModelNotReady)
        if not (can_fall_back or is_excused):
            return self._fail(asked, "primary")
        return await self._fall_back(asked, is_excused=is_excused)

    def answered(self) -> None:
        """The caller has its first byte: from now on the other side may be asked."""
        if self._given is None or self._is_shadowed or self._is_tied or not self.call.is_compared:
            return
        self._is_shadowed = True
        self._splitter.shadows.after(self, self._given)

    async def _fall_back(self, asked: Asked, *, is_excused: bool) -> Response | Stream:
        """The source's answer in the target's place. What both refuse is the caller's own doing."""
        assert asked.error is not None
        self._record(asked)
        again = await self.ask("source")
        if again.error is None:
            outcome: Outcome = "not_ready" if isinstance(asked.error, ModelNotReady) else "failed"
            self._splitter.observe(self, asked, outcome, "primary", fell_back=True, excused=is_excused)
            return self._give(again, "fallback", asked.error_name)
        self._splitter.observe(self, asked, _outcome(asked.error, again.error), "primary")
        return self._fail(again, "fallback")

    async def _unable(self, chosen: SideName) -> Response | Stream:
        """The other side answers what this one has no way of taking; of the target that counts as a fallback."""
        other = _OTHER[chosen]
        if self.bound(other) is None:
            kinds = " nor ".join(f"{side.kind}:{side.name}" for side in self.live.sides.values())
            raise EngineMissing(f"Neither {kinds} takes a {self.call.door} request with this body.")
        asked = await self.ask(other)
        if chosen == "target":
            missing = Asked("target", self.call.door, time.perf_counter())
            self._splitter.observe(self, missing, "failed", "primary", error="NoSuchOperation", fell_back=True)
        role: Role = "fallback" if chosen == "target" else "primary"
        return self._give(asked, role, "NoSuchOperation") if asked.error is None else self._fail(asked, role)

    def _give(self, asked: Asked, role: Role = "primary", reason: str = "") -> Response | Stream:
        response = asked.response
        assert response is not None
        self._taken(asked)
        self._given = asked.side
        side, call = self.live.sides[asked.side], self.call
        is_native = asked.door == call.door
        if is_native and side.is_local:
            headers = response.headers
        else:
            variant = asked.said.get("x-amzn-invoked-production-variant", asked.side)
            headers = framing.headers(
                call.door, asked.said, variant=variant, is_native=is_native, is_stream=isinstance(response, Stream)
            )
        headers = [*headers, (HEADER, self._note(asked.side, reason))]
        if isinstance(response, Response):
            self._keep_id(asked, response.body)
            place = asked.said.get("x-amzn-sagemaker-outputlocation", "")
            heard = read(asked.door, response.body, is_stream=False)
            asked.heard(heard)
            if call.door != "async":
                self._splitter.observe(self, asked, "ok", role, heard=heard)
            elif side.is_local:
                self._splitter.receipts.accepted(place, self.live, asked.side)
            self._settle(response.body)
            return Response(response.status, headers, response.body)
        parts = self._watched(response, asked, role)
        return Stream(200, headers, parts if is_native else _translated(parts, asked, self.call))

    def _fail(self, asked: Asked, role: Role) -> Response:
        """The side's own refusal where it speaks the caller's dialect; else the fact is raised."""
        assert asked.error is not None
        self._taken(asked)
        self._settle(None)
        outcome = _outcome(asked.error, None)
        if asked.side == "source" and isinstance(asked.error, Refused):
            outcome = "refused"
        self._splitter.observe(self, asked, outcome, role)
        if isinstance(asked.response, Response) and asked.door == self.call.door:
            headers = asked.response.headers
            if not self.live.sides[asked.side].is_local:
                headers = framing.headers(
                    self.call.door, asked.said, variant=asked.side, is_native=True, is_stream=False
                )
            return Response(
                asked.response.status, [*headers, (HEADER, self._note(asked.side, ""))], asked.response.body
            )
        raise asked.error

    def _taken(self, asked: Asked) -> None:
        """What this side's attempt was is what the request is recorded as."""
        self.request.facts, self.request.ticket = asked.facts, asked.ticket
        self.request.migrated = self._question().told(asked.side, self.live.sides[asked.side])

    def _record(self, asked: Asked) -> None:
        """End the record of an attempt whose answer nobody gets."""
        if asked.facts is not None:
            if asked.error is not None:
                asked.facts.failed(asked.error)
            self._splitter.recorder.end(asked.facts)
        if asked.ticket is not None:
            asked.ticket.leave(0)

    async def _watched(self, stream: Stream, asked: Asked, role: Role) -> AsyncGenerator[bytes, None]:
        """The stream's parts; notes its time to the first, what it said and whether it broke."""
        kept: list[bytes] = []
        size, first_s, number, has_ended = 0, 0.0, 0, False
        since = time.perf_counter()
        try:
            async with aclosing(stream.parts) as parts:
                async for part in parts:
                    number += 1
                    size += len(part)
                    if number == 1:
                        first_s = time.perf_counter() - asked.begun
                        self._keep_id(asked, part)
                    if size <= MOST_COMPARED_BYTES:
                        kept.append(part)
                    yield part
                    if number == 1:
                        self.answered()  # the part was sent: the caller has its first byte
                    since = time.perf_counter()
            has_ended = True
        except ServiceError as exc:
            asked.error = exc
            self._splitter.observe(self, asked, "failed", role, seconds=first_s)
            raise
        except asyncio.CancelledError:
            self._gave_up(asked, since)
            raise
        finally:
            data = b"".join(kept) if has_ended and size <= MOST_COMPARED_BYTES else b""
            heard = read(asked.door, data, is_stream=True) if data else Heard("")
            self._settle(data if data and not heard.error else None)
            if has_ended:
                asked.heard(heard)
                outcome: Outcome = "failed" if heard.error else "ok"
                self._splitter.observe(self, asked, outcome, role, heard=heard, seconds=first_s, error=heard.error)

    def _keep_id(self, asked: Asked, data: bytes) -> None:
        if asked.door == "responses":
            self.live.keeps(response_id(data), asked.side)

    def _settle(self, data: bytes | None) -> None:
        """What the caller got, for a comparison; None when there is nothing to compare with."""
        if not self.content.done():
            self.content.set_result(data)

    def _note(self, side: SideName, reason: str) -> str:
        live = self.live
        note = f"{live.plan.name}; side={side}; phase={live.state.phase}; step={live.state.step + 1}"
        return f"{note}; fallback={reason}" if reason else note


def _outcome(error: ServiceError, others: ServiceError | None) -> Outcome:
    """What a failed answer counts as; *others*: what the other side made of the request, None when it was not asked."""
    if isinstance(error, Refused) and isinstance(others, Refused):
        return "refused"
    return "not_ready" if isinstance(error, ModelNotReady) else "failed"


async def _translated(parts: AsyncGenerator[bytes, None], asked: Asked, call: Call) -> AsyncGenerator[bytes, None]:
    """The documents of one kind of stream in the frames of another."""
    pieces = Pieces(asked.door)
    async with aclosing(parts):
        try:
            async for part in parts:
                if found := pieces.feed(part):
                    yield b"".join(framing.piece(call.door, document) for document in found)
            if found := pieces.end():
                yield b"".join(framing.piece(call.door, document) for document in found)
        except StreamFailed as exc:
            yield framing.broken(call.door, EngineFault(f"{exc.name}: {exc}"))
            return
        except (BrokenFrame, ValueError) as exc:
            yield framing.broken(call.door, EngineFault(f"the stream cannot be read: {exc}"))
            return
        if end := framing.last(call.door):
            yield end
