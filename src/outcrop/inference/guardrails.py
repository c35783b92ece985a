"""The guardrail fields of a request, checked as AWS checks them.

No guardrail can be made here, so none that is named exists; a request that asks for one is refused, as AWS refuses an
unknown one, and never answered unguarded. Source: botocore, bedrock-runtime/2023-09-30, InvokeModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest

UNKNOWN = "The guardrail identifier or version provided in the request does not exist."
CONFIG = "amazon-bedrock-guardrailConfig"


def refuse_unknown(identifier: str | None, version: str | None, body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest when a guardrail is named, or named by halves. Trace alone asks for nothing."""
    if identifier and not version:
        raise InvalidRequest("guardrailVersion is required with guardrailIdentifier.", param="guardrailVersion")
    if version and not identifier:
        raise InvalidRequest("guardrailIdentifier is required with guardrailVersion.", param="guardrailIdentifier")
    if not identifier and body.get(CONFIG) is not None:
        raise InvalidRequest(f"{CONFIG} in the body needs a guardrailIdentifier.", param=CONFIG)
    if identifier:
        raise InvalidRequest(UNKNOWN, param="guardrailIdentifier")
