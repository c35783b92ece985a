"""IAM policy documents: parsed once, refused with the place of the fault, compiled to statements. Pure.

Grammar: IAM User Guide, "Grammar of the IAM JSON policy language". What kind of policy it is decides which elements a
statement must and must not have (``Kind``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from outcrop.access.conditions import Condition, compile_block, keys_of
from outcrop.access.patterns import Matches, arn_glob, glob
from outcrop.access.principals import PrincipalMatch, compile_principals
from outcrop.access.variables import Context, Template, template
from outcrop.awswire.documents import decode_object
from outcrop.errors import MalformedBody, MalformedPolicy

MAX_CHARS = 10_240  # IAM's limit of a role's inline policies together; resource policies of Bedrock have 20,480
_VERSIONS = ("2012-10-17", "2008-10-17")
_ELEMENTS = frozenset(
    {"Sid", "Effect", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"}
)
_ACTION = re.compile(r"\*|[A-Za-z0-9*?-]+:[A-Za-z0-9*?]+")
_SID = re.compile(r"[^\x00-\x1f]{0,256}")


class Kind(Enum):
    """What a policy hangs on."""

    IDENTITY = "identity-based policy"
    RESOURCE = "resource-based policy"
    TRUST = "trust policy"
    SESSION = "session policy"
    BOUNDARY = "permissions boundary"


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """One statement, ready to be asked. *index* counts from 0 within its document."""

    policy: str
    index: int
    sid: str
    is_allow: bool
    names_action: Callable[[str], bool]
    names_resource: Callable[[str, Context], bool]
    principals: PrincipalMatch | None
    conditions: tuple[Condition, ...]

    @property
    def label(self) -> str:
        """How a person finds it: ``policy-name, statement 2 (Sid)``."""
        return f"{self.policy}, statement {self.index + 1}" + (f" ({self.sid})" if self.sid else "")

    def applies(self, resource: str, context: Context) -> bool:
        """Whether it is about *resource* in *context*; its action and principal are the caller's to ask."""
        return self.names_resource(resource, context) and all(holds(context) for holds in self.conditions)


class Policy:
    """A compiled document. *keys*: lower-case context keys that it looks at, so that costly ones are made on demand."""

    __slots__ = ("_by_action", "keys", "kind", "name", "statements")

    def __init__(self, name: str, kind: Kind, statements: tuple[Statement, ...], keys: frozenset[str]) -> None:
        self.name = name
        self.kind = kind
        self.statements = statements
        self.keys = keys
        self._by_action: dict[str, tuple[Statement, ...]] = {}

    def about(self, action: str) -> tuple[Statement, ...]:
        """The statements about *action*, denials first. Remembered: the actions of a server are few."""
        if (found := self._by_action.get(action)) is None:
            named = [statement for statement in self.statements if statement.names_action(action)]
            found = tuple(sorted(named, key=lambda statement: statement.is_allow))
            self._by_action[action] = found
        return found


def parse(text: str, kind: Kind, name: str = "") -> Policy:
    """The policy in *text*. Raises MalformedPolicy."""
    try:
        document = decode_object(text.encode(), "The policy is not valid JSON")
    except (MalformedBody, UnicodeEncodeError) as exc:
        raise MalformedPolicy(str(exc)) from exc
    return compile_document(document, kind, name)


def compile_document(document: Mapping[str, Any], kind: Kind, name: str = "") -> Policy:
    """The compiled form of a policy that is already an object. Raises MalformedPolicy."""
    if unknown := document.keys() - {"Version", "Id", "Statement"}:
        raise MalformedPolicy(f"The policy has an element {min(unknown)[:80]!r}; Version, Id and Statement are known.")
    version = document.get("Version", "2008-10-17")
    if version not in _VERSIONS:
        raise MalformedPolicy(f"Version is {str(version)[:40]!r}; it must be 2012-10-17 or 2008-10-17.")
    listed = document.get("Statement")
    if isinstance(listed, Mapping):
        listed = [listed]
    if not isinstance(listed, list):
        raise MalformedPolicy("The policy has no Statement: give an object or a list of them.")
    has_variables = version == "2012-10-17"
    statements = tuple(_statement(each, index, kind, name, has_variables) for index, each in enumerate(listed))
    sids = [statement.sid for statement in statements if statement.sid]
    if twice := sorted(sid for sid in set(sids) if sids.count(sid) > 1):
        raise MalformedPolicy(f"Statement ids (Sid) in a single policy must be unique; {twice[0]!r} is not.")
    keys = {key for each in listed for key in keys_of(each.get("Condition", {}))}
    keys |= {key for each in listed for key in _variables_of(each)} if has_variables else set()
    return Policy(name, kind, statements, frozenset(keys))


