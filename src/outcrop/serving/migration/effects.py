"""What a migration does to this server itself: it warms a model, and moves an alias at the end."""

from __future__ import annotations

from outcrop.serving.aliases import READY_WITHIN_S, Aliases
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.fleet import Fleet
from outcrop.serving.migration.plan import Plan, Side, read_side


class Effects:
    """The two effects of a migration that are not requests."""

    def __init__(self, *, catalogue: Catalogue, fleet: Fleet, aliases: Aliases) -> None:
        self._catalogue = catalogue
        self._fleet = fleet
        self._aliases = aliases

    async def warm(self, account: str, side: Side) -> bool:
        """Wait until a model of this server is ready; False for a side that only a request can warm."""
        if not side.is_local or side.kind != "bedrock":
            return False
        await self._fleet.warm(self._catalogue.find(account, side.name).spec, wait_s=READY_WITHIN_S)
        return True

    async def move_alias(self, account: str, plan: Plan) -> None:
        """Make the alias the target's own; again is nothing."""
        await self._aliases.set(account, plan.name, read_side(plan.target).name)
