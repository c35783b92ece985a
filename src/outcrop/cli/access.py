"""``outcrop access``: users, roles, keys, policies; accounts and buckets; why something is allowed or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import typer

from outcrop.access.quotas import NAMES
from outcrop.cli.client import HOME, JSON, connect, echo_json, show
from outcrop.errors import BadSetting

app = typer.Typer(help="Show and change who may do what.", no_args_is_help=True)
users = typer.Typer(help="Users of the account.", no_args_is_help=True)
keys = typer.Typer(help="Access keys and bearer keys of a user.", no_args_is_help=True)
roles = typer.Typer(help="Roles of the account.", no_args_is_help=True)
policies = typer.Typer(help="Inline policies of users and roles.", no_args_is_help=True)
accounts = typer.Typer(help="Accounts of the installation.", no_args_is_help=True)
quotas = typer.Typer(help="How much an account, a principal or a model may use.", no_args_is_help=True)
buckets = typer.Typer(help="Whose embedded buckets are, and their policies.", no_args_is_help=True)
for name, group in {
    "users": users,
    "keys": keys,
    "roles": roles,
    "policies": policies,
    "accounts": accounts,
    "buckets": buckets,
    "quotas": quotas,
}.items():
    app.add_typer(group, name=name)

USER = typer.Argument(help="Name of a user.")
HOLDER = typer.Argument(help="Name of a user, or role/NAME.")
DOCUMENT = typer.Argument(help="JSON file with the policy; - reads standard input.")
TRUST = typer.Option(..., help="JSON file with the trust policy: who may assume the role.")
BOUNDARY = typer.Argument(None, help="JSON file with the policy; without it the limit is taken away.")
BUCKET_POLICY = typer.Option(None, help="JSON file with its bucket policy. Default: none.")
_BEARER = "bedrock.amazonaws.com"


def _document(path: Path) -> str:
    try:
        return typer.get_text_stream("stdin").read() if str(path) == "-" else path.read_text()
    except OSError as exc:
        raise BadSetting(f"the policy cannot be read: {exc}") from exc


def _holder(name: str) -> tuple[str, dict[str, str]]:
    """Which kind of identity IAM's calls are about, and the parameter that names it."""
    return (
        ("role", {"RoleName": name.removeprefix("role/")}) if name.startswith("role/") else ("user", {"UserName": name})
    )


