"""Identities and keys: what is stored, what is sealed, what takes effect at once, what a start repairs."""

from __future__ import annotations

import time
from hashlib import sha256
from pathlib import Path

import pytest

from outcrop.access.authorizer import Authorizer, Origin, ResourcePolicies
from outcrop.access.bootstrap import EVERYTHING, ensure
from outcrop.access.credentials_file import load_or_create
from outcrop.access.directory import ACTIVE, DELETED, INACTIVE, Directory, document_of
from outcrop.access.identities import IdentityKind, Principal, Session
from outcrop.access.policy import Kind, parse
from outcrop.access.sealing import BrokenBox, Sealer
from outcrop.access.sealing import load_or_create as load_key
from outcrop.access.sessions import Sessions
from outcrop.errors import (
    BadSetting,
    DeleteConflict,
    EntityExists,
    ExpiredCredentials,
    LimitExceeded,
    MalformedPolicy,
    NoSuchEntity,
    NotAllowed,
    UnknownCredentials,
)
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry

ACCOUNT = "000000000000"
SEALER = Sealer(b"k" * 32)
MODEL = f"arn:aws:bedrock:us-east-1:{ACCOUNT}:imported-model/abcdefabcdef"


def opened(home: Path, sealer: Sealer = SEALER) -> Directory:
    return Directory(IdentityRecords(Registry.open(home / "outcrop.db")), sealer, account=ACCOUNT)


async def test_what_was_made_is_there_after_a_restart_and_no_secret_is_readable(tmp_path: Path) -> None:
    first = opened(tmp_path)
    ann = await first.create(ACCOUNT, IdentityKind.USER, "ann", policies={"all": EVERYTHING}, tags={"team": "red"})
    key = await first.add_access_key(ann)
    bearer, text = await first.add_bearer_key(ann, lambda key_id: f"oc-{key_id}")
    await first.create_account("111111111111")
    await first.set_bucket("b", "111111111111", None)

    again = opened(tmp_path)
    again.load()

    assert again.find(ACCOUNT, IdentityKind.USER, "ANN") == first.find(ACCOUNT, IdentityKind.USER, "ann")
    assert again.access_key(key.access_key_id) == key
    assert again.bearer_key(sha256(text.encode()).hexdigest()) == bearer
    assert again.bucket("b").account == "111111111111"
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("outcrop.db*"))  # noqa: ASYNC240
    assert key.secret_access_key.encode() not in stored
    assert text.encode() not in stored
    assert key.secret_access_key not in repr(key)


