"""Signature Version 4 as arithmetic: canonical request, string to sign, key, signature. Only day keys are remembered.

Sources: AWS General Reference, "Signature Version 4 signing process". Services other than S3 sign the raw path
percent-encoded once more, dot segments removed; HTTP/2 clients may sign ``:authority`` in place of ``host``.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from urllib.parse import quote, unquote_plus

from outcrop.errors import IncompleteSignature

ALGORITHM = "AWS4-HMAC-SHA256"
_REMEMBERED_CHARS = 512


@dataclass(frozen=True, slots=True)
class Scope:
    """Who signed, and for which day, region and service."""

    access_key_id: str
    date: str
    region: str
    service: str

    @classmethod
    @lru_cache(maxsize=256)  # one key signs for a day
    def parse(cls, credential: str) -> Scope:
        parts = credential.rsplit("/", 4)
        is_whole = len(parts) == 5 and parts[4] == "aws4_request" and all(parts)
        if not is_whole or len(credential) > _REMEMBERED_CHARS:
            raise IncompleteSignature(
                f"Credential must be <access key>/<date>/<region>/<service>/aws4_request, got '{credential[:200]}'."
            )
        return cls(*parts[:4])

    @property
    def text(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


_FIELDS = ("Credential", "SignedHeaders", "Signature")


@dataclass(frozen=True, slots=True)
class Authorization:
    scope: Scope
    signed_headers: tuple[str, ...]
    signature: str

    @classmethod
    def parse(cls, header: str) -> Authorization:
        """The parts of an ``Authorization`` header. Raises IncompleteSignature naming what is missing.

        Nothing may stand beside them: what is sent twice could be read in two ways, here and by whoever is in between.
        """
        fields: dict[str, str] = {}
        for part in header[len(ALGORITHM) :].split(","):
            name, _, value = part.partition("=")
            name = name.strip()
            if name in fields or (name not in _FIELDS and (name or value)):
                raise IncompleteSignature("Authorization header must have each parameter once, and be sent once.")
            fields[name] = value.strip()
        for name in _FIELDS:
            if not fields.get(name):
                raise IncompleteSignature(f"Authorization header requires '{name}' parameter.")
        return cls(Scope.parse(fields["Credential"]), tuple(fields["SignedHeaders"].split(";")), fields["Signature"])


def canonical_path(raw_path: bytes) -> str:
    """*raw_path* without dot segments, percent-encoded once more. Short ones are remembered: models are few."""
    return _remembered_path(raw_path) if len(raw_path) <= _REMEMBERED_CHARS else _canonical_path(raw_path)


def _canonical_path(raw_path: bytes) -> str:
    segments: list[bytes] = []
    for segment in raw_path.split(b"/"):
        if segment == b".." and len(segments) > 1:
            segments.pop()
        elif segment not in (b".", b"..") and (segment or not segments):
            segments.append(segment)
    path = b"/".join(segments) or b"/"
    if raw_path.endswith((b"/", b"/.", b"/..")) and not path.endswith(b"/"):
        path += b"/"
    return quote(path, safe="/-_.~")


_remembered_path = lru_cache(maxsize=1024)(_canonical_path)


def canonical_query(query: str) -> str:
    """Parameters decoded, encoded the one way AWS does, and sorted."""
    pairs = []
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            pairs.append((_encode(name), _encode(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _encode(text: str) -> str:
    return quote(unquote_plus(text.replace("+", "%2B")), safe="-_.~")


def canonical_headers(signed: Sequence[str], headers: Mapping[str, str]) -> str:
    """Lines of the signed headers. Raises IncompleteSignature for one that was not sent."""
    lines = []
    for name in signed:
        value = headers.get("host" if name == ":authority" else name)
        if value is None:
            raise IncompleteSignature(f"The signed header '{name}' is missing from the request.")
        lines.append(f"{name}:{' '.join(value.split())}\n")
    return "".join(lines)


def canonical_request(
    method: str, path: str, query: str, headers: str, signed: Sequence[str], payload_hash: str
) -> str:
    return f"{method}\n{path}\n{query}\n{headers}\n{';'.join(signed)}\n{payload_hash}"


def string_to_sign(timestamp: str, scope: Scope, request: str) -> str:
    return f"{ALGORITHM}\n{timestamp}\n{scope.text}\n{sha256(request.encode()).hexdigest()}"


def signing_key(secret: str, scope: Scope) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def signature(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(), "sha256").hex()


@dataclass(frozen=True, slots=True)
class Keys:
    """What a request is signed with: a key pair (with the token of temporary ones), or a bearer key alone."""

    access_key_id: str = ""
    secret_access_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)


def head(
    keys: Keys, *, method: str, host: str, raw_path: str, content_type: str, body: bytes, timestamp: str, scope: Scope
) -> str:
    """Header lines that sign one request without a query; *timestamp* is ``YYYYMMDDTHHMMSSZ``, UTC.

    Content-Type is among them and signed. The caller adds the lines that need no signature.
    """
    lines = f"Content-Type: {content_type}\r\n"
    if keys.bearer:
        return f"{lines}Authorization: Bearer {keys.bearer}\r\n"
    token = f"x-amz-security-token:{keys.session_token}\n" if keys.session_token else ""
    signed = "content-type;host;x-amz-date" + (";x-amz-security-token" if token else "")
    canonical = (
        f"{method}\n{canonical_path(raw_path.encode('latin-1'))}\n\n"
        f"content-type:{content_type}\nhost:{host}\nx-amz-date:{timestamp}\n{token}\n{signed}\n{sha256(body).hexdigest()}"
    )
    proof = signature(_day_key(keys.secret_access_key, scope), string_to_sign(timestamp, scope, canonical))
    if token:
        lines += f"x-amz-security-token: {keys.session_token}\r\n"
    return (
        f"{lines}x-amz-date: {timestamp}\r\nAuthorization: {ALGORITHM} "
        f"Credential={scope.access_key_id}/{scope.text}, SignedHeaders={signed}, Signature={proof}\r\n"
    )


_day_key = lru_cache(maxsize=64)(signing_key)
