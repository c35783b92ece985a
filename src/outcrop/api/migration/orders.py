"""The operator's part: plan, start, watch, pause, resume, abort and remove migrations, under ``/outcrop/v1``."""

from __future__ import annotations

from typing import Any

import msgspec

from outcrop.access.identities import Principal
from outcrop.api.migration.calls import BEDROCK_DOORS, ENDPOINT_DOORS, OPENAI_DOORS, Door
from outcrop.api.migration.keys import Keyring
from outcrop.errors import InvalidRequest, ModelNotFound
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.migration.kept import Footing
from outcrop.serving.migration.machine import words
from outcrop.serving.migration.plan import Plan, Side, read_plan, read_side
from outcrop.serving.migration.runner import Live, Migrations

_MODEL_DOORS: tuple[Door, ...] = (*BEDROCK_DOORS, *OPENAI_DOORS)
_DOORS: tuple[Door, ...] = (*_MODEL_DOORS, *ENDPOINT_DOORS)


class MigrationOrders:
    """Answers the paths of migrations."""

    def __init__(self, *, migrations: Migrations, catalogue: Catalogue, endpoints: Endpoints, keyring: Keyring) -> None:
        self._migrations = migrations
        self._catalogue = catalogue
        self._endpoints = endpoints
        self._keyring = keyring

    async def route(self, method: str, path: list[str], body: bytes, principal: Principal) -> dict[str, Any] | None:
        """Answer *path* (decoded parts below ``/outcrop/v1``); None when it is none of ours."""
        account = principal.account
        match method, path:
            case "GET", ["migrations"]:
                return {"migrations": [self._summary(live) for live in self._migrations.all(account)]}
            case "POST", ["migrations"]:
                plan = read_plan(body)
                footing = await self._checked(account, plan)
                return self._told(await self._migrations.start(account, plan, footing))
            case "POST", ["migration-plans"]:
                plan = read_plan(body)
                return {"plan": self._words(plan, await self._checked(account, plan))}
            case "GET", ["migrations", name]:
                return self._told(self._migrations.get(account, name))
            case "DELETE", ["migrations", name]:
                await self._migrations.remove(account, name)
                return {}
            case "POST", ["migrations", name, order]:
                return self._told(await self._migrations.order(account, name, order))
        return None

    async def _checked(self, account: str, plan: Plan) -> Footing:
        """What the name stands on. Raises InvalidRequest or ModelNotFound for sides that cannot be asked."""
        for text in (plan.source, plan.target):
            side = read_side(text)
            if side.is_local:
                self._find(account, side)
            else:
                await self._keyring.keys(side)
        return self._footing(account, plan)

    def _find(self, account: str, side: Side) -> None:
        if side.kind == "bedrock":
            self._catalogue.find(account, side.name)
        elif self._endpoints.find(account, side.name) is None:
            raise InvalidRequest(f"There is no endpoint {side.name!r} on this server; create it first.")

    def _footing(self, account: str, plan: Plan) -> Footing:
        """A name that is something already is only migrated from what it is: else its callers were moved unseen."""
        source = read_side(plan.source)
        keys, doors = [plan.name], list[Door]()
        try:
            served = self._catalogue.find(account, plan.name)
        except ModelNotFound:
            served = None
        endpoint = self._endpoints.find(account, plan.name)
        is_alias = plan.name in self._catalogue.aliases(account)
        if served is not None and source.is_local and source.kind == "bedrock":
            if self._catalogue.find(account, source.name).record.model_id == served.record.model_id:
                doors += _MODEL_DOORS
            if doors and not is_alias:
                keys = [served.record.model_name, served.record.model_id, served.facts.arn]
        if endpoint is not None and source.is_local and source.kind == "sagemaker" and source.name == plan.name:
            doors += ENDPOINT_DOORS
        if not doors and (served is not None or endpoint is not None):
            what = "alias or model" if served is not None else "endpoint"
            raise InvalidRequest(
                f"{plan.name!r} is the name of an {what} here, and the source is {plan.source}. Migrate it from what "
                "it is, or choose a name that nothing has."
            )
        is_native = bool(doors)
        moves_alias = is_alias and "invoke" in doors and read_side(plan.target).kind == "bedrock"
        moves_alias = moves_alias and read_side(plan.target).is_local
        return Footing(
            keys=list(dict.fromkeys(keys)), doors=list(doors or _DOORS), is_alias=moves_alias, is_native=is_native
        )

    def _words(self, plan: Plan, footing: Footing) -> list[str]:
        guards = plan.guards
        who = ", ".join(footing.keys)
        lines = [
            f"requests for {who} ({', '.join(footing.doors)}) go to {plan.source} and, step by step, to {plan.target}",
            f"first the target is warmed, for at most {plan.warm_limit_s:g} s",
        ]
        for number, step in enumerate(plan.steps):
            lines.append(
                f"step {number + 1}: {words(plan, number)}, for {step.hold_s:g} s and {step.min_requests} requests"
            )
        limits = [
            f"failures over the source's own {guards.error_rate:.1%}",
            f"P95 over {guards.p95_ratio:g} x the source's and {guards.p95_slack_s:g} s",
            f"agreement {guards.agreement_drop:g} under the source's with itself",
            f"{guards.not_ready_rate:.0%} without a ready copy",
            f"no {guards.min_requests} requests within {guards.no_data_s:g} s after a step",
        ]
        if guards.usd_per_hour is not None:
            limits.append(f"{guards.usd_per_hour:g} USD an hour")
        lines.append(f"all goes back to the source at: {'; '.join(limits)}")
        if plan.fallback:
            lines.append(
                f"what the target fails before its first byte is asked of the source; over "
                f"{plan.fallback_budget:.0%} of such requests (and {plan.fallback_floor}) all goes back"
            )
        end = "the alias is moved to the target" if footing.is_alias else "the name stays with the target"
        lines.append(f"at the end {end}")
        return lines

    def _summary(self, live: Live) -> dict[str, Any]:
        state = live.state
        return {
            "name": live.plan.name,
            "phase": state.phase,
            "step": state.step + 1,
            "steps": len(live.plan.steps),
            "share": live.share,
            "source": live.plan.source,
            "target": live.plan.target,
            "since": state.since,
            "requests_of_step": live.seen,
            "reason": state.reason,
        }

    def _told(self, live: Live) -> dict[str, Any]:
        """Everything that is known, for ``status`` and ``report``."""
        kept = live.kept
        return {
            **self._summary(live),
            "now": words(live.plan, live.state.step),
            "plan": msgspec.to_builtins(live.plan),
            "footing": msgspec.to_builtins(kept.footing),
            "evidence": msgspec.to_builtins(live.state.evidence),
            "events": msgspec.to_builtins(live.state.events),
            "window": msgspec.to_builtins(self._migrations.facts(live)),
            "baseline": msgspec.to_builtins(kept.baseline),
            "totals": {"source": msgspec.to_builtins(kept.source), "target": msgspec.to_builtins(kept.target)},
            "comparison": {
                "pairs": kept.pairs,
                "agreement": kept.score_sum / kept.pairs if kept.pairs else None,
                "noise_pairs": kept.noise_pairs,
                "noise": kept.noise_sum / kept.noise_pairs if kept.noise_pairs else None,
                "shadows_dropped": kept.shadows_dropped,
                "pairs_dropped": kept.pairs_dropped,
                "folder": str(live.pairs_folder) if live.plan.keep_pairs else None,
            },
            "differences": msgspec.to_builtins(kept.differences),
            "rows": msgspec.to_builtins(kept.rows),
        }
