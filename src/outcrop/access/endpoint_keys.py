"""Keys of the proxies of endpoints: sessions of a role that may ask models and nothing else, held in memory.

A proxy runs a customer's script, which can find its keys; so what is found there must not open the account. The role
is an identity as any other: an operator may narrow its policy.
"""

from __future__ import annotations

import json
import secrets
import time

from outcrop.access.directory import Directory, random_name
from outcrop.access.identities import AccessKey, BearerKey, Identity, IdentityKind, Principal, Session
from outcrop.access.sessions import session_arn
from outcrop.errors import EntityExists, NoSuchEntity

ROLE = "outcrop-endpoint"
# A proxy whose target is a name looks its ARN up at the start.
ACTIONS = (
    "bedrock:InvokeModel",
    "bedrock:InvokeModelWithResponseStream",
    "bedrock:CountTokens",
    "bedrock:GetImportedModel",
    "bedrock:ListImportedModels",
)
# A header: the name of the ticket (``access.quotas``) of the call that a proxy asks a model for.
BEHALF = "x-outcrop-on-behalf-of"
_FACT = "outcrop:endpoint"  # a context key that no other session has
_LASTS_S = 10 * 365 * 86400.0  # it ends with the endpoint or the server


def endpoint_of(principal: Principal) -> str:
    """The endpoint whose proxy *principal* is; empty: it is no proxy."""
    return "" if principal.session is None else principal.session.facts.get(_FACT, "")


class EndpointKeys:
    """A credential store with one key pair per endpoint before those of the directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._keys: dict[str, AccessKey] = {}
        self._by_endpoint: dict[tuple[str, str], AccessKey] = {}

    async def of(self, account: str, endpoint: str) -> AccessKey:
        """The key pair of an endpoint, made at the first call, and anew when the role is another."""
        role = await self._role(account)
        key = self._by_endpoint.get((account, endpoint))
        if key is None or key.principal.identity_id != role.identity_id:
            self.forget(account, endpoint)
            now = time.time()
            session = Session(
                session_name=endpoint,
                role_arn=role.arn,
                issued_at=now,
                expires_at=now + _LASTS_S,
                facts={_FACT: endpoint},
            )
            principal = Principal(account, session_arn(account, role.name, endpoint), role.identity_id, session)
            key = AccessKey(random_name("AKIA"), secrets.token_urlsafe(30), principal, created_at=now)
            self._by_endpoint[account, endpoint] = self._keys[key.access_key_id] = key
        return key

    async def _role(self, account: str) -> Identity:
        statement = {"Effect": "Allow", "Action": list(ACTIONS), "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        try:
            return self._directory.find(account, IdentityKind.ROLE, ROLE)
        except NoSuchEntity:
            pass
        try:
            return await self._directory.create(
                account,
                IdentityKind.ROLE,
                ROLE,
                policies={"AskModels": policy},
                description="Proxies of SageMaker endpoints ask models as this role.",
            )
        except EntityExists:  # by another endpoint that starts as well
            return self._directory.find(account, IdentityKind.ROLE, ROLE)

    def forget(self, account: str, endpoint: str) -> None:
        """The endpoint is gone: its key opens nothing any more."""
        key = self._by_endpoint.pop((account, endpoint), None)
        if key is not None:
            del self._keys[key.access_key_id]

    def access_key(self, access_key_id: str) -> AccessKey | None:
        return self._keys.get(access_key_id) or self._directory.access_key(access_key_id)

    def bearer_key(self, key_hash: str) -> BearerKey | None:
        return self._directory.bearer_key(key_hash)
