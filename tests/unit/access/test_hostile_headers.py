"""Whatever stands in Authorization, a token or a presigned query: a refusal that is one of ours, never a defect."""

from __future__ import annotations

import base64
import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from outcrop.access.authenticate import Authenticator
from outcrop.access.identities import AccessKey, Identity, IdentityKind, MemoryCredentials, Principal, Session
from outcrop.access.sealing import Sealer
from outcrop.access.sessions import Issued, Sessions
from outcrop.errors import NotAuthenticated

ROUNDS = int(os.environ.get("OUTCROP_TEST_SIGNATURES", "4000"))
ME = Principal("123456789012", "arn:aws:iam::123456789012:user/me")
KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "s" * 40
ROLE = Identity(identity_id="AROAX", account=ME.account, kind=IdentityKind.ROLE, name="app", created_at=0.0)


@pytest.fixture
def sessions() -> Sessions:
    return Sessions(Sealer(b"k" * 32))


@pytest.fixture
def authenticator(sessions: Sessions) -> Authenticator:
    return Authenticator(
        MemoryCredentials([AccessKey(KEY, SECRET, ME)], []),
        region="us-east-1",
        now=lambda: datetime.now(UTC),
        services=("bedrock", "sts"),
        sessions=sessions,
    )


def issued(sessions: Sessions, lives_s: float = 900) -> Issued:
    now = time.time()
    session = Session(session_name="ses", role_arn=ROLE.arn, issued_at=now, expires_at=now + lives_s)
    return sessions.issue(ROLE, session)


def signed(keys: Credentials) -> list[tuple[bytes, bytes]]:
    request = AWSRequest("GET", "http://host:7070/imported-models")
    SigV4Auth(keys, "bedrock", "us-east-1").add_auth(request)
    return [*((name.encode(), value.encode()) for name, value in request.headers.items()), (b"host", b"host:7070")]


def broken(text: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 3)):
        at, part = (
            rng.randrange(len(text) + 1),
            rng.choice([b"=", b",", b"/", b" ", b";", b"\xff", b"\0", b"%", b"9" * 30]),
        )
        text = rng.choice([text[:at] + part + text[at:], text[:at] + text[at + 1 :], text[:at], text[at:]]) or b"x"
    return text


def test_a_session_s_own_signature_verifies(authenticator: Authenticator, sessions: Sessions) -> None:
    made = issued(sessions)
    keys = Credentials(made.access_key_id, made.secret_access_key, made.session_token)

    found = authenticator.authenticate("GET", b"/imported-models", b"", signed(keys), b"")
    assert found == made.principal
    assert found.session is not None
    stolen = Credentials(KEY, SECRET, made.session_token)
    with pytest.raises(NotAuthenticated):
        authenticator.authenticate("GET", b"/imported-models", b"", signed(stolen), b"")
    ended = issued(sessions, lives_s=-1)
    keys = Credentials(ended.access_key_id, ended.secret_access_key, ended.session_token)
    with pytest.raises(NotAuthenticated, match="expired"):
        authenticator.authenticate("GET", b"/imported-models", b"", signed(keys), b"")


def test_broken_headers_are_refused_and_nothing_else(authenticator: Authenticator, sessions: Sessions) -> None:
    rng = random.Random(5)
    made = issued(sessions)
    valid = signed(Credentials(made.access_key_id, made.secret_access_key, made.session_token))
    for _ in range(ROUNDS):
        headers = list(valid)
        at = rng.randrange(len(headers))
        name, value = headers[at]
        if name == b"host" and rng.random() < 0.8:
            continue
        headers[at] = (name, broken(value, rng))
        if headers[at][1].strip() == value:  # white space around a value is no change
            continue
        try:
            found = authenticator.authenticate("GET", b"/imported-models", b"", headers, b"")
        except NotAuthenticated:
            continue
        # Only white space and empty or further fields, which change nothing that was signed, are read over.
        assert name.lower() == b"authorization", headers[at]
        assert found == made.principal
        assert all(part in headers[at][1] for part in value.replace(b",", b"").split()), headers[at]


def test_broken_presigned_queries_and_keys_are_refused_and_nothing_else(authenticator: Authenticator) -> None:
    rng = random.Random(6)
    request = AWSRequest("GET", "http://host:7070/?Action=GetCallerIdentity&Version=2011-06-15")
    SigV4QueryAuth(Credentials(KEY, SECRET), "sts", "us-east-1", expires=60).add_auth(request)
    query = request.url.partition("?")[2].encode()
    host = [(b"host", b"host:7070")]
    assert authenticator.authenticate("GET", b"/", query, host, b"") == ME
    for _ in range(ROUNDS):
        spoiled = broken(query, rng)
        if spoiled.strip(b"&") == query or b"X-Amz-Signature=" not in spoiled:
            continue
        try:
            found = authenticator.authenticate("GET", b"/", spoiled, host, b"")
        except NotAuthenticated:
            continue
        # Only what says the same in other words still verifies.
        from outcrop.awswire.sigv4 import canonical_query

        assert canonical_query(spoiled.decode("latin-1")) == canonical_query(query.decode())
        assert found == ME
    for _ in range(ROUNDS // 4):
        bearer = rng.choice([b"bedrock-api-key-", b"oc-", b""]) + rng.choice(
            [rng.randbytes(rng.randrange(40)), base64.b64encode(broken(b"bedrock.amazonaws.com/?" + query, rng))]
        )
        with pytest.raises(NotAuthenticated):
            authenticator.authenticate("GET", b"/", b"", [(b"authorization", b"Bearer " + bearer)], b"")


def test_a_box_of_another_purpose_is_no_token(sessions: Sessions, tmp_path: Path) -> None:
    sealer = Sealer(b"k" * 32)
    with pytest.raises(NotAuthenticated):
        sessions.key("ASIAX", sealer.seal("secret access keys", b"anything"))
