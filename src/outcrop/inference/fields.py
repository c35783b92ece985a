"""Reading one field of a request body, with messages that name the field, its value and what is allowed.

A field that is null counts as absent, as in OpenAI's API. A Boolean is never taken for a number.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from outcrop.errors import InvalidRequest

MAX_STOP_SEQUENCES = 64  # of a body; Converse has its own limit
SMALLEST_TOP_P = 1e-6
LARGEST_INT32 = 2**31 - 1  # engines keep counts in 32 bits and answer 500 to more
_SHOWN_CHARACTERS = 60

Body = Mapping[str, Any]


def refusal(field: str, rule: str, value: Any) -> InvalidRequest:
    """The error that *field* must be *rule* but has *value*, which is shown in short."""
    shown = repr(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "…"
    return InvalidRequest(f"{field} must be {rule}, got {shown}", param=field)


def number(
    body: Body, field: str, low: float, high: float, *, low_is_allowed: bool = True, called: str | None = None
) -> float | None:
    """The number under *field*, within *low* and *high*; None when absent. *called* names it in messages."""
    value = body.get(field)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Written so that NaN, which compares as false, is refused.
    if not is_number or not low <= value <= high or (value == low and not low_is_allowed):
        allowed = f"from {low:g} to {high:g}" if low_is_allowed else f"above {low:g} and at most {high:g}"
        raise refusal(called or field, f"a number {allowed}", value)
    return value  # type: ignore[no-any-return]  # narrowed by is_number


def whole(body: Body, field: str, low: int, high: int = LARGEST_INT32, *, called: str | None = None) -> int | None:
    """The whole number under *field*, within *low* and *high*; None when absent."""
    value = body.get(field)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise refusal(called or field, f"a whole number from {low} to {high}", value)
    return value


def flag(body: Body, field: str) -> bool | None:
    """The Boolean under *field*; None when absent."""
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise refusal(field, "true or false", value)
    return value


def text(body: Body, field: str, *, called: str | None = None) -> str:
    """The string under *field*, which must be there and hold something."""
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise refusal(called or field, "a string that is not empty", value)
    return value


def stop_sequences(
    body: Body, field: str = "stop", *, most: int = MAX_STOP_SEQUENCES, called: str | None = None
) -> list[str] | None:
    """The stop sequences under *field*, a string or a list; None when absent or an empty list."""
    value = body.get(field)
    if value is None or value == []:
        return None
    sequences = [value] if isinstance(value, str) else value
    are_strings = isinstance(sequences, list) and all(isinstance(item, str) and item for item in sequences)
    # An empty sequence would match before the first token.
    if not are_strings or len(sequences) > most:
        raise refusal(called or field, f"a string or a list of at most {most} strings, none of them empty", value)
    return list(sequences)


def mapping(body: Body, field: str, *, called: str | None = None) -> dict[str, Any] | None:
    """The object under *field*; None when absent."""
    value = body.get(field)
    if value is not None and not isinstance(value, dict):
        raise refusal(called or field, "an object", value)
    return value


def sampling(body: Body) -> dict[str, Any]:
    """The sampling parameters that *body* has, checked, under OpenAI's names (and vLLM's, where OpenAI has none)."""
    read: dict[str, Any] = {
        "temperature": number(body, "temperature", 0, 2),
        "top_p": top_p(body),
        **other_sampling(body),
        "stop": stop_sequences(body),
    }
    return without_none(read)


def top_p(body: Body, field: str = "top_p", *, called: str | None = None) -> float | None:
    """The share of probability under *field*; None when absent. 0, which engines refuse, means the likeliest token."""
    value = number(body, field, 0, 1, called=called)
    return None if value is None else max(value, SMALLEST_TOP_P)


def other_sampling(body: Body) -> dict[str, Any]:
    """Those of ``sampling`` that Converse has no field for and takes in additionalModelRequestFields."""
    return without_none(
        {
            "top_k": whole(body, "top_k", 0),
            "min_p": number(body, "min_p", 0, 1),
            "seed": whole(body, "seed", -(2**63), 2**63 - 1),
            "presence_penalty": number(body, "presence_penalty", -2, 2),
            "frequency_penalty": number(body, "frequency_penalty", -2, 2),
            "repetition_penalty": number(body, "repetition_penalty", 0, 2, low_is_allowed=False),
            "logit_bias": _logit_bias(body),
            "ignore_eos": flag(body, "ignore_eos"),
        }
    )


def _logit_bias(body: Body) -> dict[str, Any] | None:
    bias = mapping(body, "logit_bias")
    for token in bias or {}:
        if not token.isdecimal():
            raise refusal("logit_bias", "an object from token ids to numbers", token)
        number(bias or {}, token, -100, 100, called=f"logit_bias.{token}")
    return bias


def response_format(body: Body, *, schema_may_be_bare: bool) -> dict[str, Any] | None:
    """``response_format`` in OpenAI's form; None when absent or plain text.

    BedrockCompletion writes the schema itself under "json_schema", OpenAI wraps it in {"name", "schema"}. With
    *schema_may_be_bare* both are read; an object with an object "schema" and none of a schema's own keywords is
    taken for the wrapped form.
    """
    wanted = mapping(body, "response_format")
    if wanted is None:
        return None
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema":
        raise refusal("response_format.type", 'one of "text", "json_object", "json_schema"', kind)
    given = mapping(wanted, "json_schema", called="response_format.json_schema")
    if not given:
        raise refusal("response_format.json_schema", "an object", given)
    is_wrapped = isinstance(given.get("schema"), dict) and not given.keys() & {"type", "properties", "$ref", "anyOf"}
    if is_wrapped:
        return {"type": "json_schema", "json_schema": {"name": "answer", **given}}
    if schema_may_be_bare:
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given}}
    raise refusal("response_format.json_schema.schema", "an object", given.get("schema"))


def structured_outputs(body: Body) -> dict[str, Any] | None:
    """``structured_outputs`` with its one constraint (vLLM's form); None when absent."""
    wanted = mapping(body, "structured_outputs")
    if wanted is None:
        return None
    constraints = without_none(wanted)
    known = ("json", "regex", "choice", "grammar")
    if len(constraints) != 1 or not constraints.keys() <= set(known):
        raise refusal("structured_outputs", f"an object with exactly one of {', '.join(known)}", sorted(constraints))
    choice = constraints.get("choice")
    if "choice" in constraints and not (
        isinstance(choice, list) and choice and all(isinstance(item, str) for item in choice)
    ):
        raise refusal("structured_outputs.choice", "a list of strings that is not empty", choice)
    for kind in constraints.keys() & {"regex", "grammar"}:
        text(constraints, kind, called=f"structured_outputs.{kind}")
    return constraints


def one_of(body: Body, field: str, allowed: Collection[str]) -> str | None:
    """The string under *field*, one of *allowed*; None when absent."""
    value = body.get(field)
    if value is not None and value not in allowed:
        raise refusal(field, f"one of {', '.join(sorted(allowed))}", value)
    return value


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """*values* less those that are None."""
    return {key: value for key, value in values.items() if value is not None}
