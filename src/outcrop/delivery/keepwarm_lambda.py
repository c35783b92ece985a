"""Keep-warm calls as an AWS Lambda function: set the handler to ``outcrop.delivery.keepwarm_lambda.handler``.

A schedule of EventBridge invokes it (``rate(14 minutes)``). It reads ``OUTCROP_KEEPWARM_TARGETS`` (targets as the
command takes them, separated by blanks), ``_HOURS`` and ``_ZONE``. Needs this package's files and the boto3 that the
runtime has, nothing else. A target that did not answer fails the invocation, which an alarm on Errors sees.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from outcrop.delivery.keepwarm import TIMEOUT_S, caller, keep, refuse_ours
from outcrop.delivery.targets import parse
from outcrop.delivery.warm_hours import OFFICE_HOURS, hours
from outcrop.errors import BadSetting

PREFIX = "OUTCROP_KEEPWARM_"


class NotWarm(Exception):
    """Targets that did not answer; the message says which and why."""


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Lambda's entry point: calls every target once within the hours, one after the other."""
    targets = [parse(text) for text in os.environ.get(f"{PREFIX}TARGETS", "").split()]
    if not targets:
        raise BadSetting(f"{PREFIX}TARGETS is empty; set it to targets such as bedrock:ARN@aws.")
    within = hours(os.environ.get(f"{PREFIX}HOURS", OFFICE_HOURS), os.environ.get(f"{PREFIX}ZONE", "UTC"))
    if not within.is_open(datetime.now(UTC)):
        return {"status": "outside the hours", "called": []}
    called = []
    for number, target in enumerate(targets):
        refuse_ours(target)
        left_s = context.get_remaining_time_in_millis() / 1000 - TIMEOUT_S
        call = caller(target, key=os.environ.get("OPENAI_API_KEY", ""))
        called.append(keep(target, call, for_s=left_s / (len(targets) - number)))
    if cold := [each for each in called if not each.is_warm]:
        raise NotWarm("; ".join(f"{each.target} after {each.calls} calls: {each.error}" for each in cold))
    return {"status": "warm", "called": [asdict(each) for each in called]}
