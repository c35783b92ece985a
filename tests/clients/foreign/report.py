"""Run scenarios one after the other and print what each gave, as one JSON object on standard output."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL = os.environ["OUTCROP_URL"]
MODEL = os.environ["OUTCROP_MODEL_ARN"]
TOOL_MODEL = os.environ["OUTCROP_TOOL_MODEL_ARN"]
BEARER_KEY = os.environ["OUTCROP_BEARER_KEY"]
ABSENT = MODEL.rsplit("/", 1)[0] + "/aaaaaaaaaaaa"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris"]}},
    "required": ["city"],
    "additionalProperties": False,
}


def report(*scenarios: Callable[[], Any]) -> None:
    found: dict[str, Any] = {}
    for scenario in scenarios:
        try:
            value = scenario()
            found[scenario.__name__] = {"value": asyncio.run(value) if inspect.iscoroutine(value) else value}
        except Exception as exc:
            found[scenario.__name__] = {"error": {"name": type(exc).__name__, "message": str(exc)}}
    sys.stdout.write(json.dumps(found))
