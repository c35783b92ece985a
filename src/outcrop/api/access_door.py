"""What IAM has no word for, below ``/outcrop/v1/access``: accounts, owners of buckets, boundaries, explanations."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import msgspec

from outcrop.access import actions
from outcrop.access.authorizer import Authorizer, Origin, denial
from outcrop.access.bootstrap import EVERYTHING, READ_BUCKETS, import_trust
from outcrop.access.credentials_file import ADMINISTRATOR, IMPORT_ROLE
from outcrop.access.directory import Directory
from outcrop.access.identities import IdentityKind, Principal, Session
from outcrop.access.quotas import Quotas, Scope
from outcrop.access.sessions import session_arn
from outcrop.api.quota_use import QuotaUse
from outcrop.errors import InvalidRequest, MalformedBody, NoSuchEntity

_ACCOUNT = re.compile(r"[0-9]{12}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


class _Bucket(msgspec.Struct, forbid_unknown_fields=True):
    account: str
    policy: dict[str, Any] | None = None


class _Boundary(msgspec.Struct, forbid_unknown_fields=True):
    policy: dict[str, Any] | None


class _Question(msgspec.Struct, forbid_unknown_fields=True):
    """*principal*: the ARN of a user, a role (as some session of it) or a session."""

    principal: str
    action: str
    resource: str
    context: dict[str, str | list[str]] = {}


class _Quota(msgspec.Struct, forbid_unknown_fields=True):
    """*value* of null takes the limit away. *model*: an id; *principal*: an ARN; empty ones mean all together."""

    account: str
    quota: str
    value: int | None
    principal: str = ""
    model: str = ""


class AccessDoor:
    def __init__(
        self, directory: Directory, authorizer: Authorizer, quotas: Quotas, use: QuotaUse, *, region: str
    ) -> None:
        self._directory = directory
        self._quotas = quotas
        self._use = use
        self._authorizer = authorizer
        self._region = region

    async def route(self, method: str, path: list[str], body: bytes, principal: Principal) -> dict[str, Any] | None:
        """Answer *path* (decoded parts below ``/outcrop/v1``); None when it is none of ours."""
        match method, path:
            case "GET", ["access", "accounts"]:
                rows = self._directory.accounts().items()
                return {"accounts": [{"account": account, "created_at": at} for account, at in sorted(rows)]}
            case "PUT", ["access", "accounts", account]:
                return await self.create_account(account)
            case "GET", ["access", "buckets"]:
                return {"buckets": self._buckets()}
            case "PUT", ["access", "buckets", name]:
                return await self.set_bucket(name, _read(body, _Bucket))
            case "PUT", ["access", "boundaries", kind, name]:
                return await self.set_boundary(kind, name, _read(body, _Boundary), principal)
            case "GET", ["access", "quotas"]:
                use = await self._use.of(principal.account)
                return {"quotas": self._quotas.listed(principal.account, use)}
            case "PUT", ["access", "quotas"]:
                return await self.set_quota(_read(body, _Quota))
            case "POST", ["access", "explain"]:
                return self.explain(_read(body, _Question), principal)
        return None

    async def create_account(self, account: str) -> dict[str, Any]:
        """Make an account with an administrator and an import role; its keys are shown here and never again."""
        if not _ACCOUNT.fullmatch(account):
            raise InvalidRequest(f"{account[:40]!r} is no account: give 12 digits.")
        await self._directory.create_account(account)
        admin = await self._directory.create(
            account, IdentityKind.USER, ADMINISTRATOR, policies={"AdministratorAccess": EVERYTHING}
        )
        role = await self._directory.create(
            account,
            IdentityKind.ROLE,
            IMPORT_ROLE,
            policies={"ReadBuckets": READ_BUCKETS},
            trust=import_trust(account, self._region),
        )
        key = await self._directory.add_access_key(admin)
        _, bearer = await self._directory.add_bearer_key(admin, lambda _: "oc-" + secrets.token_urlsafe(32))
        return {
            "account": account,
            "user_arn": admin.arn,
            "import_role_arn": role.arn,
            "access_key_id": key.access_key_id,
            "secret_access_key": key.secret_access_key,
            "bearer_key": bearer,
        }

    async def set_bucket(self, name: str, wanted: _Bucket) -> dict[str, Any]:
        if not _BUCKET.fullmatch(name):
            raise InvalidRequest(f"{name[:80]!r} is no bucket name.")
        document = None if wanted.policy is None else json.dumps(wanted.policy)
        await self._directory.set_bucket(name, wanted.account, document)
        return {"bucket": name, "account": wanted.account, "policy": wanted.policy}

    async def set_boundary(self, kind: str, name: str, wanted: _Boundary, principal: Principal) -> dict[str, Any]:
        """Limit what a user's or a role's own policies grant; a policy of null takes the limit away."""
        if kind not in ("user", "role"):
            raise InvalidRequest(f"{kind[:40]!r} has no boundary: it must be user or role.")
        found = self._directory.find(principal.account, IdentityKind(kind), name)
        document = None if wanted.policy is None else json.dumps(wanted.policy)
        changed = await self._directory.change(found, boundary=document)
        return {"arn": changed.arn, "boundary": wanted.policy}

    async def set_quota(self, wanted: _Quota) -> dict[str, Any]:
        if wanted.account not in self._directory.accounts():
            raise InvalidRequest(f"There is no account {wanted.account[:40]}.")
        await self._quotas.set(Scope(wanted.account, wanted.principal, wanted.model), wanted.quota, wanted.value)
        return {"quota": wanted.quota, "value": wanted.value}

    def explain(self, asked: _Question, principal: Principal) -> dict[str, Any]:
        """Which statement decides, for a principal of the caller's account. Raises NoSuchEntity."""
        if not actions.is_known(asked.action):
            raise InvalidRequest(
                f"No door asks for the action {asked.action[:80]!r}; actions are like bedrock:InvokeModel."
            )
        who = self._principal(asked.principal, principal.account)
        owner = self._directory.bucket(asked.resource.removeprefix("arn:aws:s3:::").partition("/")[0])
        is_bucket = asked.resource.startswith("arn:aws:s3:::")
        facts = {key.lower(): value for key, value in asked.context.items()}
        decision = self._authorizer.decide(
            who,
            asked.action,
            asked.resource,
            Origin(),
            owner=owner.account if is_bucket else None,
            policy=owner.policy if is_bucket else None,
            facts=facts,
        )
        said = None if decision.is_allowed else denial(who, asked.action, asked.resource, decision)
        return {
            "allowed": decision.is_allowed,
            "decided_by": None if decision.statement is None else decision.statement.label,
            "kind": decision.kind.value,
            "message": said,
        }

    def _principal(self, arn: str, account: str) -> Principal:
        found = re.fullmatch(r"arn:aws:(iam|sts)::([0-9]{12}):(user|role|assumed-role)/(.+)", arn)
        if found is None or found.group(2) != account:
            raise NoSuchEntity(f"{arn[:200]} is no user, role or session of account {account}.")
        kind, name = found.group(3), found.group(4)
        if kind == "user":
            user = self._directory.find(account, IdentityKind.USER, name.rpartition("/")[2])
            return Principal(account, user.arn, user.identity_id)
        role_name, _, session_name = (
            name.partition("/") if kind == "assumed-role" else (name.rpartition("/")[2], "", "")
        )
        role, session_name = self._directory.find(account, IdentityKind.ROLE, role_name), session_name or "explained"
        session = Session(session_name=session_name, role_arn=role.arn, issued_at=0, expires_at=0)
        return Principal(account, session_arn(account, role.name, session_name), role.identity_id, session)

    def _buckets(self) -> list[dict[str, Any]]:
        return [
            {
                "bucket": name,
                "account": bucket.account,
                "policy": None if bucket.document is None else json.loads(bucket.document),
            }
            for account in self._directory.accounts()
            for name, bucket in sorted(self._directory.buckets(account).items())
        ]


def _read(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"The body cannot be used: {exc}.") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedBody(f"The body is not valid JSON: {exc}") from exc