async def test_a_key_can_be_rotated_with_overlap_and_is_disabled_at_once(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    ann = await directory.create(ACCOUNT, IdentityKind.USER, "ann")
    old, new = await directory.add_access_key(ann), await directory.add_access_key(ann)
    with pytest.raises(LimitExceeded):
        await directory.add_access_key(ann)

    await directory.set_access_key(ann, old.access_key_id, INACTIVE)
    found = directory.access_key(old.access_key_id)
    assert found is not None
    assert not found.is_active
    await directory.set_access_key(ann, old.access_key_id, ACTIVE)
    await directory.set_access_key(ann, old.access_key_id, DELETED)
    assert directory.access_key(old.access_key_id) is None
    assert directory.was_ever(old.access_key_id)
    assert directory.access_keys_of(ann) == [new]


async def test_what_is_wrong_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    ann = await directory.create(ACCOUNT, IdentityKind.USER, "ann")
    with pytest.raises(EntityExists):
        await directory.create(ACCOUNT, IdentityKind.USER, "Ann")
    with pytest.raises(MalformedPolicy):
        await directory.put_policy(ann, "p", '{"Statement":[{"Effect":"Allow"}]}')
    long = document_of(*({"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"} for _ in range(40)))
    with pytest.raises(LimitExceeded):
        await directory.put_policy(ann, "p", long)
    with pytest.raises(NoSuchEntity):
        await directory.delete_policy(ann, "p")
    with pytest.raises(NoSuchEntity):
        directory.find("111111111111", IdentityKind.USER, "ann")
    await directory.put_policy(ann, "p", EVERYTHING)
    with pytest.raises(DeleteConflict):
        await directory.delete(ann)
    await directory.delete_policy(ann, "p")
    await directory.delete(ann)
    with pytest.raises(NoSuchEntity):
        directory.find(ACCOUNT, IdentityKind.USER, "ann")


async def test_a_policy_counts_from_the_next_request_on(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    authorizer = Authorizer(
        directory, ResourcePolicies(Registry.open(tmp_path / "outcrop.db").attachments), region="us-east-1"
    )
    ann = await directory.create(ACCOUNT, IdentityKind.USER, "ann")
    me = (await directory.add_access_key(ann)).principal

    with pytest.raises(NotAllowed) as denied:
        authorizer.check(me, "bedrock:InvokeModel", MODEL, Origin())
    assert denied.value.message == (
        f"User: arn:aws:iam::{ACCOUNT}:user/ann is not authorized to perform: bedrock:InvokeModel on resource: {MODEL} "
        "because no identity-based policy allows the bedrock:InvokeModel action"
    )
    await directory.put_policy(ann, "all", EVERYTHING)
    authorizer.check(me, "bedrock:InvokeModel", MODEL, Origin())
    await directory.delete_policy(ann, "all")
    with pytest.raises(NotAllowed):
        authorizer.check(me, "bedrock:InvokeModel", MODEL, Origin())


async def test_a_start_makes_the_administrator_of_an_older_home_and_keeps_what_was_taken_away(tmp_path: Path) -> None:
    credentials = load_or_create(tmp_path, ACCOUNT, "us-east-1")
    directory = opened(tmp_path)
    await ensure(directory, credentials)
    key = directory.access_key(credentials.access_key_id)
    assert key is not None
    assert key.secret_access_key == credentials.secret_access_key
    assert key.principal == Principal(ACCOUNT, credentials.user_arn, key.principal.identity_id)
    assert directory.role(credentials.import_role_arn) is not None

    admin = directory.find(ACCOUNT, IdentityKind.USER, "admin")
    await directory.set_access_key(admin, credentials.access_key_id, DELETED)
    again = opened(tmp_path)
    await ensure(again, credentials)
    assert again.access_key(credentials.access_key_id) is None

    (tmp_path / "credentials.json").unlink()
    fresh = load_or_create(tmp_path, ACCOUNT, "us-east-1")
    third = opened(tmp_path)
    await ensure(third, fresh)
    assert third.access_key(fresh.access_key_id) is not None
    assert third.bearer_key(sha256(credentials.bearer_key.encode()).hexdigest()) is None


async def test_another_key_file_is_named_and_opens_nothing(tmp_path: Path) -> None:
    credentials = load_or_create(tmp_path, ACCOUNT, "us-east-1")
    await ensure(opened(tmp_path), credentials)

    with pytest.raises(BadSetting, match=r"secret\.key"):
        await ensure(opened(tmp_path, Sealer(b"x" * 32)), credentials)


def test_the_key_file_is_private_and_refused_when_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    box = load_key(path).seal("a", b"content")
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).open("a", box) == b"content"
    for broken in (box[:-2] + "AA", box[:10], "é", ""):
        with pytest.raises(BrokenBox):
            load_key(path).open("a", broken)
    with pytest.raises(BrokenBox):
        load_key(path).open("b", box)
    path.chmod(0o644)
    with pytest.raises(BadSetting, match="chmod 600"):
        load_key(path)


async def test_a_session_token_is_good_for_its_own_key_until_it_expires(tmp_path: Path) -> None:
    directory, sessions = opened(tmp_path), Sessions(SEALER)
    role = await directory.create(ACCOUNT, IdentityKind.ROLE, "app")
    now = time.time()
    session = Session(session_name="s", role_arn=role.arn, issued_at=now, expires_at=now + 900, tags={"team": "red"})
    limit = document_of({"Effect": "Allow", "Action": "s3:*", "Resource": "*"})
    issued = sessions.issue(role, session, [limit])

    found = Sessions(SEALER).key(issued.access_key_id, issued.session_token)
    assert found.secret_access_key == issued.secret_access_key
    assert found.principal.arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/app/s"
    assert found.principal.user_id == f"{role.identity_id}:s"
    assert found.principal.session is not None
    assert found.principal.session.tags == {"team": "red"}
    assert [policy.kind for policy in found.principal.session.policies] == [parse(limit, Kind.SESSION).kind]
    with pytest.raises(UnknownCredentials):
        sessions.key("ASIAOTHER", issued.session_token)
    with pytest.raises(UnknownCredentials):
        Sessions(Sealer(b"x" * 32)).key(issued.access_key_id, issued.session_token)
    old = Session(session_name="s", role_arn=role.arn, issued_at=now - 900, expires_at=now - 1)
    ended = sessions.issue(role, old)
    with pytest.raises(ExpiredCredentials):
        sessions.key(ended.access_key_id, ended.session_token)