@users.command("list")
def list_users(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the users."""
    found = [user for page in connect(home).aws("iam").get_paginator("list_users").paginate() for user in page["Users"]]
    show(found, {"UserName": "USER", "Arn": "ARN", "CreateDate": "CREATED"}, as_json=as_json)


@users.command("create")
def create_user(name: str = USER, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """Make a user, who may do nothing yet, with an access key that is shown once."""
    iam = connect(home).aws("iam")
    user = iam.create_user(UserName=name)["User"]
    key = iam.create_access_key(UserName=name)["AccessKey"]
    _shown_once({"arn": user["Arn"], **_pair(key)}, as_json)


@users.command("delete")
def delete_user(name: str = USER, home: Path | None = HOME) -> None:
    """Delete a user with its keys and policies."""
    iam = connect(home).aws("iam")
    for key in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]:
        iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
    for key in iam.list_service_specific_credentials(UserName=name)["ServiceSpecificCredentials"]:
        iam.delete_service_specific_credential(
            UserName=name, ServiceSpecificCredentialId=key["ServiceSpecificCredentialId"]
        )
    for policy in iam.list_user_policies(UserName=name)["PolicyNames"]:
        iam.delete_user_policy(UserName=name, PolicyName=policy)
    iam.delete_user(UserName=name)
    typer.echo(f"Deleted {name}.")


@keys.command("list")
def list_keys(name: str = USER, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List a user's keys; no secret is ever shown again."""
    iam = connect(home).aws("iam")
    rows = [
        {"id": key["AccessKeyId"], "kind": "access key", "status": key["Status"], "created": key["CreateDate"]}
        for key in iam.list_access_keys(UserName=name)["AccessKeyMetadata"]
    ]
    rows += [
        {
            "id": key["ServiceSpecificCredentialId"],
            "kind": "bearer key",
            "status": key["Status"],
            "created": key["CreateDate"],
            "expires": key.get("ExpirationDate"),
        }
        for key in iam.list_service_specific_credentials(UserName=name)["ServiceSpecificCredentials"]
    ]
    columns = {"id": "KEY", "kind": "KIND", "status": "STATUS", "created": "CREATED", "expires": "EXPIRES"}
    show(rows, columns, as_json=as_json)


@keys.command("create")
def create_key(
    name: str = USER,
    bearer: bool = typer.Option(False, help="A bearer key instead of an access key."),
    days: int | None = typer.Option(None, min=1, help="Days until a bearer key expires. Default: never."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Make a second key to rotate to; its secret is shown once."""
    iam = connect(home).aws("iam")
    if bearer:
        age = {} if days is None else {"CredentialAgeDays": days}
        made = iam.create_service_specific_credential(UserName=name, ServiceName=_BEARER, **age)
        key = made["ServiceSpecificCredential"]
        found = {"key_id": key["ServiceSpecificCredentialId"], "bearer_key": key["ServiceCredentialSecret"]}
        _shown_once({**found, "expires": key.get("ExpirationDate")}, as_json)
        return
    _shown_once(_pair(iam.create_access_key(UserName=name)["AccessKey"]), as_json)


@keys.command("set")
def set_key(
    name: str = USER,
    key_id: str = typer.Argument(help="Id of a key: see outcrop access keys list."),
    status: str = typer.Argument(help="active, inactive or deleted; at once."),
    home: Path | None = HOME,
) -> None:
    """Enable, disable or delete a key."""
    iam = connect(home).aws("iam")
    is_bearer = key_id.startswith("ACCA")
    named = {"UserName": name, "ServiceSpecificCredentialId" if is_bearer else "AccessKeyId": key_id}
    if status not in ("active", "inactive", "deleted"):
        raise BadSetting(f"a key can be active, inactive or deleted, not {status!r}")
    if status == "deleted":
        (iam.delete_service_specific_credential if is_bearer else iam.delete_access_key)(**named)
    else:
        change = iam.update_service_specific_credential if is_bearer else iam.update_access_key
        change(**named, Status=status.capitalize())
    typer.echo(f"{key_id} is {status}.")


@roles.command("list")
def list_roles(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the roles."""
    found = [role for page in connect(home).aws("iam").get_paginator("list_roles").paginate() for role in page["Roles"]]
    show(found, {"RoleName": "ROLE", "Arn": "ARN", "MaxSessionDuration": "LONGEST SESSION S"}, as_json=as_json)


@roles.command("create")
def create_role(
    name: str = typer.Argument(help="Name of the role."),
    trust: Path = TRUST,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Make a role, which may do nothing yet."""
    made = connect(home).aws("iam").create_role(RoleName=name, AssumeRolePolicyDocument=_document(trust))["Role"]
    echo_json(made) if as_json else typer.echo(made["Arn"])


@roles.command("delete")
def delete_role(name: str = typer.Argument(help="Name of the role."), home: Path | None = HOME) -> None:
    """Delete a role with its policies; its sessions may do nothing from then on."""
    iam = connect(home).aws("iam")
    for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
        iam.delete_role_policy(RoleName=name, PolicyName=policy)
    iam.delete_role(RoleName=name)
    typer.echo(f"Deleted {name}.")


@policies.command("list")
def list_policies(holder: str = HOLDER, home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the policies of a user or a role."""
    kind, named = _holder(holder)
    found = getattr(connect(home).aws("iam"), f"list_{kind}_policies")(**named)["PolicyNames"]
    show([{"policy": name} for name in found], {"policy": "POLICY"}, as_json=as_json)


@policies.command("get")
def get_policy(
    holder: str = HOLDER, name: str = typer.Argument(help="Name of the policy."), home: Path | None = HOME
) -> None:
    """Print a policy's document."""
    kind, named = _holder(holder)
    found = getattr(connect(home).aws("iam"), f"get_{kind}_policy")(**named, PolicyName=name)
    echo_json(found["PolicyDocument"])


@policies.command("put")
def put_policy(
    holder: str = HOLDER,
    name: str = typer.Argument(help="Name of the policy."),
    document: Path = DOCUMENT,
    home: Path | None = HOME,
) -> None:
    """Give a user or a role a policy, in place of one of that name."""
    kind, named = _holder(holder)
    put = getattr(connect(home).aws("iam"), f"put_{kind}_policy")
    put(**named, PolicyName=name, PolicyDocument=_document(document))
    typer.echo(f"{holder} has the policy {name}.")


@policies.command("delete")
def delete_policy(
    holder: str = HOLDER, name: str = typer.Argument(help="Name of the policy."), home: Path | None = HOME
) -> None:
    """Take a policy away."""
    kind, named = _holder(holder)
    getattr(connect(home).aws("iam"), f"delete_{kind}_policy")(**named, PolicyName=name)
    typer.echo(f"{holder} has the policy {name} no more.")


@app.command()
def boundary(
    holder: str = HOLDER,
    document: Path | None = BOUNDARY,
    home: Path | None = HOME,
) -> None:
    """Limit what the policies of a user or a role may grant."""
    kind, named = _holder(holder)
    (name,) = named.values()
    policy = None if document is None else _parsed(document)
    connect(home).send("PUT", f"/outcrop/v1/access/boundaries/{kind}/{quote(name, safe='')}", {"policy": policy})
    typer.echo(f"{holder} has {'no boundary' if policy is None else 'a boundary'} now.")


@accounts.command("list")
def list_accounts(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the accounts."""
    found = connect(home).get("/outcrop/v1/access/accounts")["accounts"]
    show(found, {"account": "ACCOUNT"}, as_json=as_json)


@accounts.command("create")
def create_account(
    account: str = typer.Argument(help="12 digits."), home: Path | None = HOME, as_json: bool = JSON
) -> None:
    """Make an account with an administrator, whose keys are shown once, and an import role."""
    _shown_once(connect(home).send("PUT", f"/outcrop/v1/access/accounts/{quote(account, safe='')}"), as_json)


@buckets.command("list")
def list_buckets(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the embedded buckets that an owner or a policy was set for; others are the installation's own account's."""
    found = connect(home).get("/outcrop/v1/access/buckets")["buckets"]
    rows = found if as_json else [{**row, "policy": "yes" if row["policy"] else ""} for row in found]
    show(rows, {"bucket": "BUCKET", "account": "ACCOUNT", "policy": "POLICY"}, as_json=as_json)


@buckets.command("set")
def set_bucket(
    name: str = typer.Argument(help="Name of the bucket."),
    account: str = typer.Option(help="The account that owns it."),
    policy: Path | None = BUCKET_POLICY,
    home: Path | None = HOME,
) -> None:
    """Say whose an embedded bucket is, and who else may read it."""
    wanted = {"account": account, "policy": None if policy is None else _parsed(policy)}
    connect(home).send("PUT", f"/outcrop/v1/access/buckets/{quote(name, safe='')}", wanted)
    typer.echo(f"{name} is account {account}'s{' and has a policy' if policy else ''}.")


@quotas.command("list")
def list_quotas(home: Path | None = HOME, as_json: bool = JSON) -> None:
    """List the account's quotas and what is used of them now."""
    found = connect(home).get("/outcrop/v1/access/quotas")["quotas"]
    columns = {"quota": "QUOTA", "value": "VALUE", "used": "USED", "principal": "PRINCIPAL", "model": "MODEL"}
    show(found, columns, as_json=as_json)


@quotas.command("set")
def set_quota(
    quota: str = typer.Argument(help=f"One of {', '.join(NAMES)}."),
    value: str = typer.Argument(help="A number, or none to take the quota away."),
    account: str | None = typer.Option(None, help="Account. Default: the installation's own."),
    principal: str = typer.Option("", help="ARN of a user or a role. Default: all together."),
    model: str = typer.Option("", help="Id of an imported model. Default: all together."),
    home: Path | None = HOME,
) -> None:
    """Set or take away a quota, from the next request on."""
    if value != "none" and not value.isdigit():
        raise BadSetting(f"a quota is a number or none, not {value!r}")
    client = connect(home)
    wanted = {
        "account": account or client.credentials.account,
        "quota": quota,
        "value": None if value == "none" else int(value),
        "principal": principal,
        "model": model,
    }
    client.send("PUT", "/outcrop/v1/access/quotas", wanted)
    typer.echo(f"{quota} is {value} now.")


@app.command()
def explain(
    principal: str = typer.Option(..., "--as", help="ARN of a user, a role or a session of your account."),
    action: str = typer.Option(..., help="For example bedrock:InvokeModel."),
    resource: str = typer.Option("*", help="ARN of what is asked for."),
    context: list[str] = typer.Option([], help="Context key as KEY=VALUE. Repeatable; a key given twice has both."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Say whether something is allowed and which statement decides; exit status 1 when it is denied."""
    facts: dict[str, Any] = {}
    for each in context:
        key, is_there, value = each.partition("=")
        if not is_there:
            raise BadSetting(f"a context key is given as KEY=VALUE, not {each!r}")
        facts[key] = [*([facts[key]] if isinstance(facts[key], str) else facts[key]), value] if key in facts else value
    asked = {"principal": principal, "action": action, "resource": resource, "context": facts}
    found = connect(home).send("POST", "/outcrop/v1/access/explain", asked)
    if as_json:
        echo_json(found)
    elif found["allowed"]:
        typer.echo(f"Allowed ({found['kind']}): {found['decided_by']}.")
    else:
        typer.echo(f"Denied. {found['message']}" + (f" ({found['decided_by']})" if found["decided_by"] else ""))
    raise typer.Exit(0 if found["allowed"] else 1)


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_document(path))
    except ValueError as exc:
        raise BadSetting(f"{path} is not valid JSON: {exc}") from exc


def _pair(key: dict[str, Any]) -> dict[str, Any]:
    return {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}


def _shown_once(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        echo_json(found)
        return
    for key, value in found.items():
        if value is not None:
            typer.echo(f"{key:18} {value}")
    typer.echo("Keep the secrets: they are not shown again.", err=True)
