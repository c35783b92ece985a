"""The one place that asks the policies: gathers what has a say, makes the context, tells a denial in AWS's words."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypedDict, Unpack

from outcrop.access.directory import Directory
from outcrop.access.evaluate import Decision, Policies, Question, decide
from outcrop.access.identities import Identity, Principal
from outcrop.access.policy import Kind, Policy, compile_document, parse
from outcrop.access.principals import Who
from outcrop.access.variables import Context
from outcrop.errors import MalformedPolicy, NotAllowed
from outcrop.registry.attachments import Attachments

ELSEWHERE = "another account"  # owns what is asked for, so that its policy alone has to let the caller in
_MOST_KNOWN = 4096
_ANYTHING = compile_document(
    {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "*", "Resource": "*"}}, Kind.IDENTITY
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from, as conditions see it."""

    source_ip: str = ""
    is_secure: bool = False
    user_agent: str = ""
    at: float = field(default_factory=time.time)


class Asked(TypedDict, total=False):
    """What a question may add.

    *owner*: the resource's account, by default the one in its ARN, else the principal's. *policy*: the resource's own,
    where it is not one of a model or a job. *facts*: further context, by lower-case key.
    """

    owner: str | None
    policy: Policy | None
    facts: Mapping[str, str | list[str]] | None


class ResourcePolicies:
    """Policies and tags of models and jobs. Compiled policies are kept until any policy changes."""

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self._version = -1
        self._compiled: dict[tuple[str, str], Policy] = {}

    def policy(self, arn: str) -> Policy | None:
        """The resource policy on *arn*; None when it has none."""
        if self._version != self._attachments.policies_version:
            self._version, rows = self._attachments.all_policies()
            self._compiled = {}
            for (account, resource), text in rows.items():
                try:
                    self._compiled[account, resource] = parse(text, Kind.RESOURCE, "resource policy")
                except MalformedPolicy:
                    continue  # put by a version that did not evaluate policies, and checked none; it grants nothing
        if not self._compiled:
            return None
        return self._compiled.get(_place(arn))

    def tags(self, arn: str) -> dict[str, str]:
        account, resource = _place(arn)
        return self._attachments.tags(account, resource)


def _place(arn: str) -> tuple[str, str]:
    """Account and end of an ARN, which is how attachments name a resource."""
    parts = arn.split(":", 5)
    return (parts[4], parts[5]) if len(parts) == 6 else ("", "")


