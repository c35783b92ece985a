"""Keep-warm calls: the hours of a week, what a schedule costs, what a target's answers lead to."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.target import Target as StandIn
from tests.support.target import target as stand_in

from outcrop.delivery.keepwarm import OurServer, caller, keep, refuse_ours
from outcrop.delivery.targets import Target, parse
from outcrop.delivery.warm_hours import ALWAYS, OFFICE_HOURS, hours, next_call, usd
from outcrop.errors import BadSetting

ARN = "arn:aws:bedrock:eu-central-1:123456789012:imported-model/abcdef123456"
NOT_READY = (429, {"x-amzn-errortype": "ModelNotReadyException"}, b'{"message":"the model is being loaded"}')


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[StandIn]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "k" * 20)
    async with stand_in() as found:
        yield found


@pytest.mark.parametrize(
    ("text", "zone", "at", "opens"),
    [
        (OFFICE_HOURS, "UTC", "2026-07-06T08:00", "2026-07-06T08:00"),  # a Monday
        (OFFICE_HOURS, "UTC", "2026-07-06T18:00", "2026-07-07T08:00"),
        (OFFICE_HOURS, "UTC", "2026-07-10T19:00", "2026-07-13T08:00"),  # over the weekend
        (OFFICE_HOURS, "Europe/Berlin", "2026-07-06T06:00", "2026-07-06T06:00"),  # 8 in summer
        (OFFICE_HOURS, "Europe/Berlin", "2026-01-05T06:00", "2026-01-05T07:00"),  # 7 in winter
        (OFFICE_HOURS, "America/New_York", "2026-03-06T23:30", "2026-03-09T12:00"),  # the clocks change on the 8th
        ("fri-mon 22:00-02:00", "UTC", "2026-07-07T01:00", "2026-07-07T01:00"),  # Monday's night
        ("fri-mon 22:00-02:00", "UTC", "2026-07-07T03:00", "2026-07-10T22:00"),
        ("sat 09:00-00:00; mon 07:00-08:00", "UTC", "2026-07-12T00:00", "2026-07-13T07:00"),
        (ALWAYS, "UTC", "2026-07-12T03:00", "2026-07-12T03:00"),
    ],
)
def test_hours_are_wall_clock_times_of_their_zone(text: str, zone: str, at: str, opens: str) -> None:
    assert hours(text, zone).opening(utc(at)) == utc(opens)
    assert hours(text, zone).is_open(utc(at)) == (at == opens)


@pytest.mark.parametrize(
    ("text", "zone", "said"),
    [
        ("mon-fri", "UTC", "'mon-fri' cannot be read"),
        ("mo-fr 08:00-18:00", "UTC", "'mo-fr 08:00-18:00' cannot be read"),
        ("mon 25:00-26:00", "UTC", "cannot be read"),
        (OFFICE_HOURS, "Berlin", "zone='Berlin' is not known here"),
    ],
)
def test_hours_that_cannot_be_read_are_refused_with_an_example(text: str, zone: str, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        hours(text, zone)


def test_no_gap_between_calls_is_longer_than_asked_and_none_falls_outside_the_hours() -> None:
    office, at, calls = hours(OFFICE_HOURS, "Europe/Berlin"), utc("2026-03-27T06:50"), []
    for number in range(200):
        at = next_call(at, 14, 30, (number * 37 % 100) / 100, office)
        calls.append(at)

    assert all(office.is_open(call) for call in calls)
    gaps = [later - earlier for earlier, later in itertools.pairwise(calls)]
    inside = [gap for gap in gaps if gap < timedelta(hours=1)]
    assert max(inside) <= timedelta(minutes=14)
    assert min(inside) >= timedelta(minutes=13, seconds=30)
    assert {call.astimezone(office.zone).hour for call in calls} == set(range(8, 18))


def test_the_cost_of_a_schedule_is_the_published_arithmetic() -> None:
    # A call every 14 minutes, all month: 894 USD at 0.05718, 1,228 at 0.0785, by the published prices.
    assert round(usd(14, 730, 0.05718, 1)) == 894
    assert round(usd(14, 730, 0.0785, 1)) == 1228
    assert usd(1, 730, 0.05718, 2) == pytest.approx(730 * 60 * 0.05718 * 2)  # no window is paid twice
    assert hours(OFFICE_HOURS, "UTC").share(utc("2026-07-06T00:00")) == pytest.approx(50 / 168)
    assert hours("mon 08:00-12:00; mon 10:00-13:00", "UTC").share(utc("2026-07-08T11:00")) == pytest.approx(5 / 168)
    assert hours(ALWAYS, "UTC").share(utc("2026-07-08T11:00")) == 1


def test_a_target_says_its_api_its_place_and_its_region() -> None:
    assert parse(f"bedrock:{ARN}@aws").address("eu-central-1") == "https://bedrock-runtime.eu-central-1.amazonaws.com"
    assert parse(f"bedrock:{ARN}@aws").region("us-east-1") == "eu-central-1"
    assert parse("sagemaker:e@aws").address("us-west-2") == "https://runtime.sagemaker.us-west-2.amazonaws.com"
    assert parse("openai:m@http://h:1/v1/") == Target("openai", "m", "http://h:1/v1/")
    assert str(parse("openai:m")) == "openai:m"
    for text in ("m", "bedrock:", "bedrock:m@here", "openai:m@aws", "bedrock:m@http://"):
        with pytest.raises(BadSetting, match=r"API:MODEL|URL"):
            parse(text)


async def test_a_call_is_one_token_and_each_api_is_asked_in_its_own_words(served: StandIn) -> None:
    for text in (f"bedrock:{ARN}@{served.url}", f"sagemaker:e@{served.url}", f"openai:m@{served.url}/v1"):
        target = parse(text)
        await asyncio.to_thread(refuse_ours, target)  # a stand-in without a health page is not ours
        found = await asyncio.to_thread(lambda t: keep(t, caller(t, key="secret"), for_s=5), target)
        assert (found.is_warm, found.calls) == (True, 1), found

    assert served.bodies()[0] == {"prompt": "ping", "max_tokens": 1}
    assert served.bodies()[1]["max_tokens"] == served.bodies()[2]["max_tokens"] == 1
    assert served.bodies()[2]["model"] == "m"
    bedrock, sagemaker, openai = (headers["authorization"] for _, headers, _ in served.requests)
    assert "/eu-central-1/bedrock/aws4_request" in bedrock
    assert "/us-east-1/sagemaker/aws4_request" in sagemaker
    assert openai == "Bearer secret"


async def test_a_model_that_sleeps_is_called_until_it_is_awake(served: StandIn) -> None:
    served.refusals = [NOT_READY, NOT_READY]
    slept: list[float] = []

    found = await asyncio.to_thread(lambda t: keep(t, caller(t), for_s=60, sleep=slept.append), aws(served))

    assert (found.is_warm, found.calls, slept) == (True, 3, [10, 10])


@pytest.mark.parametrize(
    ("for_s", "refusal", "calls", "said"),
    [
        (0, NOT_READY, 1, "ModelNotReadyException"),
        (60, (400, {"x-amzn-errortype": "ValidationException"}, b'{"message":"no"}'), 1, "ValidationException"),
        (60, (403, {"x-amzn-errortype": "AccessDeniedException"}, b"{}"), 1, "AccessDeniedException"),
    ],
)
async def test_what_does_not_pass_by_itself_is_told_at_once(
    served: StandIn, for_s: float, refusal: Any, calls: int, said: str
) -> None:
    served.refusals = [refusal] * 9

    found = await asyncio.to_thread(lambda t: keep(t, caller(t), for_s=for_s, sleep=lambda _: None), aws(served))

    assert (found.is_warm, found.calls) == (False, calls)
    assert found.error.startswith(said)


async def test_nobody_there_is_an_error_and_a_stop_ends_the_wait(served: StandIn) -> None:
    gone = parse("openai:m@http://127.0.0.1:9/v1")
    assert (await asyncio.to_thread(lambda: keep(gone, caller(gone), for_s=0))).error.startswith("URLError")

    served.refusals = [NOT_READY] * 9
    found = await asyncio.to_thread(lambda t: keep(t, caller(t), for_s=600, sleep=lambda _: True), aws(served))
    assert (found.is_warm, found.calls) == (False, 1)


@pytest.mark.parametrize("api", ["openai", "bedrock", "sagemaker"])
@pytest.mark.parametrize("said", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", b""])
async def test_who_does_not_speak_http_is_an_error_and_no_end_of_the_daemon(
    api: str, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "k" * 20)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        writer.write(said)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(speak, "127.0.0.1", 0) as server:
        target = parse(f"{api}:m@http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await asyncio.to_thread(refuse_ours, target)
        found = await asyncio.to_thread(lambda: keep(target, caller(target), for_s=0))

    assert not found.is_warm
    assert found.error


async def test_an_answer_that_shows_a_server_of_ours_ends_it(served: StandIn) -> None:
    served.refusals = [(200, {"x-outcrop-timing": "load;dur=1"}, b"{}")]

    with pytest.raises(OurServer, match="outcrop scaling set"):
        await asyncio.to_thread(lambda t: keep(t, caller(t), for_s=1), aws(served))
    with pytest.raises(OurServer, match="--min 1"):
        refuse_ours(parse("bedrock:reviewer"))


def test_the_function_needs_nothing_but_this_package_and_boto3() -> None:
    listing = "import sys, outcrop.delivery.keepwarm_lambda, boto3; print(*{n.partition('.')[0] for n in sys.modules})"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)

    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    runtime = {"boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six", "certifi"}
    assert {name for name in loaded if not name.startswith("_")} - runtime - {"sitecustomize"} <= {"outcrop", "awscrt"}


def aws(served: StandIn) -> Target:
    return parse(f"bedrock:{ARN}@{served.url}")
