"""May this caller do that? The evaluation order of IAM over compiled policies. Pure: facts in, a decision out.

IAM User Guide, "Policy evaluation logic": an explicit Deny anywhere wins; across accounts the caller's own policies and
the resource's must both allow; within one account either may, and a permissions boundary and session policies limit
what the caller's own policies grant, but not what a resource's policy grants to exactly this user or session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outcrop.access.policy import Kind, Policy, Statement
from outcrop.access.principals import Closeness, Who
from outcrop.access.variables import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. *resource*: an ARN, or ``*`` for an action without one. *owner*: the resource's account."""

    who: Who
    action: str
    resource: str
    owner: str
    context: Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What has a say. *session*: None when the session has no policy of its own, which then limits nothing."""

    identity: Sequence[Policy] = ()
    boundary: Policy | None = None
    session: Sequence[Policy] | None = None
    resource: Policy | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """*statement*: the one that decided; None when nothing allowed, and *kind* then says what was missing."""

    is_allowed: bool
    kind: Kind
    statement: Statement | None

    def because(self, action: str) -> str:
        """AWS's words for a denial (IAM User Guide, "Troubleshoot access denied error messages")."""
        kind = Kind.RESOURCE if self.kind is Kind.TRUST else self.kind
        if self.statement is not None:
            return f"with an explicit deny in {'an' if kind is Kind.IDENTITY else 'a'} {kind.value}"
        return f"because no {kind.value} allows the {action} action"


def decide(question: Question, policies: Policies) -> Decision:
    """The decision on *question*. Never raises: what no statement allows is denied."""
    resource = _Answer(question, (policies.resource,) if policies.resource is not None else ())
    if resource.denial is not None:
        return Decision(False, _kind(policies.resource), resource.denial)
    identity = _Answer(question, policies.identity)
    if identity.denial is not None:
        return Decision(False, Kind.IDENTITY, identity.denial)
    boundary = _Answer(question, (policies.boundary,)) if policies.boundary is not None else None
    if boundary is not None and boundary.denial is not None:
        return Decision(False, Kind.BOUNDARY, boundary.denial)
    session = _Answer(question, policies.session) if policies.session is not None else None
    if session is not None and session.denial is not None:
        return Decision(False, Kind.SESSION, session.denial)
    return _granted(question, policies, identity, boundary, session, resource)


def _granted(
    question: Question,
    policies: Policies,
    identity: _Answer,
    boundary: _Answer | None,
    session: _Answer | None,
    resource: _Answer,
) -> Decision:
    """The decision where nothing denies."""
    who = question.who
    if who.service is not None or who.federated is not None:  # has no policies of its own
        return Decision(resource.allowance is not None, _kind(policies.resource), resource.allowance)
    is_foreign = question.owner != who.account
    if is_foreign and resource.allowance is None:
        return Decision(False, _kind(policies.resource), None)
    granted, by = identity.allowance, Kind.IDENTITY
    if not is_foreign and resource.closeness >= Closeness.ROLE:
        is_limited = resource.closeness is Closeness.ANYONE and session is not None and session.allowance is None
        if resource.closeness is not Closeness.ROLE and not is_limited:
            return Decision(True, _kind(policies.resource), resource.allowance)
        granted, by = granted or resource.allowance, Kind.IDENTITY if granted else _kind(policies.resource)
    if granted is None:
        return Decision(False, Kind.IDENTITY, None)
    if boundary is not None and boundary.allowance is None:
        return Decision(False, Kind.BOUNDARY, None)
    if session is not None and session.allowance is None:
        return Decision(False, Kind.SESSION, None)
    return Decision(True, by, granted)


def _kind(policy: Policy | None) -> Kind:
    return Kind.RESOURCE if policy is None else policy.kind


class _Answer:
    """What policies of one kind say to a question."""

    __slots__ = ("allowance", "closeness", "denial")

    def __init__(self, question: Question, policies: Sequence[Policy]) -> None:
        self.allowance: Statement | None = None
        self.denial: Statement | None = None
        self.closeness = Closeness.NOT
        resource, context = question.resource, question.context
        for policy in policies:
            for statement in policy.about(question.action):
                named = statement.principals
                closeness = Closeness.SELF if named is None else named(question.who)
                if closeness <= self.closeness and statement.is_allow:
                    continue
                if closeness is not Closeness.NOT and statement.applies(resource, context):
                    if not statement.is_allow:
                        self.denial = statement
                        return
                    self.allowance, self.closeness = statement, closeness
