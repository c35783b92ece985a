"""Condition blocks compiled to functions of a request's context. Pure; the clock is a context key like any other.

Rules: IAM User Guide, "IAM JSON policy elements: Condition operators", "Multivalued context keys", "Policy variables".
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from outcrop.access.patterns import ARN_SEGMENTS, arn_glob, glob
from outcrop.access.variables import Context, Template, template, unmarked
from outcrop.errors import MalformedPolicy

Condition = Callable[[Context], bool]
Fits = Callable[[str, str], bool]  # (value of the request, value of the policy) -> whether they fit

_QUALIFIED = re.compile(r"(?:(ForAllValues|ForAnyValue):)?([A-Za-z]+?)(IfExists)?")
_KEY = re.compile(r"[A-Za-z0-9._/-]+:[^\x00-\x1f]+")  # a provider's keys begin with its address


def compile_block(block: Any, where: str, *, has_variables: bool) -> tuple[Condition, ...]:
    """The conditions of a Condition element, all of which must hold. Raises MalformedPolicy naming what is wrong."""
    if not isinstance(block, Mapping):
        raise MalformedPolicy(f"{where}: Condition must be an object of operators.")
    found = []
    for operator, keys in block.items():
        if not isinstance(keys, Mapping) or not keys:
            raise MalformedPolicy(f"{where}: Condition operator {operator} must hold an object of context keys.")
        for key, values in keys.items():
            if not isinstance(key, str) or not _KEY.fullmatch(key):
                raise MalformedPolicy(f"{where}: Condition key {str(key)[:80]!r} must be like aws:SourceIp.")
            found.append(_condition(operator, key.lower(), _texts(values, where, key), where, has_variables))
    return tuple(found)


def keys_of(block: Mapping[str, Any]) -> set[str]:
    """Lower-case context keys that a Condition element asks for."""
    return {key.lower() for keys in block.values() for key in keys}


def _texts(values: Any, where: str, key: str) -> tuple[str, ...]:
    listed = values if isinstance(values, list) else [values]
    texts = []
    for value in listed:
        if isinstance(value, bool):
            texts.append("true" if value else "false")
        elif isinstance(value, str | int | float):
            texts.append(str(value))
        else:
            raise MalformedPolicy(f"{where}: values of Condition key {key} must be strings, numbers or Booleans.")
    return tuple(texts)


def _condition(operator: str, key: str, values: tuple[str, ...], where: str, has_variables: bool) -> Condition:
    found = _QUALIFIED.fullmatch(operator)
    name = found.group(2) if found else ""
    if found is None or (name != "Null" and name not in _OPERATORS):
        raise MalformedPolicy(f"{where}: Condition operator {operator[:80]!r} is not one of IAM's.")
    quantifier, if_exists = found.group(1), bool(found.group(3))
    if name == "Null":
        return _null(key, values, where)
    fits, is_negated, check = _OPERATORS[name]
    templates = [template(value) if has_variables else value for value in values]
    for each in templates:
        if check is not None and isinstance(each, str) and not check(each):
            raise MalformedPolicy(f"{where}: {each[:80]!r} is no value for {operator} on {key}.")
    plain = tuple(each for each in templates if isinstance(each, str))
    variable = tuple(each for each in templates if isinstance(each, Template))

    def wanted(context: Context) -> Sequence[str]:
        if not variable:
            return plain
        filled = (each.filled(context) for each in variable)
        return [*plain, *(text for text in filled if text is not None)]

    def holds(value: str, among: Sequence[str]) -> bool:
        return any(fits(value, each) for each in among) != is_negated

    def whole(context: Context) -> bool:
        given = context.get(key)
        if given is None:
            return if_exists or is_negated
        among = wanted(context)
        if isinstance(given, str):
            return holds(given, among)
        return (all if is_negated else any)(holds(value, among) for value in given)

    def for_all(context: Context) -> bool:
        given = context.get(key)
        if given is None:
            return True
        among = wanted(context)
        return all(holds(value, among) for value in ([given] if isinstance(given, str) else given))

    def for_any(context: Context) -> bool:
        given = context.get(key)
        if given is None:
            return if_exists
        among = wanted(context)
        return any(holds(value, among) for value in ([given] if isinstance(given, str) else given))

    return {"ForAllValues": for_all, "ForAnyValue": for_any}.get(quantifier or "", whole)


def _null(key: str, values: tuple[str, ...], where: str) -> Condition:
    if any(value.lower() not in ("true", "false") for value in values):
        raise MalformedPolicy(f"{where}: Null on {key} takes true or false.")
    wanted = {value.lower() == "true" for value in values}
    return lambda context: (not context.get(key)) in wanted


# -- what fits what -----------------------------------------------------------------------------------


def _equals(value: str, wanted: str) -> bool:
    return value == unmarked(wanted)


def _equals_ignoring_case(value: str, wanted: str) -> bool:
    return value.casefold() == unmarked(wanted).casefold()


def _like(value: str, wanted: str) -> bool:
    return bool(glob(wanted)(value))


def _arn_like(value: str, wanted: str) -> bool:
    if value.count(":") < ARN_SEGMENTS - 1 or wanted.count(":") < ARN_SEGMENTS - 1:
        return False
    return bool(arn_glob(wanted)(value))


def _boolean(value: str, wanted: str) -> bool:
    return value.lower() == wanted.lower()


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


@lru_cache(maxsize=1024)
def _moment(text: str) -> float | None:
    """Seconds since the epoch of a W3C form of ISO 8601 (a year or a month alone too), or of a count of seconds."""
    if re.fullmatch(r"-?\d{5,12}(\.\d+)?", text):
        return float(text)
    whole = {4: f"{text}-01-01", 7: f"{text}-01"}.get(len(text), text)
    try:
        found = datetime.fromisoformat(whole)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


@lru_cache(maxsize=1024)
def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _in_network(value: str, wanted: str) -> bool:
    network = _network(wanted)
    try:
        return network is not None and ipaddress.ip_address(value) in network
    except ValueError:
        return False


def _compared(read: Callable[[str], float | None], compare: Callable[[float, float], bool]) -> Fits:
    def fits(value: str, wanted: str) -> bool:
        one, other = read(value), read(wanted)
        return one is not None and other is not None and compare(one, other)

    return fits


def _reads(read: Callable[[str], float | None]) -> Callable[[str], object]:
    return lambda text: read(text) is not None


_COMPARISONS: dict[str, tuple[Callable[[float, float], bool], bool]] = {
    "Equals": (lambda one, other: one == other, False),
    "NotEquals": (lambda one, other: one == other, True),
    "LessThan": (lambda one, other: one < other, False),
    "LessThanEquals": (lambda one, other: one <= other, False),
    "GreaterThan": (lambda one, other: one > other, False),
    "GreaterThanEquals": (lambda one, other: one >= other, False),
}

# Operator -> (what fits, whether it is the negation, what a value in the policy must be).
_OPERATORS: dict[str, tuple[Fits, bool, Callable[[str], object] | None]] = {
    "StringEquals": (_equals, False, None),
    "StringNotEquals": (_equals, True, None),
    "StringEqualsIgnoreCase": (_equals_ignoring_case, False, None),
    "StringNotEqualsIgnoreCase": (_equals_ignoring_case, True, None),
    "StringLike": (_like, False, None),
    "StringNotLike": (_like, True, None),
    "ArnEquals": (_arn_like, False, None),
    "ArnLike": (_arn_like, False, None),
    "ArnNotEquals": (_arn_like, True, None),
    "ArnNotLike": (_arn_like, True, None),
    "Bool": (_boolean, False, lambda text: text.lower() in ("true", "false")),
    "BinaryEquals": (_equals, False, None),
    "IpAddress": (_in_network, False, _network),
    "NotIpAddress": (_in_network, True, _network),
    **{
        f"{kind}{name}": (_compared(read, compare), is_negated, _reads(read))
        for kind, read in (("Numeric", _number), ("Date", _moment))
        for name, (compare, is_negated) in _COMPARISONS.items()
    },
}
