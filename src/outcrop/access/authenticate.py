"""From a request to a principal: SigV4 signatures and bearer keys. Anything else gets AWS's error and nothing more."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from urllib.parse import parse_qs

from outcrop.access.identities import AccessKey, CredentialStore, Principal
from outcrop.access.sessions import EXPIRED, INVALID, Sessions
from outcrop.awswire import sigv4
from outcrop.awswire.sigv4 import ALGORITHM, Authorization, Scope
from outcrop.errors import (
    BadSignature,
    ExpiredCredentials,
    IncompleteSignature,
    MissingCredentials,
    UnknownCredentials,
)

MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key "
    "and signing method. Consult the service documentation for details."
)
SHORT_TERM_PREFIX = "bedrock-api-key-"
SHORT_TERM_HOST = "bedrock.amazonaws.com"
SHORT_TERM_MAX_S = 12 * 3600
LONG_TERM, SHORT_TERM = "LONG_TERM", "SHORT_TERM"  # values of bedrock:BearerTokenType
GLOBAL_REGION = "us-east-1"
GLOBAL = frozenset({"iam", "sts"})  # services that clients sign for here, whatever their region
PRESIGNED_MAX_S = 7 * 24 * 3600
_EMPTY = sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class _Signed:
    key: AccessKey
    given: Authorization
    headers: Mapping[str, str]
    timestamp: str
    is_presigned: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a request says it is from; *signed* is what is still to be verified, None for a bearer key that is known."""

    principal: Principal
    signed: _Signed | None = None

    @property
    def service(self) -> str:
        """The service that the signature is for; empty for a bearer key."""
        return "" if self.signed is None else self.signed.given.scope.service


