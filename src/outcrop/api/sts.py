"""STS: who am I, and temporary credentials of a role, in the shapes of ``sts/2011-06-15``."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from outcrop.access.authorizer import Authorizer, Origin
from outcrop.access.directory import Directory
from outcrop.access.identities import Identity, Principal, Session
from outcrop.access.policy import Kind, parse
from outcrop.access.sessions import Issued, Sessions
from outcrop.access.web_identity import WebIdentities
from outcrop.errors import InvalidRequest, LimitExceeded, NotAllowed

CHAINED_S = 3600  # the longest session that a session may ask for
SHORTEST_S, DEFAULT_S = 900, 3600
MAX_TAGS = 50
PACKED_BYTES = 2048  # of session policy and tags together

# Operation -> method of STS. The compatibility page is made from this.
OPERATIONS = {
    "GetCallerIdentity": "get_caller_identity",
    "AssumeRole": "assume_role",
    "AssumeRoleWithWebIdentity": "assume_role_with_web_identity",
}
UNSIGNED = frozenset({"AssumeRoleWithWebIdentity"})  # the token is what proves who asks

Handler = Callable[[Mapping[str, Any], Principal | None, Origin], Awaitable[dict[str, Any]]]


class STS:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(
        self, directory: Directory, authorizer: Authorizer, sessions: Sessions, web_identities: WebIdentities
    ) -> None:
        self._directory = directory
        self._authorizer = authorizer
        self._sessions = sessions
        self._web_identities = web_identities
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def get_caller_identity(
        self, params: Mapping[str, Any], principal: Principal | None, origin: Origin
    ) -> dict[str, Any]:
        """Needs no permission, as on AWS."""
        assert principal is not None
        return {"UserId": principal.user_id, "Account": principal.account, "Arn": principal.arn}

    async def assume_role(
        self, params: Mapping[str, Any], principal: Principal | None, origin: Origin
    ) -> dict[str, Any]:
        """Raises NotAllowed where the caller's policies or the role's trust do not allow it, or there is no role."""
        assert principal is not None
        chained = principal.session
        asked = _tags(params)
        inherited = {} if chained is None else {key: chained.tags[key] for key in chained.transitive}
        if overridden := sorted(asked.keys() & inherited.keys()):
            raise InvalidRequest(f"One of the tags passed in conflicts with a transitive tag: {overridden[0]}")
        source_identity = params.get("SourceIdentity") or (chained.source_identity if chained else "")
        if chained is not None and chained.source_identity not in ("", source_identity):
            raise NotAllowed("The source identity of a session cannot be changed.")
        facts: dict[str, str | list[str]] = {"sts:rolesessionname": params["RoleSessionName"]}
        if "ExternalId" in params:
            facts["sts:externalid"] = params["ExternalId"]
        if source_identity:
            facts["sts:sourceidentity"] = source_identity
        facts |= {f"aws:requesttag/{key.lower()}": value for key, value in asked.items()}
        if asked:
            facts["aws:tagkeys"] = list(asked)
        transitive = tuple(params.get("TransitiveTagKeys", ()))
        if transitive:
            facts["sts:transitivetagkeys"] = list(transitive)
        role = self._directory.role(params["RoleArn"])
        actions = ["sts:AssumeRole", *(["sts:TagSession"] if asked else [])]
        actions += ["sts:SetSourceIdentity"] if params.get("SourceIdentity") else []
        for action in actions:
            self._authorizer.check_assume(principal, action, params["RoleArn"], role, origin, facts)
        assert role is not None
        if unknown := sorted(set(transitive) - asked.keys()):
            raise InvalidRequest(f"TransitiveTagKeys has {unknown[0]!r}, which is no key of Tags.")
        longest = role.max_session_s if chained is None else CHAINED_S
        now = time.time()
        session = Session(
            session_name=params["RoleSessionName"],
            role_arn=role.arn,
            issued_at=now,
            expires_at=now + _duration_s(params, longest, is_chained=chained is not None),
            tags={**inherited, **asked},
            transitive=(*inherited, *transitive),
            source_identity=source_identity,
        )
        documents = _documents(params)
        issued = self._sessions.issue(role, session, documents)
        found = _answer(issued, role, documents, session)
        return {**found, "SourceIdentity": source_identity or None}

    async def assume_role_with_web_identity(
        self, params: Mapping[str, Any], principal: Principal | None, origin: Origin
    ) -> dict[str, Any]:
        """Raises IdentityTokenRefused for a token that proves nothing, NotAllowed where the role does not trust it."""
        proof = await self._web_identities.verify(params["WebIdentityToken"])
        role = self._directory.role(params["RoleArn"])
        context = self._authorizer.circumstances(origin)
        context |= {**proof.facts, "sts:rolesessionname": params["RoleSessionName"]}
        provider = "" if role is None else f"arn:aws:iam::{role.account}:oidc-provider/{proof.host}"
        trust = None if role is None else role.compiled_trust
        if role is None or not self._authorizer.is_trusted(trust, context, federated=provider):
            raise NotAllowed("Not authorized to perform sts:AssumeRoleWithWebIdentity")
        now = time.time()
        session = Session(
            session_name=params["RoleSessionName"],
            role_arn=role.arn,
            issued_at=now,
            expires_at=now + _duration_s(params, role.max_session_s, is_chained=False),
            facts={**proof.facts, "aws:federatedprovider": provider},
        )
        documents = _documents(params)
        issued = self._sessions.issue(role, session, documents)
        return {
            **_answer(issued, role, documents, session),
            "SubjectFromWebIdentityToken": proof.subject,
            "Audience": proof.audience,
            "Provider": provider,
        }


def _answer(issued: Issued, role: Identity, documents: Sequence[str], session: Session) -> dict[str, Any]:
    packed = len("".join(documents)) + len(json.dumps(dict(session.tags)) if session.tags else "")
    if packed > PACKED_BYTES:
        raise LimitExceeded(
            f"Session policy and tags take {packed} bytes together; the limit is {PACKED_BYTES}. Shorten them."
        )
    return {
        "Credentials": {
            "AccessKeyId": issued.access_key_id,
            "SecretAccessKey": issued.secret_access_key,
            "SessionToken": issued.session_token,
            "Expiration": datetime.fromtimestamp(issued.expires_at, UTC),
        },
        "AssumedRoleUser": {
            "AssumedRoleId": f"{role.identity_id}:{session.session_name}",
            "Arn": issued.principal.arn,
        },
        "PackedPolicySize": -(-packed * 100 // PACKED_BYTES) if packed else None,
    }


def _duration_s(params: Mapping[str, Any], longest_s: int, *, is_chained: bool) -> int:
    seconds: int = params.get("DurationSeconds", DEFAULT_S)
    if seconds < SHORTEST_S:
        raise InvalidRequest(f"DurationSeconds is {seconds}; it must be at least {SHORTEST_S}.")
    if seconds > longest_s:
        raise InvalidRequest(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
            if is_chained
            else "The requested DurationSeconds exceeds the MaxSessionDuration set for this role."
        )
    return seconds


def _documents(params: Mapping[str, Any]) -> list[str]:
    if params.get("PolicyArns"):
        raise InvalidRequest("PolicyArns names managed policies, and there are none here; send Policy.")
    documents = [params["Policy"]] if "Policy" in params else []
    for text in documents:
        parse(text, Kind.SESSION)
    return documents


def _tags(params: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for tag in params.get("Tags", ()):
        if tag["Key"].lower() in map(str.lower, found):
            raise InvalidRequest("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
        found[tag["Key"]] = tag["Value"]
    if len(found) > MAX_TAGS:
        raise InvalidRequest(f"There are {len(found)} session tags; the limit is {MAX_TAGS}.")
    return found
