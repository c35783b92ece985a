"""Who a Principal element names, and how closely. Pure.

How closely matters within one account: a statement that names a role's session grants by itself, one that names the
account only lets the account's own policies decide (IAM User Guide, "AWS JSON policy elements: Principal").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from outcrop.errors import MalformedPolicy

_KINDS = ("AWS", "Service", "Federated", "CanonicalUser")
_ACCOUNT = re.compile(r"(?:arn:aws[a-z-]*:iam::)?([0-9]{12})(?::root)?")
_ARN = re.compile(r"arn:aws[a-z-]*:(?:iam|sts)::[0-9]{12}:(?:user|role|assumed-role|federated-user)/[^*?]+")


class Closeness(IntEnum):
    """How a statement names the caller; the larger, the closer."""

    NOT = 0
    ACCOUNT = 1  # the account it belongs to
    ROLE = 2  # the role whose session it is
    ANYONE = 3  # a star, which names a session as closely as its own ARN does
    SELF = 4  # the user, the session, the service or the identity provider itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A caller as policies name it. *arn*: of the user or the session. *role_arn*: of the role of a session."""

    account: str
    arn: str
    role_arn: str | None = None
    has_boundary: bool = False
    service: str | None = None  # bedrock.amazonaws.com
    federated: str | None = None  # ARN of an identity provider, before a role is assumed


PrincipalMatch = Callable[[Who], Closeness]


def compile_principals(value: Any, is_not: bool, where: str) -> PrincipalMatch:
    """How closely a Principal or, with *is_not*, a NotPrincipal element names a caller. Raises MalformedPolicy."""
    if value == "*":
        return (lambda _who: Closeness.NOT) if is_not else (lambda _who: Closeness.ANYONE)
    if not isinstance(value, Mapping) or not value:
        raise MalformedPolicy(f'{where}: Principal must be "*" or an object with AWS, Service or Federated.')
    anyone = False
    accounts: set[str] = set()
    exact: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for kind, names in value.items():
        if kind not in _KINDS:
            raise MalformedPolicy(f"{where}: Principal has {str(kind)[:40]!r}; it must be one of {', '.join(_KINDS)}.")
        listed = names if isinstance(names, list) else [names]
        if not listed or not all(isinstance(name, str) and name for name in listed):
            raise MalformedPolicy(f"{where}: Principal {kind} must be a string or a list of strings.")
        for name in listed:
            if kind == "AWS" and name == "*":
                anyone = True
            elif kind == "AWS" and (account := _ACCOUNT.fullmatch(name)):
                accounts.add(account.group(1))
            elif kind == "AWS" and not _ARN.fullmatch(name):
                raise MalformedPolicy(
                    f"{where}: Principal AWS {name[:200]!r} must be *, an account, or the ARN of a user or a role "
                    "without wildcards."
                )
            else:
                exact[kind].add(name)

    def closeness(who: Who) -> Closeness:
        if who.service is not None:
            return Closeness.SELF if who.service in exact["Service"] else Closeness.NOT
        if who.federated is not None:
            return Closeness.SELF if who.federated in exact["Federated"] else Closeness.NOT
        if who.arn in exact["AWS"]:
            return Closeness.SELF
        if who.role_arn is not None and who.role_arn in exact["AWS"]:
            return Closeness.ROLE
        if anyone:
            return Closeness.ANYONE
        return Closeness.ACCOUNT if who.account in accounts else Closeness.NOT

    if not is_not:
        return closeness

    def all_but(who: Who) -> Closeness:
        # Who has a permissions boundary is never left out (IAM User Guide, "NotPrincipal").
        return Closeness.ANYONE if who.has_boundary or closeness(who) is Closeness.NOT else Closeness.NOT

    return all_but