class Authenticator:
    """Checks every request against a credential store; keeps derived day keys, never secrets of its own."""

    def __init__(
        self,
        store: CredentialStore,
        *,
        region: str,
        now: Callable[[], datetime],
        services: Collection[str] = ("bedrock",),
        max_skew_s: int = 300,
        sessions: Sessions | None = None,
    ) -> None:
        self._store = store
        self._region = region
        self._now = now
        self._services = frozenset(services)
        self._max_skew = timedelta(seconds=max_skew_s)
        self._sessions = sessions

    def claim(self, headers: Mapping[str, str], query: bytes = b"") -> Claim:
        """Who the headers, or a presigned query, say is asking: strangers are turned away before their body is read.

        *headers* are by lower-case name, repeated ones joined by commas. Raises a NotAuthenticated error. A claim made
        by a signature is worth nothing until ``verify`` has passed it.
        """
        authorization = headers.get("authorization", "").strip()
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return Claim(self._bearer(rest.strip()))
        if scheme == ALGORITHM:
            return self._signed_claim(headers, Authorization.parse(authorization))
        if not authorization and b"X-Amz-Signature=" in query:
            return self._presigned_claim(headers, query.decode("latin-1"))
        if authorization:
            raise IncompleteSignature(f"Authorization header must begin with '{ALGORITHM}' or 'Bearer'.")
        raise MissingCredentials("Missing Authentication Token")

    def verify(self, claim: Claim, method: str, raw_path: bytes, query: bytes, body: bytes) -> Principal:
        """The principal of *claim*, once its signature fits the whole request. Raises BadSignature."""
        if claim.signed is None:
            return claim.principal
        given, headers = claim.signed.given, claim.signed.headers
        actual = sha256(body).hexdigest()
        if headers.get("x-amz-content-sha256", actual) != actual:
            raise BadSignature(MISMATCH)
        if claim.signed.is_presigned:
            query = b"&".join(part for part in query.split(b"&") if not part.startswith(b"X-Amz-Signature="))
        request = sigv4.canonical_request(
            method,
            sigv4.canonical_path(raw_path),
            sigv4.canonical_query(query.decode("latin-1")),
            sigv4.canonical_headers(given.signed_headers, headers),
            given.signed_headers,
            actual,
        )
        self._compare(claim.signed.key, given.scope, claim.signed.timestamp, request, given.signature)
        return claim.principal

    def authenticate(
        self, method: str, raw_path: bytes, query: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> Principal:
        """Who made this request. Raises a NotAuthenticated error."""
        return self.verify(self.claim(merge(headers), query), method, raw_path, query, body)

    def _signed_claim(self, headers: Mapping[str, str], given: Authorization) -> Claim:
        timestamp = headers.get("x-amz-date")
        if timestamp is None:
            raise IncompleteSignature("Authorization header requires existence of an 'X-Amz-Date' header.")
        signed = given.signed_headers
        if "x-amz-date" not in signed or not ("host" in signed or ":authority" in signed):
            raise IncompleteSignature("'Host' or ':authority' and 'X-Amz-Date' must be signed headers.")
        key = self._active_key(given.scope.access_key_id, headers.get("x-amz-security-token"))
        self._check_scope(given.scope, timestamp)
        self._check_skew(timestamp)
        return Claim(key.principal, _Signed(key, given, headers, timestamp))

    def _presigned_claim(self, headers: Mapping[str, str], query: str) -> Claim:
        """A signature in the query, as STS's GetCallerIdentity is handed on to prove who somebody is."""
        fields = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        for name in ("X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature"):
            if not fields.get(name):
                raise IncompleteSignature(f"AWS query-string parameters must include '{name}'.")
        scope = Scope.parse(fields["X-Amz-Credential"])
        lifetime, signed = fields["X-Amz-Expires"], tuple(fields["X-Amz-SignedHeaders"].split(";"))
        if fields.get("X-Amz-Algorithm") != ALGORITHM or "host" not in signed:
            raise IncompleteSignature(f"X-Amz-Algorithm must be '{ALGORITHM}' and 'host' must be a signed header.")
        if scope.service != "sts":
            raise IncompleteSignature("A signature in the query is taken for sts only; sign the headers.")
        if not (lifetime.isascii() and lifetime.isdigit() and 0 < int(lifetime[:9]) <= PRESIGNED_MAX_S):
            raise IncompleteSignature(f"X-Amz-Expires must be a number of seconds up to {PRESIGNED_MAX_S}.")
        key = self._active_key(scope.access_key_id, fields.get("X-Amz-Security-Token"))
        self._check_scope(scope, fields["X-Amz-Date"])
        self._check_lifetime(fields["X-Amz-Date"], int(lifetime))
        given = Authorization(scope, signed, fields["X-Amz-Signature"])
        return Claim(key.principal, _Signed(key, given, headers, fields["X-Amz-Date"], is_presigned=True))

    def _bearer(self, token: str) -> Principal:
        if token.startswith(SHORT_TERM_PREFIX):
            return self._short_term(token.removeprefix(SHORT_TERM_PREFIX))
        key = self._store.bearer_key(sha256(token.encode()).hexdigest())
        if key is None or not key.is_active:
            raise UnknownCredentials(INVALID)
        if key.expires_at is not None and key.expires_at <= self._now():
            raise ExpiredCredentials(EXPIRED)
        return replace(key.principal, bearer=LONG_TERM)

    def _short_term(self, encoded: str) -> Principal:
        """A short-term Bedrock key is a presigned POST of CallWithBearerToken: it needs no table of issued keys."""
        try:
            url = base64.b64decode(encoded, validate=True).decode("ascii")
            host_path, _, query = url.partition("?")
            fields = {name: values[0] for name, values in parse_qs(query, strict_parsing=True).items()}
            scope = Scope.parse(fields["X-Amz-Credential"])
            timestamp, lifetime_s = fields["X-Amz-Date"], int(fields["X-Amz-Expires"])
            given, signed = fields["X-Amz-Signature"], tuple(fields["X-Amz-SignedHeaders"].split(";"))
        except (binascii.Error, ValueError, KeyError) as exc:
            raise UnknownCredentials(INVALID) from exc
        is_ours = host_path.rstrip("/") == SHORT_TERM_HOST and fields.get("Action") == "CallWithBearerToken"
        if not is_ours or "host" not in signed or not 0 < lifetime_s <= SHORT_TERM_MAX_S:
            raise UnknownCredentials(INVALID)
        key = self._active_key(scope.access_key_id, fields.get("X-Amz-Security-Token"))
        self._check_scope(scope, timestamp)
        self._check_lifetime(timestamp, lifetime_s)
        kept = "&".join(f for f in query.split("&") if not f.startswith(("X-Amz-Signature=", "Version=")))
        request = sigv4.canonical_request(
            "POST",
            "/",
            sigv4.canonical_query(kept),
            sigv4.canonical_headers(signed, {"host": SHORT_TERM_HOST}),
            signed,
            _EMPTY,
        )
        self._compare(key, scope, timestamp, request, given)
        return replace(key.principal, bearer=SHORT_TERM)

    def _active_key(self, access_key_id: str, token: str | None) -> AccessKey:
        if token is not None:
            if self._sessions is None:
                raise UnknownCredentials(INVALID)
            return self._sessions.key(access_key_id, token)
        key = self._store.access_key(access_key_id)
        if key is None or not key.is_active:
            raise UnknownCredentials(INVALID)
        return key

    def _check_scope(self, scope: Scope, timestamp: str) -> None:
        if scope.service not in self._services:
            wanted = "' or '".join(sorted(self._services))
            raise BadSignature(f"Credential should be scoped to correct service: '{wanted}'.")
        is_global = scope.service in GLOBAL and scope.region == GLOBAL_REGION
        if scope.region != self._region and not is_global:
            raise BadSignature(f"Credential should be scoped to a valid region, not '{scope.region}'.")
        if not timestamp.startswith(scope.date):
            raise BadSignature(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
                f"'{scope.date}' != '{timestamp[:8]}'."
            )

    def _check_lifetime(self, timestamp: str, lifetime_s: int) -> None:
        """Of a presigned request."""
        begin, now = _parse_time(timestamp), self._now()
        if now > begin + timedelta(seconds=lifetime_s):
            raise ExpiredCredentials(EXPIRED)
        if begin > now + self._max_skew:
            raise BadSignature(f"Signature not yet current: {timestamp} is still later than {_stamp(now)}.")

    def _check_skew(self, timestamp: str) -> None:
        signed_at, now = _parse_time(timestamp), self._now()
        minutes = self._max_skew // timedelta(minutes=1)
        if signed_at < now - self._max_skew:
            earliest = _stamp(now - self._max_skew)
            raise BadSignature(
                f"Signature expired: {timestamp} is now earlier than {earliest} ({_stamp(now)} - {minutes} min.)"
            )
        if signed_at > now + self._max_skew:
            latest = _stamp(now + self._max_skew)
            raise BadSignature(
                f"Signature not yet current: {timestamp} is still later than {latest} ({_stamp(now)} + {minutes} min.)"
            )

    def _compare(self, key: AccessKey, scope: Scope, timestamp: str, request: str, given: str) -> None:
        text = sigv4.string_to_sign(timestamp, scope, request)
        expected = sigv4.signature(_day_key(key.secret_access_key, scope), text)
        if not hmac.compare_digest(expected.encode(), given.encode()):
            raise BadSignature(MISMATCH)


@lru_cache(maxsize=1024)
def _day_key(secret: str, scope: Scope) -> bytes:
    return sigv4.signing_key(secret, scope)


def merge(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by lower-case name; repeated ones joined by a comma."""
    merged: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip()
        merged[name] = f"{merged[name]},{value}" if name in merged else value
    return merged


@lru_cache(maxsize=1024)  # many requests of one second
def _parse_time(timestamp: str) -> datetime:
    try:
        return datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise IncompleteSignature(f"Date must be in ISO-8601 'basic format', got '{timestamp[:40]}'.") from exc


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%SZ")