def _statement(given: Any, index: int, kind: Kind, name: str, has_variables: bool) -> Statement:
    where = f"Statement {index + 1}"
    if not isinstance(given, Mapping):
        raise MalformedPolicy(f"{where} is not an object.")
    if unknown := given.keys() - _ELEMENTS:
        raise MalformedPolicy(f"{where} has an element {min(unknown)[:80]!r} that IAM does not know.")
    sid, effect = given.get("Sid", ""), given.get("Effect")
    if not isinstance(sid, str) or not _SID.fullmatch(sid):
        raise MalformedPolicy(f"{where}: Sid must be a string.")
    if effect not in ("Allow", "Deny"):
        raise MalformedPolicy(f"{where}: Effect must be Allow or Deny.")
    return Statement(
        policy=name,
        index=index,
        sid=sid,
        is_allow=effect == "Allow",
        names_action=_actions(given, where),
        names_resource=_resources(given, kind, where, has_variables),
        principals=_principals(given, kind, where),
        conditions=compile_block(given.get("Condition", {}), where, has_variables=has_variables),
    )


def _one_of(given: Mapping[str, Any], element: str, where: str) -> tuple[Any, bool] | None:
    """The value of *element* or its negation, and whether it is that; None when there is neither."""
    if element in given and f"Not{element}" in given:
        raise MalformedPolicy(f"{where} has both {element} and Not{element}; give one of them.")
    if element in given:
        return given[element], False
    return (given[f"Not{element}"], True) if f"Not{element}" in given else None


def _list(value: Any, element: str, where: str) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    if not listed or not all(isinstance(each, str) and each for each in listed):
        raise MalformedPolicy(f"{where}: {element} must be a string or a list of strings, none of them empty.")
    return listed


def _actions(given: Mapping[str, Any], where: str) -> Callable[[str], bool]:
    found = _one_of(given, "Action", where)
    if found is None:
        raise MalformedPolicy(f"{where} needs Action or NotAction.")
    value, is_not = found
    patterns = _list(value, "Action", where)
    for pattern in patterns:
        if not _ACTION.fullmatch(pattern):
            raise MalformedPolicy(f"{where}: Action {pattern[:80]!r} must be like bedrock:InvokeModel.")
    matches = [glob(pattern.lower()) for pattern in patterns]
    return lambda action: any(match(action.lower()) for match in matches) != is_not


def _resources(given: Mapping[str, Any], kind: Kind, where: str, has_variables: bool) -> Callable[[str, Context], bool]:
    found = _one_of(given, "Resource", where)
    if kind is Kind.TRUST:
        if found is not None:
            raise MalformedPolicy(f"{where}: a trust policy has no Resource; it is about its own role.")
        return lambda _resource, _context: True
    if found is None:
        raise MalformedPolicy(f"{where} needs Resource or NotResource.")
    value, is_not = found
    plain: list[Matches] = []
    variable: list[Template] = []
    for pattern in _list(value, "Resource", where):
        if pattern != "*" and not pattern.startswith("arn:"):
            raise MalformedPolicy(f"{where}: Resource {pattern[:80]!r} must be * or begin with arn:.")
        each = template(pattern) if has_variables else pattern
        if isinstance(each, Template):
            variable.append(each)
        else:
            plain.append(arn_glob(each))
    if not variable:
        if len(plain) == 1 and not is_not:
            only = plain[0]
            return lambda resource, _context: bool(only(resource))
        return lambda resource, _context: any(match(resource) for match in plain) != is_not

    def names(resource: str, context: Context) -> bool:
        filled = [each.filled(context) for each in variable]
        if is_not and None in filled:  # what is left out is not known, so nothing is meant
            return False
        return (
            any(match(resource) for match in plain)
            or any(arn_glob(text)(resource) for text in filled if text is not None)
        ) != is_not

    return names


def _principals(given: Mapping[str, Any], kind: Kind, where: str) -> PrincipalMatch | None:
    found = _one_of(given, "Principal", where)
    if kind in (Kind.RESOURCE, Kind.TRUST):
        if found is None:
            raise MalformedPolicy(f"{where} needs Principal or NotPrincipal.")
        if found[1] and given["Effect"] == "Allow":
            raise MalformedPolicy(f"{where}: NotPrincipal goes with Deny only; name whom to allow.")
        return compile_principals(*found, where)
    if found is not None:
        raise MalformedPolicy(f"{where}: a policy of this kind has no Principal; it is its holder.")
    return None


def _variables_of(given: Mapping[str, Any]) -> set[str]:
    texts = [given.get("Resource", []), given.get("NotResource", [])]
    texts += [values for keys in given.get("Condition", {}).values() for values in keys.values()]
    flat = (text for each in texts for text in (each if isinstance(each, list) else [each]) if isinstance(text, str))
    made = [each for each in map(template, flat) if isinstance(each, Template)]
    return {piece[0] for each in made for piece in each.pieces if isinstance(piece, tuple)}
