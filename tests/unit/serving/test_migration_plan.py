"""Plans as they are written, checked and split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outcrop.errors import InvalidRequest, MalformedBody
from outcrop.serving.migration.plan import Plan, Side, Step, read_plan, read_side, read_steps
from outcrop.serving.migration.split import Caller, compared_share, is_listed, share_of, side_of

STEPS = read_steps("shadow:10,listed:50,1,10,50,100")


def plan(**changes: Any) -> Plan:
    values = {"name": "live", "source": "bedrock:old", "target": "bedrock:new", "steps": STEPS}
    return Plan(**{**values, "listed_headers": {"x-app": "batch"}, **changes})


def caller(principal: str = "arn:aws:iam::000000000000:user/me", **headers: str) -> Caller:
    return Caller(principal, {name.replace("_", "-"): value for name, value in headers.items()})


def never() -> float:
    raise AssertionError("a sticky caller is not drawn")


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("bedrock:old", Side(kind="bedrock", name="old")),
        (
            "bedrock:arn:aws:bedrock:us-east-1:1:imported-model/a@https://b.example?region=us-east-1&profile=p",
            Side(
                kind="bedrock",
                name="arn:aws:bedrock:us-east-1:1:imported-model/a",
                url="https://b.example",
                region="us-east-1",
                profile="p",
            ),
        ),
        (
            "openai:m@https://b.example/v1/?key_file=/k",
            Side(kind="openai", name="m", url="https://b.example/v1", key_file="/k"),
        ),
    ],
)
def test_a_side_is_read_from_one_line(text: str, side: Side) -> None:
    assert read_side(text) == side


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": "bedrok:old"}, "is no side"),
        ({"target": "bedrock:"}, "is no side"),
        ({"target": "openai:m"}, "needs a URL"),
        ({"target": "openai:m@https://h/v1"}, "needs key_file"),
        ({"target": "bedrock:m@https://h"}, "needs region"),
        ({"target": "bedrock:m@ftp://h?region=r"}, "no http or https URL"),
        ({"target": "bedrock:m@https://h?region=r&x=1"}, "unknown options x"),
        ({"target": "bedrock:old"}, "nothing to move"),
        ({"name": "-x"}, "name '-x'"),
        ({"steps": []}, "last step must be 100"),
        ({"steps": [{"kind": "live", "percent": 50}]}, "last step must be 100"),
        ({"steps": [{"kind": "live", "percent": 0}, {"kind": "live", "percent": 100}]}, "over 0"),
        (
            {
                "steps": [
                    {"kind": "live", "percent": 50},
                    {"kind": "live", "percent": 10},
                    {"kind": "live", "percent": 100},
                ]
            },
            "must not fall",
        ),
        ({"steps": [{"kind": "listed", "percent": 50}, {"kind": "live", "percent": 100}]}, "who goes first"),
        ({"steps": [{"kind": "half", "percent": 50}]}, "Invalid enum value"),
        ({"sticky": "header:"}, "sticky = 'header:'"),
        ({"guards": {"error_rate": 1.5}}, "error_rate = 1.5 must be from 0 to 1"),
        ({"guards": {"errors": 1}}, "unknown field `errors`"),
        ({"shadows_at_a_time": 0}, "shadows_at_a_time = 0"),
        ({"target_price": {"usd_per_hour": -1}}, "must not be negative"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    body = {"name": "live", "source": "bedrock:old", "target": "bedrock:new", **change}
    with pytest.raises(InvalidRequest, match=said):
        read_plan(json.dumps(body).encode())


def test_a_body_that_is_no_json_is_malformed() -> None:
    with pytest.raises(MalformedBody):
        read_plan(b"{")


def test_steps_are_read_with_their_own_times() -> None:
    assert read_steps("shadow:5%@3,100", hold_s=60, min_requests=2) == [
        Step(kind="shadow", percent=5, hold_s=3, min_requests=2),
        Step(kind="live", percent=100, hold_s=60, min_requests=2),
    ]
    for text in ("", "x", "canary:5", "5@soon"):
        with pytest.raises(InvalidRequest, match="is no step"):
            read_steps(text)


def test_listed_callers_go_first_and_the_others_wait_for_their_step() -> None:
    listed, other = caller(x_app="batch"), caller(x_app="web")
    assert is_listed(plan(), listed)
    assert not is_listed(plan(), other)
    assert is_listed(plan(listed_principals=["arn:aws:iam::*:user/m?"]), other)
    assert not is_listed(plan(listed_headers={}), other)
    assert [share_of(plan(), step, listed=True) for step in range(6)] == [0, 0.5, 0.5, 0.5, 0.5, 1]
    assert [share_of(plan(), step, listed=False) for step in range(6)] == [0, 0, 0.01, 0.1, 0.5, 1]
    assert side_of(plan(), 1, listed, lambda: 0.49) == "target"
    assert side_of(plan(), 1, other, lambda: 0.0) == "source"
    assert [compared_share(plan(compare_percent=4), step) for step in (0, 3)] == [0.1, 0.04]


@given(
    key=st.text(min_size=1, max_size=40),
    shares=st.lists(st.floats(min_value=0.1, max_value=100), min_size=1, max_size=6).map(sorted),
)
def test_a_sticky_caller_never_moves_back_as_shares_rise(key: str, shares: list[float]) -> None:
    steps = [Step(kind="live", percent=share) for share in [*shares, 100]]
    sticky = plan(steps=steps, sticky="header:X-Tenant")
    sides = [side_of(sticky, step, caller(x_tenant=key), never) for step in range(len(steps))]

    assert sides == sorted(sides)  # "source" comes before "target"
    assert sides[-1] == "target"
    assert sides == [side_of(sticky, step, caller("other", x_tenant=key), never) for step in range(len(steps))]


def test_sticky_callers_divide_as_the_step_says() -> None:
    sticky = plan(sticky="principal")
    for step, share in ((3, 0.1), (4, 0.5)):
        taken = sum(side_of(sticky, step, caller(f"user/{n}"), never) == "target" for n in range(4000))
        assert abs(taken / 4000 - share) < 0.03
    by_session = plan(sticky="session")
    named = caller(x_amzn_sagemaker_session_id="s")
    assert len({side_of(by_session, 4, named, never) for _ in range(5)}) == 1
    assert {side_of(by_session, 4, caller(), point) for point in (lambda: 0.1, lambda: 0.9)} == {"source", "target"}
