"""Signatures made by botocore verify; each one tampered with does not."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from outcrop.access.authenticate import Authenticator
from outcrop.access.identities import AccessKey, BearerKey, MemoryCredentials, Principal
from outcrop.errors import (
    BadSignature,
    ExpiredCredentials,
    IncompleteSignature,
    MissingCredentials,
    NotAuthenticated,
    UnknownCredentials,
)

ME = Principal("123456789012", "arn:aws:iam::123456789012:user/me")
KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "s" * 40
NOW = datetime.now(UTC)
STORE = MemoryCredentials(
    [AccessKey(KEY, SECRET, ME), AccessKey("AKIAOFF", SECRET, ME, is_active=False)],
    [
        BearerKey(sha256(b"good").hexdigest(), ME),
        BearerKey(sha256(b"old").hexdigest(), ME, expires_at=NOW - timedelta(days=1)),
        BearerKey(sha256(b"off").hexdigest(), ME, is_active=False),
    ],
)
URL = "http://host:7070/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Aimported-model%2Fa/invoke?b=2&a=%C3%A9%20x&a=1"

Sent = dict[str, Any]


def authenticator(now: datetime | None = None) -> Authenticator:
    return Authenticator(STORE, region="us-east-1", now=lambda: now or datetime.now(UTC))


def signed(url: str = URL, body: bytes = b'{"x":1}', key: str = KEY, service: str = "bedrock", **headers: str) -> Sent:
    request = AWSRequest("POST", url, headers={"X-Extra": " two   spaces ", **headers}, data=body)
    SigV4Auth(Credentials(key, SECRET), service, "us-east-1").add_auth(request)
    parts = urlsplit(url)
    pairs = [(name.encode(), value.encode()) for name, value in request.headers.items()]
    return {
        "method": "POST",
        "raw_path": parts.path.encode(),
        "query": parts.query.encode(),
        "headers": [*pairs, (b"host", parts.netloc.encode())],
        "body": body,
    }


@pytest.mark.parametrize(
    "url", [URL, "http://h/", "http://h/imported-models?nextToken=a%2Bb%3D", "http://h/a/../b/./c/"]
)
def test_what_botocore_signs_verifies(url: str) -> None:
    assert authenticator().authenticate(**signed(url)) == ME


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"raw_path": b"/model/other/invoke"},
        {"query": b"a=1"},
        {"body": b'{"x":2}'},
    ],
)
def test_a_request_that_was_tampered_with_is_refused(change: Sent) -> None:
    with pytest.raises(BadSignature, match="does not match"):
        authenticator().authenticate(**{**signed(), **change})


@pytest.mark.parametrize("name", [b"X-Extra", b"host"])
def test_a_signed_header_that_was_changed_is_refused(name: bytes) -> None:
    sent = signed()
    sent["headers"] = [(key, b"changed" if key == name else value) for key, value in sent["headers"]]

    with pytest.raises(BadSignature):
        authenticator().authenticate(**sent)


def test_the_authority_of_http_2_may_be_signed_in_place_of_host() -> None:
    from outcrop.awswire import sigv4

    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = sigv4.Scope(KEY, stamp[:8], "us-east-1", "bedrock")
    names = (":authority", "x-amz-date")
    lines = sigv4.canonical_headers(names, {"host": "h:1", "x-amz-date": stamp})
    text = sigv4.canonical_request("GET", "/x", "", lines, names, sha256(b"").hexdigest())
    mark = sigv4.signature(sigv4.signing_key(SECRET, scope), sigv4.string_to_sign(stamp, scope, text))
    header = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope.text}, SignedHeaders=:authority;x-amz-date, Signature={mark}"
    headers = [(b"host", b"h:1"), (b"x-amz-date", stamp.encode()), (b"authorization", header.encode())]

    assert authenticator().authenticate("GET", b"/x", b"", headers, b"") == ME


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (signed(key="AKIAUNKNOWN"), UnknownCredentials),
        (signed(key="AKIAOFF"), UnknownCredentials),
        (signed(service="s3"), BadSignature),
        (signed(**{"X-Amz-Security-Token": "t"}), UnknownCredentials),
        (signed(**{"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}), BadSignature),
        ({**signed(), "headers": []}, MissingCredentials),
        ({**signed(), "headers": [(b"authorization", b"Basic eA==")]}, IncompleteSignature),
        ({**signed(), "headers": [(b"authorization", b"AWS4-HMAC-SHA256 Credential=a/b")]}, IncompleteSignature),
    ],
)
def test_every_other_way_in_is_closed(sent: Sent, error: type[NotAuthenticated]) -> None:
    with pytest.raises(error):
        authenticator().authenticate(**sent)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_clock_that_is_off_by_more_than_five_minutes_is_refused(minutes: int) -> None:
    with pytest.raises(BadSignature, match=r"Signature (expired|not yet current)"):
        authenticator(datetime.now(UTC) + timedelta(minutes=minutes)).authenticate(**signed())


def bearer(token: str) -> Sent:
    return {**signed(), "headers": [(b"authorization", f"Bearer {token}".encode())]}


@pytest.mark.parametrize(
    ("token", "error"), [("bad", UnknownCredentials), ("off", UnknownCredentials), ("old", ExpiredCredentials)]
)
def test_only_a_bearer_key_that_is_known_active_and_fresh_is_taken(token: str, error: type[Exception]) -> None:
    assert authenticator().authenticate(**bearer("good")) == ME
    with pytest.raises(error):
        authenticator().authenticate(**bearer(token))


def short_term(lifetime_s: int = 3600, key: str = KEY) -> str:
    """A key as AWS's own token generator makes it: a presigned URL."""
    url = "https://bedrock.amazonaws.com/?Action=CallWithBearerToken"
    request = AWSRequest("POST", url, headers={"host": "bedrock.amazonaws.com"})
    SigV4QueryAuth(Credentials(key, SECRET), "bedrock", "us-east-1", expires=lifetime_s).add_auth(request)
    text = request.url.removeprefix("https://") + "&Version=1"
    return "bedrock-api-key-" + base64.b64encode(text.encode()).decode()


def test_a_short_term_bedrock_key_needs_no_table() -> None:
    assert authenticator().authenticate(**bearer(short_term())) == ME
    with pytest.raises(ExpiredCredentials):
        authenticator(datetime.now(UTC) + timedelta(hours=2)).authenticate(**bearer(short_term()))
    with pytest.raises(UnknownCredentials):
        authenticator().authenticate(**bearer(short_term(key="AKIAUNKNOWN")))
    with pytest.raises(UnknownCredentials):
        authenticator().authenticate(**bearer(short_term()[:-9]))
