"""One request of a migration, inside the event loop: when the other side is asked, who falls back, what is durable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from outcrop.access.identities import Principal
from outcrop.api.http import Request, Response, Stream
from outcrop.api.listener.exchange import LEFT
from outcrop.api.migration import splitter
from outcrop.api.migration.reading import read
from outcrop.api.migration.shadows import Shadows
from outcrop.api.migration.sides import Sides
from outcrop.api.migration.splitter import Split, Splitter
from outcrop.awswire.eventstream import encode_chunk, encode_exception
from outcrop.errors import EngineFault, InvalidRequest, ModelNotReady, NotAllowed, ServiceError, StorageFull
from outcrop.registry.migration_records import MigrationRecords
from outcrop.serving.migration.kept import Footing
from outcrop.serving.migration.plan import Guards, Plan, Side, read_side, read_steps
from outcrop.serving.migration.runner import MOST_KEEPERS, Live, Migrations

ME = Principal("000000000000", "arn:aws:iam::000000000000:user/me")
JSON = [("content-type", "application/json")]
ALIVE = {"extensions": {LEFT: lambda call: None}}
EVENTS = [("content-type", "application/vnd.amazon.eventstream")]


class Rows:
    """Records in memory. *fails*: the disk is full."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.fails = False

    def all(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [(account, name, body) for (account, name), body in self.rows.items()]

    def put(self, account: str, name: str, body: Mapping[str, Any]) -> None:
        if self.fails:
            raise StorageFull("the disk is full")
        self.rows[account, name] = json.loads(json.dumps(body))

    def remove(self, account: str, name: str) -> None:
        del self.rows[account, name]


class House:
    """A splitter over two models that do as they are told; *now* is both clocks."""

    def __init__(self, folder: Path, rows: Rows | None = None) -> None:
        self.now = 1000.0
        self.rows = rows or Rows()
        self.asked: list[str] = []
        self.answers: dict[str, Any] = {"a": "from a", "b": "from b"}
        self.moved: list[str] = []
        self.migrations = Migrations(
            records=cast(MigrationRecords, self.rows),
            folder=folder,
            warm=self._warm,
            take_over=self._take_over,
            clock=lambda: self.now,
            wall=lambda: self.now,
        )
        sides = Sides(timeout_s=5)
        sides.bind(bedrock=self._handle, openai=self._handle, sagemaker=self._handle)
        self.splitter = Splitter(self.migrations, sides, cast(Any, SimpleNamespace(end=lambda _: None)), Shadows)
        self.splitter.permit = lambda *_: None

    async def _warm(self, account: str, side: Side) -> bool:
        return True

    async def _take_over(self, account: str, plan: Plan) -> None:
        self.moved.append(plan.name)

    async def _handle(self, request: Request, path: str, body: bytes, principal: Principal) -> Response | Stream:
        model = path.split("/")[2]
        self.asked.append(model)
        said = self.answers[model]
        if isinstance(said, ServiceError):
            raise said
        if path.endswith("-stream"):
            return Stream(200, EVENTS, _parts(said))
        return Response(200, JSON, json.dumps({"generation": said}).encode())

    async def begin(self, steps: str, *, is_alias: bool = False, **changes: Any) -> Live:
        values: dict[str, Any] = {"guards": Guards(min_requests=5), "keep_pairs": False, "noise_percent": 0, **changes}
        plan = Plan(name="live", source="bedrock:a", target="bedrock:b", steps=read_steps(steps, hold_s=10), **values)
        footing = Footing(keys=["live"], doors=["invoke", "count"], is_native=True, is_alias=is_alias)
        live = await self.migrations.start(ME.account, plan, footing)
        await self.tick()
        await self.tick()
        assert live.state.phase == "running"
        return live

    async def tick(self, seconds: float = 0.0) -> None:
        """Let the runner look once, *seconds* later, and everything that it began end."""
        self.now += seconds
        for live in list(self.migrations._all.values()):
            await self.migrations._tick(live)
            if live.task is not None:
                await asyncio.gather(live.task, return_exceptions=True)

    def split(self, *, stream: bool = False) -> Split:
        path = f"/model/live/invoke{'-with-response-stream' if stream else ''}"
        scope = {"method": "POST", "raw_path": path.encode(), "query_string": b"", "headers": [], **ALIVE}
        request = Request(cast(Any, scope), cast(Any, None))
        found = self.splitter.split(request, path, b'{"prompt": "x"}', ME)
        assert found is not None
        return found

    async def ask(self, *, stream: bool = False) -> tuple[str, str]:
        """What the caller reads, and the note of who said it."""
        split = self.split(stream=stream)
        answer = await split.handle(split.request, "", b"", ME)
        note = dict(answer.headers)["x-outcrop-migration"]
        data = answer.body if isinstance(answer, Response) else b"".join([part async for part in answer.parts])
        split.answered()
        return read("invoke", data, is_stream=stream).text, note

    async def settle(self) -> None:
        """Let shadows end."""
        while self.splitter.shadows._tasks:
            await asyncio.sleep(0)
            await asyncio.gather(*self.splitter.shadows._tasks)


async def _parts(said: str) -> AsyncGenerator[bytes, None]:
    for word in said.split():
        yield (
            encode_exception("modelStreamErrorException", "died")
            if word == "!"
            else encode_chunk(json.dumps({"generation": word}).encode())
        )


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_the_other_side_is_asked_only_once_the_caller_has_its_answer(house: House) -> None:
    live = await house.begin("shadow:100,100")
    split = house.split()
    answer = await split.handle(split.request, "", b"", ME)
    await asyncio.sleep(0.01)
    assert house.asked == ["a"]
    assert isinstance(answer, Response)
    split.answered()
    split.answered()
    await house.settle()
    assert house.asked == ["a", "b"]
    assert (live.kept.pairs, live.kept.target.shadows) == (1, 1)


async def test_a_stream_is_shadowed_after_its_first_part_and_compared_at_its_end(house: House) -> None:
    live = await house.begin("shadow:100,100")
    house.answers["a"] = "one two three"
    split = house.split(stream=True)
    answer = await split.handle(split.request, "", b"", ME)
    assert isinstance(answer, Stream)
    await anext(answer.parts)
    await asyncio.sleep(0.01)
    assert house.asked == ["a"]
    await anext(answer.parts)
    await asyncio.sleep(0.01)
    assert house.asked == ["a", "b"]
    assert live.kept.pairs == 0
    async for _ in answer.parts:
        pass
    await house.settle()
    assert live.kept.pairs == 1
    assert live.kept.differences[0].source == "onetwothree"


async def test_a_caller_that_leaves_is_no_failure_and_leaves_nothing_behind(house: House) -> None:
    live = await house.begin("shadow:100,100")
    house.answers["a"] = "one two three"
    split = house.split(stream=True)
    answer = await split.handle(split.request, "", b"", ME)
    assert isinstance(answer, Stream)
    await anext(answer.parts)
    await anext(answer.parts)
    await answer.parts.aclose()
    await house.settle()
    assert (live.kept.source.requests, live.kept.pairs, live.shadows) == (0, 0, 0)


async def test_shadows_are_bounded_and_counted_when_dropped(house: House) -> None:
    live = await house.begin("shadow:100,100", shadows_at_a_time=2)
    for _ in range(5):
        await house.ask()
    assert live.kept.shadows_dropped == 3
    await house.settle()
    assert live.shadows == 0
    assert house.asked.count("b") == 2


async def test_a_shadow_that_fails_is_the_targets_failure_and_nobodys_else(house: House) -> None:
    live = await house.begin("shadow:100,100")
    house.answers["b"] = InvalidRequest("no such parameter")  # what the source takes, the target must take
    for _ in range(2):
        assert (await house.ask())[0] == "from a"
    await house.settle()
    house.now += 1
    await house.tick()
    assert live.state.phase == "rolled-back"
    assert live.kept.target.failed == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_target_that_fails_before_its_first_byte_falls_back(house: House, stream: bool) -> None:
    live = await house.begin("100", compare_percent=0)
    house.answers["b"] = EngineFault("it died")
    text, note = await house.ask(stream=stream)
    assert text.replace(" ", "") == "froma"
    assert note.endswith("fallback=ModelErrorException")
    assert live.kept.target.fallbacks == {"ModelErrorException": 1}
    assert live.kept.target.failed == 1


async def test_a_stream_that_breaks_after_its_first_byte_stays_broken_and_counts(house: House) -> None:
    live = await house.begin("100", compare_percent=0)
    house.answers["b"] = "one !"
    await house.ask(stream=True)
    assert house.asked == ["b"]
    assert live.kept.target.failed == 1


async def test_what_both_refuse_is_told_by_the_source_and_is_no_failure(house: House) -> None:
    live = await house.begin("100", compare_percent=0)
    house.answers.update(a=InvalidRequest("from a"), b=InvalidRequest("from b"))
    with pytest.raises(InvalidRequest, match="from a"):
        await house.ask()
    assert (live.kept.target.failed, live.kept.target.refused, live.kept.source.refused) == (0, 1, 1)


async def test_both_sides_down_is_told_by_the_source(house: House) -> None:
    live = await house.begin("100", compare_percent=0)
    house.answers.update(a=EngineFault("a died"), b=ModelNotReady("b sleeps"))
    with pytest.raises(EngineFault, match="a died"):
        await house.ask()
    assert (live.kept.target.not_ready, live.kept.source.failed) == (1, 1)


async def test_a_full_disk_delays_no_rollback_and_is_made_up_for(house: House) -> None:
    live = await house.begin("100", compare_percent=0)
    house.rows.fails = True
    house.answers["b"] = EngineFault("it died")
    for _ in range(2):
        assert (await house.ask())[0] == "from a"
        house.now += 1
    with pytest.raises(StorageFull):
        await house.tick()
    assert live.state.phase == "rolled-back"
    assert house.splitter.migrations.find(ME.account, "invoke", "live") is None
    house.rows.fails = False
    await house.tick()
    assert house.rows.rows[ME.account, "live"]["state"]["phase"] == "rolled-back"


async def test_a_restart_after_any_write_ends_where_it_would_have(house: House, tmp_path: Path) -> None:
    """Killed after each row that was ever written, the next start goes on to the same end."""
    written: list[dict[str, Any]] = []
    put = house.rows.put

    def remember(account: str, name: str, body: Mapping[str, Any]) -> None:
        put(account, name, body)
        written.append(house.rows.rows[account, name])

    house.rows.put = remember  # type: ignore[method-assign]
    live = await house.begin("50@1,100@1", is_alias=True, compare_percent=0)
    await _drive(house, live)
    await house.tick()
    assert live.state.phase == "completed"
    phases = [row["state"]["phase"] for row in written]
    assert {"warming", "running", "completing", "completed"} <= set(phases)
    for row in written:
        rows = Rows()
        rows.rows[ME.account, "live"] = row
        again = House(tmp_path, rows)
        again.now = house.now
        await again.migrations.load()
        found = again.migrations.get(ME.account, "live")
        await _drive(again, found)
        assert found.state.phase == "completed"
        assert again.moved == ([] if row["state"]["phase"] == "completed" else ["live"])
        assert again.migrations.find(ME.account, "invoke", "live") is None  # the alias is the target's own now


async def _drive(house: House, live: Live) -> None:
    for _ in range(400):
        if not live.is_open:
            return
        if live.is_routing and live.state.phase == "running":
            await house.ask()
        await house.tick(0.1)
    raise AssertionError(f"still {live.state.phase} in step {live.state.step}")


async def test_a_row_that_nobody_can_read_keeps_no_server_down(house: House) -> None:
    await house.begin("100")
    broken = {**house.rows.rows[ME.account, "live"], "plan": {"name": 3}}
    house.rows.rows["000000000001", "other"] = broken
    again = House(Path("unused"), house.rows)
    await again.migrations.load()
    assert [live.plan.name for live in again.migrations.all(ME.account)] == ["live"]
    assert again.migrations.all("000000000001") == []


async def test_who_may_not_call_the_name_reaches_neither_side(house: House) -> None:
    await house.begin("100")

    def forbid(request: Request, operation: str, name: str, principal: Principal) -> None:
        assert (operation, name, principal) == ("InvokeModelWithResponseStream", "live", ME)
        raise NotAllowed("no")

    house.splitter.permit = forbid
    with pytest.raises(NotAllowed):
        await house.ask(stream=True)
    assert house.asked == []


async def test_only_requests_of_a_migrated_name_are_split(house: House) -> None:
    await house.begin("100")
    for method, path in (
        ("POST", "/model/other/invoke"),
        ("GET", "/model/live/invoke"),
        ("POST", "/endpoints/live/invocations"),
    ):
        scope = {"method": method, "raw_path": path.encode(), "query_string": b"", "headers": [], **ALIVE}
        assert house.splitter.split(Request(cast(Any, scope), cast(Any, None)), path, b"{}", ME) is None
    stranger = Principal("111111111111", "arn:aws:iam::111111111111:user/me")
    request = house.split().request
    assert house.splitter.split(request, "/model/live/invoke", b"{}", stranger) is None


async def test_a_target_that_cannot_take_over_gives_everything_back(house: House) -> None:
    live = await house.begin("100@0", is_alias=True, compare_percent=0)

    async def refuse(account: str, plan: Plan) -> None:
        raise ModelNotReady("no room")

    house.migrations._take_over = refuse
    await _drive(house, live)
    assert live.state.phase == "rolled-back"
    assert "could not take over: no room" in live.state.reason


async def test_a_count_of_tokens_follows_the_split_and_says_nothing_of_the_sides(house: House) -> None:
    live = await house.begin("100", compare_percent=100)
    house.answers["b"] = EngineFault("down")
    request = house.split().request
    path = "/model/live/count-tokens"
    split = house.splitter.split(request, path, b'{"input": {}}', ME)
    assert split is not None
    answer = await split.handle(request, path, b"", ME)
    split.answered()

    assert house.asked == ["b", "a"]
    assert "side=source" in dict(answer.headers)["x-outcrop-migration"]
    assert not house.splitter.shadows._tasks
    assert live.kept.target.requests == live.kept.target.failed == live.kept.source.requests == 0


async def test_an_accepted_asynchronous_call_counts_as_what_came_of_it(house: House) -> None:
    live = await house.begin("100")
    receipts = house.splitter.receipts
    for place, status in (("s3://b/1", 200), ("s3://b/2", 500), ("s3://b/3", 400), ("s3://b/4", 408)):
        receipts.accepted(place, live, "target")
        receipts.processed(place, status)
        receipts.processed(place, status)
    receipts.processed("s3://b/nobodys", 500)

    kept = live.kept.target
    assert (kept.requests, kept.failed, kept.refused) == (4, 2, 1)
    facts = house.migrations.facts(live).target
    assert facts.p95_s is None
    assert facts.errors["AsyncInvocation500"] == 1


async def test_a_response_is_followed_where_it_was_given_unless_that_side_lost_the_traffic(house: House) -> None:
    live = await house.begin("100")
    live.keeps("resp_1", "source")
    assert live.keeper("resp_1") is None  # both sides are this server, which has it whatever model gave it
    live.sides["target"] = read_side("openai:gpt@https://h/v1?key_file=/k")
    live.keeps("resp_1", "source")
    live.keeps("resp_2", "target")
    assert (live.keeper("resp_1"), live.keeper("resp_2"), live.keeper("")) == ("source", "target", None)
    await house.migrations.order(ME.account, "live", "abort")
    assert (live.keeper("resp_1"), live.keeper("resp_2")) == ("source", None)
    for number in range(MOST_KEEPERS + 5):
        live.keeps(f"resp_{number}", "source")
    assert len(live._keepers) == MOST_KEEPERS


async def test_a_caller_that_gave_up_waiting_counts_against_the_side_that_kept_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await house.begin("100", guards=Guards(min_requests=5))

    async def silent(request: Request, path: str, body: bytes, principal: Principal) -> Response | Stream:
        if path.endswith("-stream"):
            return Stream(200, EVENTS, _stalled())
        await asyncio.sleep(60)
        raise AssertionError

    house.splitter.sides.bind(bedrock=silent, openai=silent, sagemaker=silent)

    async def leave(*, stream: bool) -> None:
        task = asyncio.create_task(house.ask(stream=stream))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await leave(stream=False)
    await leave(stream=True)
    assert live.kept.target.failed == 0  # at once: it changed its mind
    monkeypatch.setattr(splitter, "GIVEN_UP_S", 0.0)
    await leave(stream=False)
    await leave(stream=True)
    assert live.kept.target.failed == 2
    await house.tick(1.0)
    assert live.state.phase == "rolled-back"
    assert "CallerGaveUp" in live.state.reason


async def _stalled() -> AsyncGenerator[bytes, None]:
    yield encode_chunk(b'{"generation": "a"}')
    await asyncio.sleep(60)
