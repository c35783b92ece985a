"""The one owner of migrations: what is running, its clock, its rows; guards are asked at every failure and every tick.

A change of state counts in memory at once, since a rollback must not wait for a disk, and is kept right after. A server
killed in between goes on one step earlier; taking over is done again and then finds itself done.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import structs

from outcrop.errors import InvalidRequest, NameTaken, NotFound, ServiceError
from outcrop.registry.migration_records import MigrationRecords
from outcrop.serving.migration import machine
from outcrop.serving.migration.capture import Pairs
from outcrop.serving.migration.compare import Comparison
from outcrop.serving.migration.guards import LEAST_NOISE, breaches, learned
from outcrop.serving.migration.kept import Difference, Footing, Kept
from outcrop.serving.migration.machine import OPEN, State
from outcrop.serving.migration.observe import Facts, Observation, Pair, Window
from outcrop.serving.migration.plan import Plan, Side, read_side
from outcrop.serving.migration.readings import OTHER, readings, rollbacks
from outcrop.serving.migration.split import Caller, SideName, compared_share, share_of, side_of
from outcrop.telemetry.metrics import Reading

log = structlog.get_logger(__name__)

TICK_S = 0.5
MOST_KEEPERS = 10_000  # responses of which it is remembered who gave them
_KEEP_S = 5.0  # counters alone are kept this often
_JUDGE_S = 0.02  # between two verdicts at failures: a verdict over a full window takes some milliseconds


def label_of(name: str) -> str:
    """What stands for the model of a migration's request that another service answers."""
    return f"migration/{name}"


class Live:
    """One migration in memory."""

    def __init__(self, account: str, kept: Kept, pairs: Path, now: float) -> None:
        self.account = account
        self.kept = kept
        self.plan = kept.plan
        self.sides: dict[SideName, Side] = {
            "source": read_side(kept.plan.source),
            "target": read_side(kept.plan.target),
        }
        self.window = Window(kept.plan.guards.window_s, now)
        self.seen = kept.state.seen
        self.is_warm = False
        self.warms_by_traffic = False
        self.is_warming = False
        self.shadows = 0
        self.is_changed = True
        self.is_counted = False
        self.judged_at = now
        self.kept_at = self.drawn_at = now
        self._keepers: OrderedDict[str, SideName] = OrderedDict()
        self.task: asyncio.Task[None] | None = None
        self.pairs: Pairs | None = None
        self.pairs_folder = pairs
        self.writing = asyncio.Lock()  # of pairs
        self.keeping = asyncio.Lock()  # of the row: what is newer is written later

    @property
    def state(self) -> State:
        return self.kept.state

    @property
    def is_open(self) -> bool:
        return self.state.phase in OPEN

    @property
    def is_routing(self) -> bool:
        """Whether requests for the name still have to come through here."""
        if self.is_open:
            return True
        if self.state.phase == "completed":
            return not self.kept.footing.is_alias
        return not self.kept.footing.is_native

    def side_for(self, caller: Caller) -> SideName:
        match self.state.phase:
            case "running" | "paused":
                return side_of(self.plan, self.state.step, caller, random.random)
            case "completing" | "completed":
                return "target"
        return "source"

    def keeps(self, response_id: str, side: SideName) -> None:
        """A response that others may follow was given by *side*; where both are here, both have it."""
        if response_id and not all(each.is_local for each in self.sides.values()):
            self._keepers[response_id] = side
            if len(self._keepers) > MOST_KEEPERS:
                self._keepers.popitem(last=False)

    def keeper(self, response_id: str) -> SideName | None:
        """The side that has the response, if it is known and has not lost the traffic."""
        side = self._keepers.get(response_id)
        return None if side == "target" and self.state.phase in ("rolled-back", "aborted") else side

    def wants_comparison(self) -> bool:
        """Whether the request that was just answered is to be asked of the other side too."""
        if self.state.phase not in ("running", "paused"):
            return False
        return random.random() < compared_share(self.plan, self.state.step)  # noqa: S311  (a sample)

    def wants_noise(self) -> bool:
        """Whether the source is asked twice; always until it is known how far it agrees with itself."""
        if self.plan.noise_percent and self.kept.noise_pairs < LEAST_NOISE:
            return True
        return random.random() < self.plan.noise_percent / 100  # noqa: S311  (a sample)

    @property
    def share(self) -> float:
        """The target's share of everybody's requests."""
        if self.state.phase in ("running", "paused"):
            return share_of(self.plan, self.state.step, listed=False)
        return 1.0 if self.state.phase in ("completing", "completed") else 0.0


