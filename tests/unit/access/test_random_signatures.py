"""Ten thousand random requests signed by botocore: each verifies, and none does once anything signed was changed."""

from __future__ import annotations

import os
import random
import string
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from outcrop.access.authenticate import Authenticator
from outcrop.access.identities import AccessKey, MemoryCredentials, Principal
from outcrop.errors import NotAuthenticated

REQUESTS = int(os.environ.get("OUTCROP_TEST_SIGNATURES", "4000"))
ME = Principal("123456789012", "arn:aws:iam::123456789012:user/me")
KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "s" * 40
SIGNER = SigV4Auth(Credentials(KEY, SECRET), "bedrock", "us-east-1")
_TEXT = string.ascii_letters + string.digits + "-_.~ :/+=&?%é漢*'()!@,;\"[]{}|^`\\$#<>"


def text(rng: random.Random, most: int) -> str:
    return "".join(rng.choices(_TEXT, k=rng.randint(0, most)))


def signed(rng: random.Random) -> dict[str, Any]:
    """A random request as it arrives, signed as botocore signs it."""
    safe = rng.choice(["", ":", ":~"])
    segments = [quote(text(rng, 20), safe=safe) for _ in range(rng.randint(0, 4))]
    path = "/" + "/".join(segment for segment in segments if segment.strip(".")) + rng.choice(["", "", "/"])
    query = urlencode([(text(rng, 6), text(rng, 12)) for _ in range(rng.randint(0, 4))], quote_via=quote)
    names = rng.sample(
        ["content-type", "accept", "x-amz-user-agent", "amz-sdk-invocation-id", "x-amzn-bedrock-trace"], 2
    )
    headers = {name: " ".join(quote(text(rng, 8), safe="/;= ") for _ in range(2)) or "x" for name in names}
    body = rng.randbytes(rng.choice([0, 1, 30, 400]))
    method = rng.choice(["GET", "POST", "PUT", "DELETE"])
    # Not port 80: a client leaves the scheme's own port out of its host header.
    url = f"http://host:{rng.randint(1024, 65535)}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, headers=headers, data=body)
    SIGNER.add_auth(request)
    parts = urlsplit(url)
    return {
        "method": method,
        "raw_path": parts.path.encode(),
        "query": parts.query.encode(),
        "headers": [
            *((name.encode(), value.encode()) for name, value in request.headers.items()),
            (b"host", parts.netloc.encode()),
        ],
        "body": body,
    }


def changed(sent: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """*sent* with one thing that its signature covers made different, the signature's own fields included."""
    part = rng.choice(["method", "raw_path", "query", "body", "header", "authorization", "left out"])
    headers = list(sent["headers"])
    if part in ("header", "authorization", "left out"):
        index = rng.randrange(len(headers))
        if part == "authorization":
            index = next(at for at, (name, _) in enumerate(headers) if name.lower() == b"authorization")
        name, value = headers[index]
        if part == "left out":
            del headers[index]
        else:
            at = rng.randrange(len(value))
            headers[index] = (name, value[:at] + (b"0" if value[at : at + 1] != b"0" else b"1") + value[at + 1 :])
        return {**sent, "headers": headers}
    different = {
        "method": "PATCH",
        "raw_path": sent["raw_path"] + rng.choice([b"x", b"%41", b"/y"]),
        "query": sent["query"] + rng.choice([b"&a=1", b"&z", b"%20"]),
        "body": sent["body"] + rng.choice([b" ", b"\0", b"}"]),
    }
    return {**sent, part: different[part]}


def test_random_requests_verify_and_changed_ones_never_do() -> None:
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    gate = Authenticator(
        MemoryCredentials([AccessKey(KEY, SECRET, ME)], []), region="us-east-1", now=lambda: datetime.now(UTC)
    )

    for number in range(REQUESTS):
        sent = signed(rng)
        assert gate.authenticate(**sent) == ME, (seed, number, sent)
        other = changed(sent, rng)
        with pytest.raises(NotAuthenticated):
            pytest.fail(f"accepted: seed {seed}, number {number}, {gate.authenticate(**other)}, {sent}, {other}")
