"""What AWS's own reference says of each action: its resource types, their ARN formats (``actions.json``)."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((files("outcrop.access") / "actions.json").read_bytes())
    return found


@cache
def action_of(service: str, operation: str) -> str:
    """The action that *operation* is authorised as: ``bedrock:InvokeModel`` for Converse."""
    return f"{service}:{_table()['as'].get(operation, operation)}"


def is_known(action: str) -> bool:
    """Whether a door asks for *action*, which is one of ours or, spelled as AWS's reference does, one of AWS's."""
    return action.startswith("outcrop:") or action in _table()["actions"]


@cache
def resource_types(action: str) -> frozenset[str]:
    """Types of the resources that *action* is about; none for one that is asked on ``*``."""
    return frozenset(_table()["actions"].get(action, {}).get("resources", ()))


def arn(service: str, kind: str, region: str, account: str, name: str) -> str:
    """The ARN of a resource by the reference's own format; *name* fills every place that is not one of these."""
    values = {"Partition": "aws", "Region": region, "Account": account}
    text: str = _table()["resources"][f"{service}:{kind}"]
    return re.sub(r"\$\{(\w+)\}", lambda found: values.get(found.group(1), name), text)
