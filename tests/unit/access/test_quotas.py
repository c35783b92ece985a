"""Quotas: buckets over time, what a refusal says and leaves behind, limits that survive a restart."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from outcrop.access.quotas import CONCURRENT, COPIES, JOBS, MODELS, REQUESTS, TOKENS, Quotas, Scope, Within
from outcrop.errors import InvalidRequest, QuotaExceeded, Throttled
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry

ACCOUNT, ANN, MODEL = "000000000000", "arn:aws:iam::000000000000:user/ann", "abcdefabcdef"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(tmp_path: Path, clock: Clock) -> Quotas:
    return Quotas(IdentityRecords(Registry.open(tmp_path / "db")), clock)


async def test_requests_are_let_in_as_fast_as_the_quota_says(quotas: Quotas, clock: Clock) -> None:
    await quotas.set(Scope(ACCOUNT), REQUESTS, 60)
    for _ in range(60):
        quotas.enter(ACCOUNT, ANN, MODEL)
    with pytest.raises(Throttled, match="requests-per-minute of account 000000000000 is 60") as refused:
        quotas.enter(ACCOUNT, ANN, MODEL)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    clock.now += 1.0
    quotas.enter(ACCOUNT, ANN, MODEL)
    with pytest.raises(Throttled):
        quotas.enter(ACCOUNT, ANN, MODEL)
    quotas.enter("111111111111", ANN, MODEL)  # another account's are not touched


async def test_tokens_are_counted_at_the_end_and_held_against_the_next(quotas: Quotas, clock: Clock) -> None:
    await quotas.set(Scope(ACCOUNT, ANN), TOKENS, 600)
    ticket = quotas.enter(ACCOUNT, ANN, MODEL)
    assert ticket is not None
    ticket.leave(900)
    with pytest.raises(Throttled, match="Too many tokens"):
        quotas.enter(ACCOUNT, ANN, MODEL)
    assert quotas.enter(ACCOUNT, "arn:aws:iam::000000000000:user/bob", MODEL) is None
    clock.now += 30.1
    quotas.enter(ACCOUNT, ANN, MODEL)


async def test_a_refused_request_uses_nothing(quotas: Quotas) -> None:
    await quotas.set(Scope(ACCOUNT), REQUESTS, 10)
    await quotas.set(Scope(ACCOUNT, "", MODEL), CONCURRENT, 1)
    ticket = quotas.enter(ACCOUNT, ANN, MODEL)
    for _ in range(5):
        with pytest.raises(Throttled, match=f"for model {MODEL} is 1"):
            quotas.enter(ACCOUNT, ANN, MODEL)
    used = {row["quota"]: row["used"] for row in quotas.listed(ACCOUNT)}
    assert used == {REQUESTS: 1, CONCURRENT: 1}
    assert ticket is not None
    ticket.leave(0)
    ticket.leave(0)  # again is nothing
    assert {row["quota"]: row["used"] for row in quotas.listed(ACCOUNT)}[CONCURRENT] == 0


async def test_counts_of_an_account(quotas: Quotas) -> None:
    quotas.check_count(ACCOUNT, MODELS, 1000)
    await quotas.set(Scope(ACCOUNT), MODELS, 3)
    quotas.check_count(ACCOUNT, MODELS, 2)
    with pytest.raises(QuotaExceeded, match="imported-models is 3"):
        quotas.check_count(ACCOUNT, MODELS, 3)
    with pytest.raises(InvalidRequest):
        await quotas.set(Scope(ACCOUNT, ANN), JOBS, 1)
    with pytest.raises(InvalidRequest):
        await quotas.set(Scope(ACCOUNT), "coffees", 1)
    with pytest.raises(InvalidRequest):
        await quotas.set(Scope(ACCOUNT), REQUESTS, -1)


async def test_limits_survive_a_restart_and_can_be_taken_away(tmp_path: Path) -> None:
    records = IdentityRecords(Registry.open(tmp_path / "db"))
    first = Quotas(records)
    await first.set(Scope(ACCOUNT, ANN, MODEL), REQUESTS, 5)
    again = Quotas(records)
    again.load()
    assert [(row["principal"], row["model"], row["value"]) for row in again.listed(ACCOUNT)] == [(ANN, MODEL, 5)]
    await again.set(Scope(ACCOUNT, ANN, MODEL), REQUESTS, None)
    third = Quotas(records)
    third.load()
    assert third.listed(ACCOUNT) == []


async def test_whatever_the_order_no_more_run_at_a_time_than_allowed(quotas: Quotas) -> None:
    await quotas.set(Scope(ACCOUNT), CONCURRENT, 4)
    rng, running = random.Random(3), []
    for _ in range(2000):
        if running and rng.random() < 0.5:
            running.pop(rng.randrange(len(running))).leave(rng.randrange(50))
            continue
        try:
            ticket = quotas.enter(ACCOUNT, ANN, MODEL)
        except Throttled:
            assert len(running) == 4
            continue
        assert ticket is not None
        running.append(ticket)
        assert len(running) <= 4


async def test_a_call_of_an_endpoint_counts_once_and_pays_for_what_is_asked_within_it(
    quotas: Quotas, clock: Clock
) -> None:
    proxy = "arn:aws:iam::000000000000:role/outcrop-endpoint"
    await quotas.set(Scope(ACCOUNT), REQUESTS, 60)
    await quotas.set(Scope(ACCOUNT), CONCURRENT, 1)
    await quotas.set(Scope(ACCOUNT), TOKENS, 600)
    await quotas.set(Scope(ACCOUNT, ANN), TOKENS, 100)
    await quotas.set(Scope(ACCOUNT, "", MODEL), CONCURRENT, 1)
    outer = quotas.enter_outer(ACCOUNT, ANN, "endpoint/e")
    assert outer is not None
    inner = quotas.enter(ACCOUNT, proxy, MODEL, Within(outer.name))
    assert inner is not None
    with pytest.raises(Throttled, match=f"for model {MODEL}"):  # what limits the model holds within too
        quotas.enter(ACCOUNT, proxy, MODEL, Within(outer.name))
    inner.leave(150)
    outer.leave(0)
    used = {(row["principal"], row["model"], row["quota"]): row["used"] for row in quotas.listed(ACCOUNT)}
    assert used[("", "", REQUESTS)] == 1
    assert used[("", "", CONCURRENT)] == 0
    assert used[("", "", TOKENS)] == 150
    assert used[(ANN, "", TOKENS)] == 150
    with pytest.raises(Throttled, match="tokens"):
        quotas.enter_outer(ACCOUNT, ANN, "endpoint/e")


async def test_what_is_asked_within_a_call_that_is_over_is_the_account_s(quotas: Quotas) -> None:
    await quotas.set(Scope(ACCOUNT), TOKENS, 600)
    await quotas.set(Scope("1" * 12), TOKENS, 600)
    outer, other = quotas.enter_outer(ACCOUNT, ANN, "endpoint/e"), quotas.enter_outer("1" * 12, ANN, "endpoint/e")
    assert outer is not None
    assert other is not None
    outer.leave(0)
    for name in (outer.name, other.name, "", "made-up"):  # another account's call pays for nothing of this one's
        inner = quotas.enter(ACCOUNT, "proxy", MODEL, Within(name))
        assert inner is not None
        inner.leave(10)
        inner.leave(10)
    assert [row["used"] for row in quotas.listed(ACCOUNT)] == [40]
    assert [row["used"] for row in quotas.listed("1" * 12)] == [0]


async def test_copies_are_an_account_s_or_a_model_s(quotas: Quotas) -> None:
    await quotas.set(Scope(ACCOUNT), COPIES, 3)
    await quotas.set(Scope(ACCOUNT, "", MODEL), COPIES, 2)
    assert quotas.copies(ACCOUNT, MODEL) == (3, 2)
    assert quotas.copies(ACCOUNT, "other") == (3, None)
    assert quotas.copies("1" * 12, MODEL) == (None, None)
    with pytest.raises(InvalidRequest, match="principals share"):
        await quotas.set(Scope(ACCOUNT, ANN), COPIES, 1)
    with pytest.raises(InvalidRequest, match="never serve"):
        await quotas.set(Scope(ACCOUNT), COPIES, 0)
    counts = {"": 2, MODEL: 1}
    rows = quotas.listed(ACCOUNT, lambda name, model: counts[model] if name == COPIES else None)
    assert [(row["model"], row["used"]) for row in rows] == [("", 2), (MODEL, 1)]
