"""The first start's account: an administrator's key pair, a bearer key and the import role.

What clients on this machine need is in one 0600 file, ``credentials.json``; the administrator, the role and the keys
are ordinary rows of the directory, which a start makes from the file where they are missing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

from outcrop.access.directory import Directory, document_of
from outcrop.access.identities import DELETED, Identity, IdentityKind
from outcrop.access.sealing import BrokenBox
from outcrop.errors import BadSetting, NoSuchEntity

FILE = "credentials.json"
ADMINISTRATOR = "admin"
IMPORT_ROLE = "outcrop-import"
EVERYTHING = document_of({"Effect": "Allow", "Action": "*", "Resource": "*"})
READ_BUCKETS = document_of({"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """What ``outcrop env`` prints and the server checks against."""

    account: str
    region: str
    user_arn: str
    import_role_arn: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    bearer_key: str = field(repr=False)


def load_or_create(home: Path, account: str, region: str) -> Credentials:
    """The credentials of *home*, made on the first start; starts at the same time agree on one file."""
    path = home / FILE
    if not path.exists():
        fresh = Credentials(
            account=account,
            region=region,
            user_arn=f"arn:aws:iam::{account}:user/{ADMINISTRATOR}",
            import_role_arn=f"arn:aws:iam::{account}:role/{IMPORT_ROLE}",
            access_key_id="AKIA" + base64.b32encode(secrets.token_bytes(10)).decode(),
            secret_access_key=secrets.token_urlsafe(30),
            bearer_key="oc-" + secrets.token_urlsafe(32),
        )
        part = home / f"{FILE}.{os.getpid()}.{secrets.token_hex(4)}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(fresh), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(part)  # fails when another start was first, whose file then counts
        except FileExistsError:
            pass
        finally:
            part.unlink()
    return read(home)


def read(home: Path) -> Credentials:
    """The credentials in *home*. Raises BadSetting when the file is absent, open to others or broken."""
    path = home / FILE
    try:
        if path.stat().st_mode & 0o077:
            raise BadSetting(f"{path} can be read by others; make it private: chmod 600 {path}")
        return Credentials(**json.loads(path.read_text()))
    except FileNotFoundError as exc:
        raise BadSetting(f"{path} does not exist; start a server once (outcrop serve) to make it.") from exc
    except (OSError, ValueError, TypeError) as exc:
        raise BadSetting(f"{path} cannot be read: {exc}. Restore it, or remove it to get new keys.") from exc


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