class Migrations:
    """Migrations of every account, owned by the event loop.

    *warm*: brings a side up and says whether it could; a side that only requests can warm is warmed by a copy of one.
    *take_over*: called once every step held; makes the name the target's own where it is an alias.
    """

    def __init__(
        self,
        *,
        records: MigrationRecords,
        folder: Path,
        warm: Callable[[str, Side], Awaitable[bool]],
        take_over: Callable[[str, Plan], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._folder = folder
        self._warm = warm
        self._take_over = take_over
        self._clock = clock
        self._wall = wall
        self._all: dict[tuple[str, str], Live] = {}
        self._routes: dict[tuple[str, str, str], Live] = {}
        self._wake = asyncio.Event()
        self._rollbacks: Counter[str] = Counter()

    async def load(self) -> None:
        """Go on with what was kept."""
        for account, name, body in await asyncio.to_thread(self._records.all):
            try:
                kept = msgspec.convert(body, Kept)
                self._all[account, name] = Live(account, kept, self._folder, self._clock())
            except (msgspec.ValidationError, ServiceError) as exc:
                # Its row stays, and its name means what it means without it: no reason to keep a server down.
                log.error("a migration cannot be read and is left out", migration=name, reason=str(exc))
        self._route()

    def find(self, account: str, door: str, name: str) -> Live | None:
        """The migration that requests for *name* at *door* go through."""
        return self._routes.get((account, door, name)) if self._routes else None

    @property
    def is_any(self) -> bool:
        """Whether any name is being routed here at all."""
        return bool(self._routes)

    def has_door(self, account: str, door: str) -> bool:
        """Whether any request at *door* may be one of a migration."""
        return any(owner == account and at == door for owner, at, _ in self._routes)

    def get(self, account: str, name: str) -> Live:
        """Raises NotFound."""
        live = self._all.get((account, name))
        if live is None:
            known = ", ".join(sorted(n for owner, n in self._all if owner == account)) or "none"
            raise NotFound(f"There is no migration of {name!r}; there are: {known}.")
        return live

    def all(self, account: str) -> list[Live]:
        return [live for (owner, _), live in self._all.items() if owner == account]

    # -- what an operator orders ----------------------------------------------------------------------

    async def start(self, account: str, plan: Plan, footing: Footing) -> Live:
        """Begin a migration. One of the same name that has ended gives way. Raises NameTaken while one runs."""
        old = self._all.get((account, plan.name))
        if old is not None and old.is_open:
            raise NameTaken(f"{plan.name!r} is being migrated already ({old.state.phase}). Abort that one first.")
        kept = Kept(plan=plan, state=machine.begun(self._wall()), footing=footing)
        live = Live(account, kept, self._folder, self._clock())
        self._all[account, plan.name] = live
        try:
            await self._keep(live)
        except BaseException:
            if old is None:
                del self._all[account, plan.name]
            else:
                self._all[account, plan.name] = old
            raise
        self._route()
        self._wake.set()
        return live

    async def order(self, account: str, name: str, what: str) -> Live:
        """Pause, resume or abort. Raises InvalidRequest where the migration's phase does not allow it."""
        live = self.get(account, name)
        orders = {"pause": machine.paused, "resume": machine.resumed, "abort": machine.aborted}
        if what not in orders:
            raise InvalidRequest(f"{what!r} is no order; a migration can be paused, resumed and aborted.")
        self._set(live, orders[what](live.state, self._wall()))
        await self._keep(live)
        return live

    async def remove(self, account: str, name: str) -> None:
        """Forget a migration that has ended; its name means again what it means without it. Raises InvalidRequest."""
        live = self.get(account, name)
        if live.is_open:
            raise InvalidRequest(f"The migration of {name!r} is {live.state.phase}. Abort it first.")
        await asyncio.to_thread(self._records.remove, account, name)
        del self._all[account, name]
        self._route()

    # -- what requests tell ---------------------------------------------------------------------------

    def observe(self, live: Live, seen: Observation) -> None:
        """Take note of an answer; one of the target that went wrong is judged at once."""
        live.window.add(seen)
        live.kept.count(seen)
        live.is_counted = True
        if live.state.phase not in ("running", "paused"):
            return
        is_shadow_step = live.plan.steps[live.state.step].kind == "shadow"
        if seen.side == "target" and seen.outcome != "refused" and (seen.role == "shadow") == is_shadow_step:
            live.seen += 1
        went_wrong = seen.side == "target" and (seen.outcome in ("failed", "not_ready") or seen.fell_back)
        if went_wrong and self._clock() - live.judged_at >= _JUDGE_S:
            self._judge(live)

    def compared(self, live: Live, found: Comparison, difference: Difference | None, *, is_noise: bool) -> None:
        live.window.pair(Pair(at=self._clock(), is_noise=is_noise, score=found.score))
        live.kept.score(found.score, is_noise=is_noise)
        live.is_counted = True
        if difference is not None:
            live.kept.differ(difference)

    def is_warm(self, live: Live) -> None:
        live.is_warm = True
        self._wake.set()

    async def keep_pair(self, live: Live, body: bytes, answers: dict[str, bytes], content_type: str) -> None:
        """Write a compared pair down, where that is wanted."""
        if not live.plan.keep_pairs:
            return
        async with live.writing:
            if live.pairs is None:
                live.pairs = await asyncio.to_thread(Pairs, live.pairs_folder, live.plan.name)
            try:
                was_kept = await asyncio.to_thread(live.pairs.write, self._wall(), body, answers, content_type)
            except OSError:
                log.warning("a compared pair could not be kept", migration=live.plan.name, exc_info=True)
                was_kept = False
        live.kept.pairs_dropped += not was_kept

    def labels(self) -> list[str]:
        """What requests of migrations that are answered elsewhere are counted under, as their model."""
        return [label_of(name) for _, name in self._all]

    def readings(self) -> list[Reading]:
        """What Prometheus is told of every migration."""
        told = [reading for live in self._all.values() for reading in readings(live.account, live.kept, live.share)]
        return [*told, *rollbacks(self._rollbacks)]

    def facts(self, live: Live, last_s: float | None = None) -> Facts:
        plan = live.plan
        return live.window.facts(self._clock(), plan.source_price, plan.target_price, last_s=last_s)

    # -- the clock ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            self._wake.clear()
            for live in list(self._all.values()):
                try:
                    await self._tick(live)
                except Exception:  # whatever it is: guards must go on being asked
                    log.exception("a migration could not be kept; it goes on", migration=live.plan.name)
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Keep the counters; what tasks were doing is done again by the next start."""
        for live in self._all.values():
            if live.task is not None:
                live.task.cancel()
                await asyncio.gather(live.task, return_exceptions=True)
            if live.is_changed or live.is_counted:
                await self._keep(live)

    async def _tick(self, live: Live) -> None:
        now = self._clock()
        if live.is_open:
            if live.state.phase in ("warming", "completing") and (live.task is None or live.task.done()):
                if live.state.phase == "completing":
                    live.task = asyncio.create_task(self._complete(live), name="migration takes over")
                elif not live.is_warm and not live.warms_by_traffic:
                    live.task = asyncio.create_task(self._warm_up(live), name="migration warms up")
            self._judge(live)
            if now - live.drawn_at >= live.kept.interval_s:
                self._draw(live)
        if live.is_changed or (live.is_counted and now - live.kept_at >= _KEEP_S):
            await self._keep(live)

    def _judge(self, live: Live) -> None:
        kept, plan = live.kept, live.plan
        live.judged_at = self._clock()
        facts = self.facts(live)
        kept.baseline = learned(kept.baseline, facts, plan)
        found = breaches(plan, facts, kept.baseline) if live.state.phase in ("running", "paused") else []
        state = structs.replace(live.state, seen=live.seen) if live.seen != live.state.seen else live.state
        after = machine.advance(plan, state, now=self._wall(), is_warm=live.is_warm, found=found)
        if after is state:
            kept.state = state
        else:
            self._set(live, after)

    def _draw(self, live: Live) -> None:
        """One more point of the time line."""
        now = self._clock()
        live.kept.draw(self._wall(), live.share, self.facts(live, now - live.drawn_at))
        live.drawn_at = now

    def _set(self, live: Live, state: State) -> None:
        self._draw(live)
        before, live.kept.state = live.state, state
        live.is_changed = True
        is_new_step = (before.phase, before.step) != (state.phase, state.step) and state.phase != "paused"
        if is_new_step and before.phase != "paused":
            live.seen = 0
            live.window.restart(self._clock())
            self._draw(live)
        elif before.phase == "paused" and state.phase == "running":
            live.seen = state.seen
        self._route()
        self._wake.set()
        if state.phase == "rolled-back" and before.phase != state.phase:
            self._rollbacks[state.evidence[0].guard if state.evidence else OTHER] += 1
        level = log.warning if state.phase == "rolled-back" else log.info
        level("migration", migration=live.plan.name, phase=state.phase, step=state.step, what=state.events[-1].what)

    async def _warm_up(self, live: Live) -> None:
        try:
            if await self._warm(live.account, live.sides["target"]):
                self.is_warm(live)
            else:
                live.warms_by_traffic = True
        except ServiceError as exc:
            self._set(live, machine.rolled_back(live.state, self._wall(), f"the target does not start: {exc}", []))

    async def _complete(self, live: Live) -> None:
        try:
            if live.kept.footing.is_alias:
                await self._take_over(live.account, live.plan)
        except ServiceError as exc:
            reason = f"the target could not take over: {exc}"
            self._set(live, machine.rolled_back(live.state, self._wall(), reason, []))
            return
        self._set(live, machine.completed(live.state, self._wall(), "completed: the target has taken over"))

    def _route(self) -> None:
        self._routes = {
            (account, door, key): live
            for (account, _), live in self._all.items()
            if live.is_routing
            for door in live.kept.footing.doors
            for key in live.kept.footing.keys
        }

    async def _keep(self, live: Live) -> None:
        """Write the row. What changes meanwhile is written by the next tick."""
        async with live.keeping:
            live.is_changed = live.is_counted = False
            body: dict[str, Any] = msgspec.to_builtins(live.kept)
            live.kept_at = self._clock()
            try:
                await asyncio.to_thread(self._records.put, live.account, live.plan.name, body)
            except BaseException:
                live.is_changed = True
                raise