class Authorizer:
    """Says whether a principal may do something. Owned by the event loop."""

    def __init__(self, directory: Directory, resources: ResourcePolicies, *, region: str) -> None:
        self._directory = directory
        self._resources = resources
        self._region = region
        # Decisions that no context can change, with the identity and the resource's policy that they hold for: both are
        # replaced, never changed.
        self._known: dict[tuple[str, str, str, str, str], tuple[Identity, Policy | None, Decision]] = {}

    def check(self, principal: Principal, action: str, resource: str, origin: Origin, **asked: Unpack[Asked]) -> None:
        """``decide``, and raise NotAllowed where it is a no, in AWS's words."""
        decision = self.decide(principal, action, resource, origin, **asked)
        if not decision.is_allowed:
            raise NotAllowed(denial(principal, action, resource, decision))

    def decide(
        self, principal: Principal, action: str, resource: str, origin: Origin, **asked: Unpack[Asked]
    ) -> Decision:
        """The decision with the statement that made it."""
        owner, policy, facts = asked.get("owner"), asked.get("policy"), asked.get("facts")
        identity = self._directory.identity(principal.identity_id)
        if identity is None:
            return Decision(False, Kind.IDENTITY, None)
        account = owner or (resource.split(":", 5)[4] if resource.count(":") >= 5 else "") or principal.account
        if policy is None and resource.startswith("arn:aws:bedrock:"):
            policy = self._resources.policy(resource)
        session = principal.session
        has_session_policies = session is not None and bool(session.policies)
        place = (principal.identity_id, principal.arn, action, resource, account)
        known = None if has_session_policies else self._known.get(place)
        if known is not None and known[0] is identity and known[1] is policy:
            return known[2]
        policies = Policies(
            identity=identity.compiled,
            boundary=identity.compiled_boundary,
            session=session.policies if session is not None and has_session_policies else None,
            resource=policy,
        )
        who = _who(principal, identity)
        if not has_session_policies and not any(each.keys for each in _with_a_say(policies)):
            decision = decide(Question(who=who, action=action, resource=resource, owner=account, context={}), policies)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[place] = (identity, policy, decision)
            return decision
        context = self._context(principal, identity, origin, account)
        if facts:
            context.update(facts)
        if resource.startswith("arn:aws:bedrock:") and _looks_at_tags(policies):
            context.update({f"aws:resourcetag/{key.lower()}": value for key, value in self._tags(resource).items()})
        return decide(Question(who=who, action=action, resource=resource, owner=account, context=context), policies)

    def check_assume(
        self,
        principal: Principal,
        action: str,
        arn: str,
        role: Identity | None,
        origin: Origin,
        facts: Mapping[str, str | list[str]],
    ) -> None:
        """Whether *principal* may assume *role*, which has *arn*; a role that is not there is answered alike.

        Unlike other resources' policies a trust policy has to let the caller in, in its own account too. Raises
        NotAllowed.
        """
        trust = None if role is None else role.compiled_trust
        decision = self.decide(
            principal, action, arn, origin, owner=None if role is None else role.account, policy=trust, facts=facts
        )
        if decision.is_allowed and role is not None:
            identity = self._directory.identity(principal.identity_id)
            assert identity is not None  # or nothing would have been allowed
            context = {**self._context(principal, identity, origin, role.account), **facts}
            question = Question(
                who=_who(principal, identity), action=action, resource=arn, owner=ELSEWHERE, context=context
            )
            decision = decide(question, Policies(identity=(_ANYTHING,), resource=trust))
        if role is None and decision.is_allowed:
            decision = Decision(False, Kind.TRUST, None)
        if not decision.is_allowed:
            raise NotAllowed(denial(principal, action, arn, decision))

    def is_trusted(self, trust: Policy | None, context: Context, *, service: str = "", federated: str = "") -> bool:
        """Whether *trust* lets in a service, or somebody whom an identity provider vouches for, to assume its role."""
        who = Who(account="", arn="", service=service or None, federated=federated or None)
        action = "sts:AssumeRole" if service else "sts:AssumeRoleWithWebIdentity"
        question = Question(who=who, action=action, resource="*", owner="", context=context)
        return trust is not None and decide(question, Policies(resource=trust)).is_allowed

    def circumstances(self, origin: Origin) -> dict[str, str | list[str]]:
        """Context keys of where and when, whoever asks."""
        found: dict[str, str | list[str]] = {
            "aws:currenttime": datetime.fromtimestamp(origin.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "aws:epochtime": str(int(origin.at)),
            "aws:securetransport": "true" if origin.is_secure else "false",
            "aws:requestedregion": self._region,
        }
        if origin.source_ip:
            found["aws:sourceip"] = origin.source_ip
        if origin.user_agent:
            found["aws:useragent"] = origin.user_agent
        return found

    def _tags(self, resource: str) -> dict[str, str]:
        return self._resources.tags(resource)

    def _context(
        self, principal: Principal, identity: Identity, origin: Origin, owner: str
    ) -> dict[str, str | list[str]]:
        session = principal.session
        found = self.circumstances(origin)
        found |= {
            "aws:resourceaccount": owner,
            "aws:principalaccount": principal.account,
            "aws:principalarn": principal.arn if session is None else session.role_arn,
            "aws:principaltype": "User" if session is None else "AssumedRole",
            "aws:userid": principal.user_id,
            "aws:principalisawsservice": "false",
        }
        for key, value in identity.tags.items():
            found[f"aws:principaltag/{key.lower()}"] = value
        if session is None:
            found["aws:username"] = identity.name
        else:
            found["aws:tokenissuetime"] = datetime.fromtimestamp(session.issued_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            found["aws:multifactorauthpresent"] = "false"
            for key, value in session.tags.items():
                found[f"aws:principaltag/{key.lower()}"] = value
            if session.source_identity:
                found["aws:sourceidentity"] = session.source_identity
            found.update(session.facts)
        return found


def _who(principal: Principal, identity: Identity) -> Who:
    session = principal.session
    return Who(
        account=principal.account,
        arn=principal.arn,
        role_arn=None if session is None else session.role_arn,
        has_boundary=identity.boundary is not None,
    )


def _with_a_say(policies: Policies) -> list[Policy]:
    limits = [policy for policy in (policies.boundary, policies.resource) if policy is not None]
    return [*policies.identity, *(policies.session or ()), *limits]


def _looks_at_tags(policies: Policies) -> bool:
    return any(key.startswith("aws:resourcetag/") for policy in _with_a_say(policies) for key in policy.keys)


def denial(principal: Principal, action: str, resource: str, decision: Decision) -> str:
    """AWS's sentence (IAM User Guide, "Troubleshoot access denied error messages")."""
    on = f" on resource: {resource}" if resource != "*" else ""
    return f"User: {principal.arn} is not authorized to perform: {action}{on} {decision.because(action)}"
