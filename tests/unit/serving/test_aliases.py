"""Changes of names that meet each other, or the deletion of what they name."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from outcrop.errors import EngineFault, ModelNotFound
from outcrop.serving.aliases import Aliases

ACCOUNT = "000000000000"


class Stage:
    """Catalogue, fleet and records in one, with models "a", "b" and "c", of which "a" serves.

    A warming ends at *start*, with *failure* if there is one.
    """

    def __init__(self, **names: str) -> None:
        self.models = {"a", "b", "c"}
        self.kept = dict(names)  # what the registry has
        self.named = dict(names)  # what callers reach
        self.retired: list[str] = []
        self.start = asyncio.Event()
        self.room = True
        self.failure: Exception | None = None
        parts: Any = self
        self.changes = Aliases(catalogue=parts, fleet=parts, records=parts)

    # -- of the catalogue ------------------------------------------------------------------------------

    def names(self, account: str) -> set[str]:
        return self.models

    def aliases(self, account: str) -> dict[str, str]:
        return self.named

    def find(self, account: str, identifier: str) -> Any:
        if identifier not in self.models:
            raise ModelNotFound("There is no such model.")
        return SimpleNamespace(record=SimpleNamespace(model_id=identifier), spec=identifier)

    def of_id(self, model_id: str) -> Any:
        return model_id if model_id in self.models else None

    def point(self, account: str, alias: str, model_id: str | None) -> None:
        _set(self.named, alias, model_id)

    # -- of the records --------------------------------------------------------------------------------

    def set_alias(self, account: str, alias: str, model_id: str | None) -> None:
        _set(self.kept, alias, model_id)

    # -- of the fleet ----------------------------------------------------------------------------------

    def serving(self, model_id: str) -> int:
        return int(model_id == "a")

    def has_room(self, spec: str) -> bool:
        return self.room

    async def warm(self, spec: str, *, wait_s: float) -> None:
        await self.start.wait()
        if self.failure is not None:
            raise self.failure

    def retire(self, model_id: str) -> None:
        self.retired.append(model_id)


def _set(names: dict[str, str], alias: str, model_id: str | None) -> None:
    if model_id is None:
        names.pop(alias, None)
    else:
        names[alias] = model_id


async def moving(stage: Stage, alias: str, model: str) -> asyncio.Task[Any]:
    task = asyncio.create_task(stage.changes.set(ACCOUNT, alias, model))
    await asyncio.sleep(0.01)
    return task


async def test_a_move_that_waits_for_its_model_keeps_no_other_name_waiting() -> None:
    stage = Stage(live="a")
    move = await moving(stage, "live", "b")
    async with asyncio.timeout(5):
        await stage.changes.set(ACCOUNT, "other", "c")

    assert not move.done()
    assert stage.named == {"live": "a", "other": "c"}
    stage.start.set()
    await move
    assert stage.named["live"] == stage.kept["live"] == "b"
    assert stage.retired == ["a"]


async def test_a_name_that_is_taken_away_while_it_moves_is_gone_after_it() -> None:
    stage = Stage(live="a")
    move = await moving(stage, "live", "b")
    removal = asyncio.create_task(stage.changes.remove(ACCOUNT, "live"))
    await asyncio.sleep(0.01)
    stage.start.set()
    await move
    await removal

    assert stage.named == stage.kept == {}


@pytest.mark.parametrize("room", [True, False], ids=["beside the old model", "in its place"])
async def test_a_name_does_not_move_to_a_model_that_was_deleted_meanwhile(room: bool) -> None:
    stage = Stage(live="a")
    stage.room = room
    move = await moving(stage, "live", "b")
    stage.models.discard("b")
    if not room:
        stage.failure = ModelNotFound("The model was deleted.")  # who is held hears it
    stage.start.set()
    with pytest.raises(ModelNotFound):
        await move

    assert stage.named == stage.kept == {"live": "a"}


async def test_a_name_goes_back_when_the_new_model_does_not_start_in_the_place_of_the_old() -> None:
    stage = Stage(live="a")
    stage.room, stage.failure = False, EngineFault("no such luck")
    move = await moving(stage, "live", "b")
    assert stage.named == {"live": "b"}
    stage.start.set()
    with pytest.raises(EngineFault):
        await move

    assert stage.named == stage.kept == {"live": "a"}
