"""Calls that keep a model warm where nothing else can: on AWS, and on endpoints that others run.

A model of Custom Model Import falls asleep without calls and its API has no setting against that. A server of this
project has (least copies, schedules), so it is refused here: a call bills a window and wakes on a timer what the
fleet would keep on purpose. Blocking; whoever wants several targets at once gives each a thread.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Protocol
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from outcrop.delivery.targets import AWS, Target
from outcrop.errors import BadSetting

OURS = "x-outcrop-server"  # on /healthz of a server of this project
OURS_ON_ANSWERS = "x-outcrop-timing"
PASSING = (
    *("ModelNotReadyException", "ThrottlingException", "ServiceUnavailableException", "InternalServerException"),
    *("ModelTimeoutException", "ModelNotReady", "model_not_ready", "ReadTimeoutError", "ConnectTimeoutError"),
    *("TimeoutError", "HTTP 429", "HTTP 503"),
)
TIMEOUT_S = 70.0  # of one call; a caller of AWS is held for a minute
BETWEEN_S = 10.0  # of two calls to a model that is still waking


class OurServer(BadSetting):
    """The target is a server of this project."""

    def __init__(self, target: Target) -> None:
        super().__init__(
            f"{target} is a server of Outcrop: keep copies there without calls. A copy at all times: outcrop scaling "
            f"set {target.model} --min 1; in office hours: outcrop scaling set {target.model} --floor "
            "'0 8 * * 1-5;36000;1' (docs/how-to/scale.md)."
        )


@dataclass(frozen=True, slots=True)
class Called:
    """One target, called until it answered or the time was up. *calls*: how many that took. Seconds."""

    target: str
    is_warm: bool
    took_s: float
    calls: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """*error*: the name by which the API told it; empty when it answered."""

    error: str = ""
    message: str = ""
    is_ours: bool = False


class Caller(Protocol):
    def __call__(self) -> Answer:
        """One small request, sent once."""


def default_body(api: str) -> dict[str, Any]:
    """The smallest question each API takes. ``prompt`` with ``max_tokens`` is read by every family on Bedrock."""
    if api == "bedrock":
        return {"prompt": "ping", "max_tokens": 1}
    return {"messages": [{"role": "user", "content": "ping"}], "max_tokens": 1}


def refuse_ours(target: Target) -> None:
    """Raises OurServer when *target* is a server of this project; asks its health page, which wakes no model."""
    if not target.url:
        raise OurServer(target)
    if target.url == AWS:
        return
    parts = urlsplit(target.url)
    request = urllib.request.Request(f"{parts.scheme}://{parts.netloc}/healthz")  # noqa: S310  (http or https: parsed)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            is_ours = OURS in answer.headers
    except urllib.error.HTTPError as exc:
        with exc:
            is_ours = OURS in exc.headers
    except (OSError, HTTPException):
        return  # no health page: the call itself will say what is wrong
    if is_ours:
        raise OurServer(target)


def caller(target: Target, body: dict[str, Any] | None = None, key: str = "") -> Caller:
    """How *target* is called; *key*: of an OpenAI endpoint. Raises BadSetting without AWS credentials."""
    asked = body or default_body(target.api)
    if target.api == "openai":
        return lambda: _ask_openai(target, {"model": target.model, **asked}, key)
    client, text = _client(target), json.dumps(asked)
    if target.api == "bedrock":
        return lambda: _ask(lambda: client.invoke_model(modelId=target.model, body=text), "body")
    send = lambda: client.invoke_endpoint(  # noqa: E731
        EndpointName=target.model, Body=text, ContentType="application/json"
    )
    return lambda: _ask(send, "Body")


def _client(target: Target) -> Any:
    import boto3
    from botocore.config import Config

    session = boto3.session.Session()
    if session.get_credentials() is None:
        raise BadSetting("no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role.")
    region = target.region(session.region_name or "us-east-1")
    return session.client(
        "bedrock-runtime" if target.api == "bedrock" else "sagemaker-runtime",
        region_name=region,
        endpoint_url=target.address(region),
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=10, read_timeout=TIMEOUT_S),
    )


def _ask(send: Callable[[], dict[str, Any]], body: str) -> Answer:
    try:
        answer = send()
        answer[body].read()
    except ClientError as exc:
        error = exc.response.get("Error", {})
        headers = exc.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        return Answer(str(error.get("Code", "")) or "ClientError", str(exc), OURS_ON_ANSWERS in headers)
    except (BotoCoreError, OSError) as exc:
        return Answer(type(exc).__name__, str(exc))
    return Answer(is_ours=OURS_ON_ANSWERS in answer["ResponseMetadata"]["HTTPHeaders"])


def _ask_openai(target: Target, body: dict[str, Any], key: str) -> Answer:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    url = f"{target.url.rstrip('/')}/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310  (http or https: parsed)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            answer.read()
            return Answer(is_ours=OURS_ON_ANSWERS in answer.headers)
    except urllib.error.HTTPError as exc:
        with exc:
            said, is_ours = exc.read(10_000), OURS_ON_ANSWERS in exc.headers
        try:
            error = json.loads(said)["error"]
            name, message = str(error.get("code") or error.get("type") or ""), str(error.get("message", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            name, message = "", ""
        return Answer(name or f"HTTP {exc.code}", message or str(exc), is_ours)
    except (OSError, HTTPException) as exc:
        return Answer(type(exc).__name__, str(exc))


def keep(
    target: Target,
    call: Caller,
    *,
    for_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Called:
    """Call until *target* answers, at most *for_s* seconds: a model that sleeps is woken by the first call.

    Only what passes by itself is tried again; *sleep* ends it with a true answer. Raises OurServer.
    """
    begun, calls = clock(), 0
    while True:
        calls += 1
        answer = call()
        if answer.is_ours:
            raise OurServer(target)
        took = clock() - begun
        if not answer.error:
            return Called(str(target), True, took, calls)
        if answer.error not in PASSING or took + BETWEEN_S > for_s or sleep(BETWEEN_S):
            return Called(str(target), False, took, calls, f"{answer.error}: {answer.message}"[:400])
