"""IAM's users, roles, inline policies and keys, in the shapes of ``iam/2010-05-08``.

There are no managed policies and no groups: what lists them gives none. A bearer key is IAM's service-specific
credential for ``bedrock.amazonaws.com``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from outcrop.access import actions
from outcrop.access.authorizer import Authorizer, Origin
from outcrop.access.directory import ACTIVE, DELETED, INACTIVE, Directory
from outcrop.access.identities import AccessKey, BearerKey, Identity, IdentityKind, Principal
from outcrop.errors import InvalidRequest, NoSuchEntity

BEDROCK = "bedrock.amazonaws.com"
_ROWS = 100

# Operation -> method of IAM. The compatibility page is made from this.
OPERATIONS = {
    "CreateUser": "create_user",
    "GetUser": "get_user",
    "ListUsers": "list_users",
    "DeleteUser": "delete_user",
    "TagUser": "tag",
    "UntagUser": "untag",
    "ListUserTags": "list_tags",
    "CreateAccessKey": "create_access_key",
    "ListAccessKeys": "list_access_keys",
    "UpdateAccessKey": "update_access_key",
    "DeleteAccessKey": "delete_access_key",
    "CreateServiceSpecificCredential": "create_bearer_key",
    "ListServiceSpecificCredentials": "list_bearer_keys",
    "UpdateServiceSpecificCredential": "update_bearer_key",
    "DeleteServiceSpecificCredential": "delete_bearer_key",
    "PutUserPolicy": "put_policy",
    "GetUserPolicy": "get_policy",
    "ListUserPolicies": "list_policies",
    "DeleteUserPolicy": "delete_policy",
    "ListAttachedUserPolicies": "list_attached",
    "ListGroupsForUser": "list_groups",
    "CreateRole": "create_role",
    "GetRole": "get_role",
    "ListRoles": "list_roles",
    "DeleteRole": "delete_role",
    "UpdateRole": "update_role",
    "UpdateAssumeRolePolicy": "update_trust",
    "TagRole": "tag",
    "UntagRole": "untag",
    "ListRoleTags": "list_tags",
    "PutRolePolicy": "put_policy",
    "GetRolePolicy": "get_policy",
    "ListRolePolicies": "list_policies",
    "DeleteRolePolicy": "delete_policy",
    "ListAttachedRolePolicies": "list_attached",
    "ListInstanceProfilesForRole": "list_instance_profiles",
}

Handler = Callable[[Mapping[str, Any], Principal], Awaitable[dict[str, Any]]]


class IAM:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(self, directory: Directory, authorizer: Authorizer) -> None:
        self._directory = directory
        self._authorizer = authorizer
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    def permit(self, operation: str, params: Mapping[str, Any], principal: Principal, origin: Origin) -> None:
        """Whether *principal* may do this. Raises NotAllowed, before anything is looked up but the caller itself."""
        action, kind, name = f"iam:{operation}", _kind(operation, params), self._name(params, principal)
        resource = "*"
        if actions.resource_types(action) and kind is not None:
            path = params.get("Path") or params.get("PathPrefix") or "/"
            if name:
                known = next((each for each in self._directory.all(principal.account, kind) if each.name == name), None)
                path = known.path if known is not None else path
            resource = f"arn:aws:iam::{principal.account}:{kind}{path}{name}"
        facts: dict[str, str | list[str]] = {
            f"aws:requesttag/{tag['Key'].lower()}": tag["Value"] for tag in params.get("Tags", ())
        }
        if keys := [*(tag["Key"] for tag in params.get("Tags", ())), *params.get("TagKeys", ())]:
            facts["aws:tagkeys"] = keys
        self._authorizer.check(principal, action, resource, origin, owner=principal.account, facts=facts)

    # -- users ----------------------------------------------------------------------------------------

    async def create_user(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _no_managed(params)
        made = await self._directory.create(
            principal.account,
            IdentityKind.USER,
            params["UserName"],
            path=params.get("Path", "/"),
            tags=_tags(params),
        )
        return {"User": _user(made)}

    async def get_user(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._found(params, principal)
        return {"User": {**_user(found), **({"Tags": _listed(found.tags)} if found.tags else {})}}

    async def list_users(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._directory.all(principal.account, IdentityKind.USER, params.get("PathPrefix", "/"))
        return _page(params, "Users", [_user(each) for each in found])

    async def delete_user(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.delete(self._found(params, principal))
        return {}

    # -- keys -----------------------------------------------------------------------------------------

    async def create_access_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        user = self._found(params, principal)
        key = await self._directory.add_access_key(user)
        return {"AccessKey": {**_key(user, key), "SecretAccessKey": key.secret_access_key}}

    async def list_access_keys(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        user = self._found(params, principal)
        return _page(params, "AccessKeyMetadata", [_key(user, key) for key in self._directory.access_keys_of(user)])

    async def update_access_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.set_access_key(
            self._found(params, principal), params["AccessKeyId"], _status(params["Status"])
        )
        return {}

    async def delete_access_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.set_access_key(self._found(params, principal), params["AccessKeyId"], DELETED)
        return {}

    async def create_bearer_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        if params["ServiceName"] != BEDROCK:
            raise InvalidRequest(f"ServiceName is {params['ServiceName']!r}; here it can be {BEDROCK} only.")
        user, days = self._found(params, principal), params.get("CredentialAgeDays")
        expires_at = None if days is None else datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        key, text = await self._directory.add_bearer_key(user, _bearer_text, expires_at)
        return {"ServiceSpecificCredential": {**_bearer(user, key), "ServiceCredentialSecret": text}}

    async def list_bearer_keys(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        if params.get("AllUsers"):
            users = self._directory.all(principal.account, IdentityKind.USER)
        else:
            users = [self._found(params, principal)]
        rows = [_bearer(user, key) for user in users for key in self._directory.bearer_keys_of(user)]
        return {"ServiceSpecificCredentials": rows, "IsTruncated": False}

    async def update_bearer_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.set_bearer_key(
            self._found(params, principal), params["ServiceSpecificCredentialId"], _status(params["Status"])
        )
        return {}

    async def delete_bearer_key(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        user = self._found(params, principal)
        await self._directory.set_bearer_key(user, params["ServiceSpecificCredentialId"], DELETED)
        return {}

    # -- roles ----------------------------------------------------------------------------------------

    async def create_role(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _no_managed(params)
        made = await self._directory.create(
            principal.account,
            IdentityKind.ROLE,
            params["RoleName"],
            path=params.get("Path", "/"),
            description=params.get("Description", ""),
            trust=params["AssumeRolePolicyDocument"],
            max_session_s=params.get("MaxSessionDuration", 3600),
            tags=_tags(params),
        )
        return {"Role": _role(made)}

    async def get_role(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return {"Role": _role(self._found(params, principal))}

    async def list_roles(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._directory.all(principal.account, IdentityKind.ROLE, params.get("PathPrefix", "/"))
        return _page(params, "Roles", [_role(each) for each in found])

    async def delete_role(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.delete(self._found(params, principal))
        return {}

    async def update_role(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        role = self._found(params, principal)
        await self._directory.change(
            role,
            description=params.get("Description", role.description),
            max_session_s=params.get("MaxSessionDuration", role.max_session_s),
        )
        return {}

    async def update_trust(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.change(self._found(params, principal), trust=params["PolicyDocument"])
        return {}

    # -- of users and roles alike ---------------------------------------------------------------------

    async def put_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._found(params, principal)
        await self._directory.put_policy(found, params["PolicyName"], params["PolicyDocument"])
        return {}

    async def get_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found, name = self._found(params, principal), params["PolicyName"]
        if name not in found.policies:
            raise NoSuchEntity(f"The {found.kind} policy with name {name} cannot be found.")
        member = "UserName" if found.kind is IdentityKind.USER else "RoleName"
        return {member: found.name, "PolicyName": name, "PolicyDocument": _document(found.policies[name])}

    async def list_policies(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return _page(params, "PolicyNames", sorted(self._found(params, principal).policies))

    async def delete_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await self._directory.delete_policy(self._found(params, principal), params["PolicyName"])
        return {}

    async def tag(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._found(params, principal)
        await self._directory.change(found, tags={**found.tags, **_tags(params)})
        return {}

    async def untag(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        found = self._found(params, principal)
        kept = {key: value for key, value in found.tags.items() if key not in params["TagKeys"]}
        await self._directory.change(found, tags=kept)
        return {}

    async def list_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return _page(params, "Tags", _listed(self._found(params, principal).tags))

    async def list_attached(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        self._found(params, principal)
        return {"AttachedPolicies": [], "IsTruncated": False}

    async def list_groups(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        self._found(params, principal)
        return {"Groups": [], "IsTruncated": False}

    async def list_instance_profiles(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        self._found(params, principal)
        return {"InstanceProfiles": [], "IsTruncated": False}

    def _name(self, params: Mapping[str, Any], principal: Principal) -> str:
        """The user or role that a request names; a request about users that names none is about the caller."""
        name: str = params.get("RoleName") or params.get("UserName") or ""
        if not name and "PathPrefix" not in params:
            identity = self._directory.identity(principal.identity_id)
            if identity is not None and identity.kind is IdentityKind.USER:
                return identity.name
        return name

    def _found(self, params: Mapping[str, Any], principal: Principal) -> Identity:
        name = self._name(params, principal)
        if not name:
            raise InvalidRequest("Must specify userName when calling with non-User credentials")
        kind = IdentityKind.ROLE if "RoleName" in params else IdentityKind.USER
        return self._directory.find(principal.account, kind, name)


def _kind(operation: str, params: Mapping[str, Any]) -> IdentityKind | None:
    if "RoleName" in params or "Role" in operation:
        return IdentityKind.ROLE
    return IdentityKind.USER


def _no_managed(params: Mapping[str, Any]) -> None:
    if "PermissionsBoundary" in params:
        raise InvalidRequest(
            "PermissionsBoundary names a managed policy, and there are none here; set a document with "
            "outcrop access boundary."
        )


def _status(given: str) -> str:
    if given not in (ACTIVE, INACTIVE):
        raise InvalidRequest(f"Status is {given!r}; it can be set to {ACTIVE} or {INACTIVE}.")
    return given


def _bearer_text(key_id: str) -> str:
    return f"oc-{key_id}-{secrets.token_urlsafe(32)}"


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _document(text: str) -> str:
    """As IAM gives documents back: percent-encoded (RFC 3986)."""
    return quote(text, safe="-_.~")


def _tags(params: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for tag in params.get("Tags", ()):
        if tag["Key"].lower() in map(str.lower, found):
            raise InvalidRequest("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
        if re.match("aws:", tag["Key"], re.IGNORECASE):
            raise InvalidRequest(f"The tag key {tag['Key']!r} is reserved; keys that begin with aws: are AWS's.")
        found[tag["Key"]] = tag["Value"]
    return found


def _listed(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _page(params: Mapping[str, Any], member: str, rows: Sequence[Any]) -> dict[str, Any]:
    """The rows that *params* ask for; a marker is the number of those that were given."""
    marker, most = params.get("Marker", "0"), params.get("MaxItems", _ROWS)
    if not (marker.isascii() and marker.isdigit()):
        raise InvalidRequest(f"Marker is {marker[:40]!r}, which this service gave to nobody.")
    begin = int(marker[:9])
    end = begin + most
    found: dict[str, Any] = {member: list(rows[begin:end]), "IsTruncated": end < len(rows)}
    return {**found, "Marker": str(end)} if end < len(rows) else found


def _user(user: Identity) -> dict[str, Any]:
    return {
        "Path": user.path,
        "UserName": user.name,
        "UserId": user.identity_id,
        "Arn": user.arn,
        "CreateDate": _when(user.created_at),
    }


def _role(role: Identity) -> dict[str, Any]:
    return {
        "Path": role.path,
        "RoleName": role.name,
        "RoleId": role.identity_id,
        "Arn": role.arn,
        "CreateDate": _when(role.created_at),
        "AssumeRolePolicyDocument": _document(role.trust or ""),
        "Description": role.description or None,
        "MaxSessionDuration": role.max_session_s,
        "Tags": _listed(role.tags) or None,
    }


def _key(user: Identity, key: AccessKey) -> dict[str, Any]:
    return {
        "UserName": user.name,
        "AccessKeyId": key.access_key_id,
        "Status": ACTIVE if key.is_active else INACTIVE,
        "CreateDate": _when(key.created_at),
    }


def _bearer(user: Identity, key: BearerKey) -> dict[str, Any]:
    return {
        "UserName": user.name,
        "Status": ACTIVE if key.is_active else INACTIVE,
        "CreateDate": _when(key.created_at),
        "ExpirationDate": key.expires_at,
        "ServiceName": BEDROCK,
        "ServiceSpecificCredentialId": key.key_id,
        "ServiceCredentialAlias": key.key_id,
    }
