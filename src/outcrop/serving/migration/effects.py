"""What a migration does to this server itself: it warms a side, and moves an alias at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from outcrop.errors import InvalidRequest, ModelNotFound
from outcrop.serving.aliases import READY_WITHIN_S, Aliases
from outcrop.serving.catalogue import Catalogue, Served
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.fleet import Fleet
from outcrop.serving.forwards import TARGET, TARGET_URL, TO
from outcrop.serving.migration.plan import Plan, Side, read_side
from outcrop.serving.variants import Variant

_LOOK_S = 0.2


class Effects:
    """The two effects of a migration that are not requests."""

    def __init__(self, *, catalogue: Catalogue, fleet: Fleet, aliases: Aliases, endpoints: Endpoints) -> None:
        self._catalogue = catalogue
        self._fleet = fleet
        self._aliases = aliases
        self._endpoints = endpoints

    async def warm(self, account: str, side: Side) -> bool:
        """Wait until a side on this server is ready; False for one that only a request can warm.

        An endpoint is ready when it is in service and the models behind its variants are.
        """
        if not side.is_local or side.kind == "openai":
            return False
        if side.kind == "bedrock":
            await self._ready(self._catalogue.find(account, side.name))
            return True
        behind = self._behind(account, await self._in_service(account, side.name))
        if behind is None:
            return False
        for served in behind:
            await self._ready(served)
        return True

    async def _ready(self, served: Served) -> None:
        await self._fleet.warm(served.spec, wait_s=READY_WITHIN_S)

    async def _in_service(self, account: str, name: str) -> Collection[Variant]:
        """The variants of an endpoint once they answer. Raises InvalidRequest for one that will not."""
        while True:
            endpoint = self._endpoints.find(account, name)
            status = "not there" if endpoint is None else endpoint.status
            if endpoint is not None and status in ("InService", "Updating", "RollingBack"):
                return endpoint.fleet.variants
            if status != "Creating":
                raise InvalidRequest(f"Endpoint {name} is {status}.")
            await asyncio.sleep(_LOOK_S)

    def _behind(self, account: str, variants: Collection[Variant]) -> list[Served] | None:
        """The models of this server that *variants* ask; None where one asks something else."""
        found = []
        for variant in variants:
            environment = variant.environment
            if TO in environment or TARGET_URL in environment:
                return None
            try:
                found.append(self._catalogue.find(account, environment.get(TARGET, "")))
            except ModelNotFound:
                return None
        return found

    async def move_alias(self, account: str, plan: Plan) -> None:
        """Make the alias the target's own; again is nothing."""
        await self._aliases.set(account, plan.name, read_side(plan.target).name)
