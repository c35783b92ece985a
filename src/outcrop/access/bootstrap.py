"""The first start's account: an administrator's key pair, a bearer key and the import role.

They are ordinary rows of the directory, which a start makes from ``credentials.json`` where they are missing.
"""

from __future__ import annotations

import asyncio

from outcrop.access.credentials_file import ADMINISTRATOR, IMPORT_ROLE, Credentials
from outcrop.access.directory import Directory, document_of
from outcrop.access.identities import DELETED, Identity, IdentityKind
from outcrop.access.sealing import BrokenBox
from outcrop.errors import BadSetting, NoSuchEntity

EVERYTHING = document_of({"Effect": "Allow", "Action": "*", "Resource": "*"})
READ_BUCKETS = document_of({"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"})


def import_trust(account: str, region: str) -> str:
    """Who may assume an import role: Bedrock, for an import job of *account*."""
    jobs = f"arn:aws:bedrock:{region}:{account}:model-import-job/*"
    return document_of(
        {
            "Effect": "Allow",
            "Principal": {"Service": "bedrock.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"aws:SourceAccount": account}, "ArnEquals": {"aws:SourceArn": jobs}},
        }
    )


async def ensure(directory: Directory, credentials: Credentials) -> None:
    """Make what the file speaks of and the directory does not know: at the first start, and of an older home.

    Keys that the directory knows, deleted ones included, are left as they are. Raises BadSetting when the secrets of
    the directory were sealed with another key.
    """
    try:
        await asyncio.to_thread(directory.load)
    except BrokenBox as exc:
        raise BadSetting(
            "the secrets in outcrop.db were sealed with another key than the one in secret.key; restore that file"
        ) from exc
    account = credentials.account
    if account not in directory.accounts():
        await directory.create_account(account)
    admin = await _ensure_identity(directory, account, IdentityKind.USER, ADMINISTRATOR, EVERYTHING)
    await _ensure_identity(
        directory,
        account,
        IdentityKind.ROLE,
        IMPORT_ROLE,
        READ_BUCKETS,
        trust=import_trust(account, credentials.region),
        description="Import jobs read checkpoints from buckets as this role.",
    )
    if not directory.was_ever(credentials.access_key_id):
        await _replace_keys(directory, admin, credentials)


async def _replace_keys(directory: Directory, admin: Identity, credentials: Credentials) -> None:
    """The file is new (removing it is how an operator asks for new keys): what it held before must not stay good."""
    for key in directory.access_keys_of(admin):
        await directory.set_access_key(admin, key.access_key_id, DELETED)
    for bearer in directory.bearer_keys_of(admin):
        await directory.set_bearer_key(admin, bearer.key_id, DELETED)
    await directory.add_bearer_key(admin, lambda _: credentials.bearer_key)
    await directory.add_access_key(admin, credentials.access_key_id, credentials.secret_access_key)


async def _ensure_identity(
    directory: Directory, account: str, kind: IdentityKind, name: str, policy: str, **values: str
) -> Identity:
    try:
        return directory.find(account, kind, name)
    except NoSuchEntity:
        policies = {"AdministratorAccess" if kind is IdentityKind.USER else "ReadBuckets": policy}
        return await directory.create(account, kind, name, policies=policies, **values)
