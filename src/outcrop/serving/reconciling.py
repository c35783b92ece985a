"""One step of one model towards the copies that it should have: facts to the policy, decisions to the transitions.

Called by the fleet's task only. What to do is decided here and in the pure parts that it asks (``policy``, ``rolling``,
``making_room``); how a copy then comes or goes is in ``transitions``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from outcrop.serving import policy, rolling, seen
from outcrop.serving.copies import Copy, Events, Model
from outcrop.serving.lending import Lending
from outcrop.serving.lifecycle import SERVING, State, advance
from outcrop.serving.making_room import Landlord
from outcrop.serving.transitions import Transitions
from outcrop.settings import Settings

log = structlog.get_logger(__name__)

LATE_S = 0.2  # a request may have read a name just before it moved, and come to the model it named then


class Reconciling:
    """*models*: the fleet's, by id. *changed* is told of a copy whose state changed.

    Times are seconds on *clock*; *wall* gives seconds since the epoch, for schedules.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        params: policy.Params,
        landlord: Landlord,
        lending: Lending,
        transitions: Transitions,
        settings: Settings,
        events: Events,
        changed: Callable[[Copy], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._models = models
        self._params = params
        self._landlord = landlord
        self._lending = lending
        self._transitions = transitions
        self._settings = settings
        self._events = events
        self._changed = changed
        self._clock = clock
        self._wall = wall

    def reconcile(self, model: Model) -> None:
        """One step, from what is true of *model* now. Never waits."""
        now = self._clock()
        if model.placed is not None:
            copy = None if model.placed.done() else self._transitions.place(model, now)
            if copy is not None:
                model.placed.set_result(copy)
            return
        self._lending.release_held(model)
        if model.is_removed:
            self._clear(model)
            return
        if model.retired_at is not None and not self._has_retired(model, now):
            return
        decision, current = self._decision(model, now)
        for _ in range(decision.desired - current):
            if not self._transitions.order(model, now):
                break
        else:
            model.blocked_since = None
        for copy in seen.sleepers(model):
            if rolling.is_outdated(copy, model.spec):
                self._transitions.drain(model, copy, self._settings.drain_s)
        outdated = [copy for copy in seen.ready_copies(model) if rolling.is_outdated(copy, model.spec)]
        if outdated:
            self._roll(model, outdated, decision.desired, now)
        else:
            self._let_go(model, decision)

    def _decision(self, model: Model, now: float) -> tuple[policy.Decision, int]:
        """What the policy says of the model as it is, noted, and how many copies it has."""
        params = seen.params_of(model.scaling, self._params, self._wall())
        facts = seen.facts_of(model, params, now)
        decision, current = policy.decide(facts, params), facts.ready + facts.starting
        model.demand.decided(now, decision.up)
        if seen.note(model, facts, decision, self._wall()) and decision.desired != current:
            self._events.decided(model.spec.model_id, current, decision.desired)
            log.info("scaling", model_id=model.spec.model_id, copies=decision.desired, reason=decision.reason)
        return decision, current

    def _clear(self, model: Model) -> None:
        """End what a deleted model has."""
        model.blocked_since = None
        for copy in model.copies:
            if copy.state is State.STARTING:
                self._transitions.abandon(model, copy)
            elif copy.is_ready or copy.state is State.ASLEEP:
                self._transitions.drain(model, copy, self._settings.drain_s)

    def _let_go(self, model: Model, decision: policy.Decision) -> None:
        """The copies that the policy gives up: drained, or left where they are for as long as nobody needs the room."""
        for copy in seen.ready_copies(model):
            if copy.copy_id not in decision.retire:
                continue
            if decision.desired or self._stops_idle(model):
                self._transitions.drain(model, copy, self._settings.request_timeout_s)
            elif copy.state is State.READY:
                copy.state = advance(copy.state, State.EVICTABLE)
                self._changed(copy)

    def _has_retired(self, model: Model, now: float) -> bool:
        """One step of ``retire``; whether it is done. Those who wait are answered by the copies that go."""
        assert model.retired_at is not None
        going = [copy for copy in model.copies if copy.state in SERVING or copy.state is State.ASLEEP]
        if any(copy.state is State.STARTING for copy in model.copies):
            return False
        end = model.retired_at + LATE_S
        if seen.ready_copies(model) and (now < end or model.queue.has_from(end)):
            return False
        model.retired_at = None
        model.rest()
        model.queue.keep_no_place()
        for copy in model.copies:
            copy.may_sleep = False
        for copy in going:
            self._transitions.drain(model, copy, self._settings.request_timeout_s)
        return True

    def _stops_idle(self, model: Model) -> bool:
        own = model.scaling.stop_idle
        return self._settings.stop_idle if own is None else own

    def _roll(self, model: Model, outdated: list[Copy], desired: int, now: float) -> None:
        """One step towards copies of the present configuration."""
        if now < model.retry_at:
            return  # a copy of it did not start: the old ones serve until it is tried again
        step = rolling.next_step(model.copies, outdated, desired)
        if step is rolling.Step.ORDER:
            # What another model's copy would have to go for is not worth it: then our own old one goes.
            if self._landlord.plan(model, list(self._models.values()), now).may_start:
                self._transitions.order(model, now)
            else:
                step = rolling.Step.DRAIN
        if step is rolling.Step.DRAIN:
            copy = rolling.least_loaded(outdated)
            log.info("replacing a copy of an earlier configuration", copy_id=copy.copy_id, model_id=copy.spec.model_id)
            self._transitions.drain(model, copy, self._settings.request_timeout_s)
