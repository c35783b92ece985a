"""Signature Version 4 as arithmetic: canonical request, string to sign, key, signature. No secrets are kept here.

Sources: AWS General Reference, "Signature Version 4 signing process". Services other than S3 sign the raw path
percent-encoded once more, dot segments removed; HTTP/2 clients may sign ``:authority`` in place of ``host``.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from urllib.parse import quote, unquote_plus

from outcrop.errors import IncompleteSignature

ALGORITHM = "AWS4-HMAC-SHA256"
_PART = re.compile(r"\s*(Credential|SignedHeaders|Signature)\s*=\s*([^,\s]*)\s*")


@dataclass(frozen=True, slots=True)
class Scope:
    """Who signed, and for which day, region and service."""

    access_key_id: str
    date: str
    region: str
    service: str

    @classmethod
    def parse(cls, credential: str) -> Scope:
        parts = credential.rsplit("/", 4)
        if len(parts) != 5 or parts[4] != "aws4_request" or not all(parts):
            raise IncompleteSignature(
                f"Credential must be <access key>/<date>/<region>/<service>/aws4_request, got '{credential}'."
            )
        return cls(*parts[:4])

    @property
    def text(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True)
class Authorization:
    scope: Scope
    signed_headers: tuple[str, ...]
    signature: str

    @classmethod
    def parse(cls, header: str) -> Authorization:
        """The parts of an ``Authorization`` header. Raises IncompleteSignature naming what is missing."""
        parts = (_PART.fullmatch(part) for part in header[len(ALGORITHM) :].split(","))
        fields: dict[str, str] = {part[1]: part[2] for part in parts if part}
        for name in ("Credential", "SignedHeaders", "Signature"):
            if not fields.get(name):
                raise IncompleteSignature(f"Authorization header requires '{name}' parameter.")
        return cls(Scope.parse(fields["Credential"]), tuple(fields["SignedHeaders"].split(";")), fields["Signature"])


@lru_cache(maxsize=512)  # a model's few paths, again and again
def canonical_path(raw_path: bytes) -> str:
    """*raw_path* without dot segments, percent-encoded once more."""
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


def canonical_query(query: str) -> str:
    """Parameters decoded, encoded the one way AWS does, and sorted."""
    pairs = []
    for field in query.split("&"):
        if field:
            name, _, value = field.partition("=")
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
