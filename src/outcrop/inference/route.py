"""Which format a body of InvokeModel has: AWS decides by the body's keys alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest
from outcrop.inference.answer import BodyDialect
from outcrop.inference.bedrock_completion import BEDROCK_COMPLETION
from outcrop.inference.openai_chat import OPENAI_CHAT
from outcrop.inference.openai_completion import OPENAI_COMPLETION

# First match wins; a key whose value is null counts as absent. ``max_tokens`` decides even beside ``max_gen_len``.
ROUTES: tuple[tuple[frozenset[str], BodyDialect], ...] = (
    (frozenset({"messages"}), OPENAI_CHAT),
    (frozenset({"prompt", "max_tokens"}), OPENAI_COMPLETION),
    (frozenset({"prompt"}), BEDROCK_COMPLETION),
)


def dialect_for(body: Mapping[str, Any]) -> BodyDialect:
    """The format of *body* (AWS, "Invoke your imported model"); raises InvalidRequest when it has none."""
    present = {key for key, value in body.items() if value is not None}
    for needed, dialect in ROUTES:
        if needed <= present:
            return dialect
    raise InvalidRequest('the body must have "messages" or "prompt"')
