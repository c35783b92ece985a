"""Identity tokens of OpenID Connect providers: who vouches for whom, checked against the provider's public keys.

The keys are a file or an address of the settings, so that a cluster without the internet works too; an address is
asked again when a token names a key that it did not have.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from outcrop.errors import ExpiredIdentityToken, IdentityTokenRefused, ServiceFault
from outcrop.settings import OidcProvider

ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256"]
FETCH_S = 5.0
ASK_AGAIN_S = 30.0
SKEW_S = 60
MAX_TOKEN_CHARS = 20_000
_MAX_JWKS_BYTES = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a token proves. *host*: the issuer as policies name it, without its scheme. *facts*: context keys."""

    host: str
    subject: str
    audience: str
    facts: Mapping[str, str]


class WebIdentities:
    """Checks tokens against the providers of the settings."""

    def __init__(self, providers: Sequence[OidcProvider]) -> None:
        self._providers = {provider.issuer.rstrip("/"): provider for provider in providers}
        self._keys: dict[str, tuple[float, KeySet]] = {}

    async def verify(self, token: str) -> Proof:
        """Raises IdentityTokenRefused, ExpiredIdentityToken."""
        claims, header = _unverified(token)
        issuer = str(claims.get("iss", "")).rstrip("/")
        provider = self._providers.get(issuer)
        if provider is None:
            raise IdentityTokenRefused(f"No OpenIDConnect provider found in your account for {issuer[:200]}")
        keys = await self._key_set(provider, str(header.get("kid", "")))
        try:
            verified: Mapping[str, Any] = jwt.decode(token, keys, algorithms=ALGORITHMS).claims
        except (JoseError, ValueError) as exc:
            raise IdentityTokenRefused("Couldn't retrieve verification key, or the signature does not fit.") from exc
        return _proof(provider, issuer, verified)

    async def _key_set(self, provider: OidcProvider, key_id: str) -> KeySet:
        at, keys = self._keys.get(provider.issuer, (0.0, None))
        is_missing = keys is None or (key_id and all(key.kid != key_id for key in keys.keys))
        if keys is None or (is_missing and time.monotonic() - at > ASK_AGAIN_S) or _is_file(provider):
            keys = await asyncio.to_thread(_fetched, provider)
            self._keys[provider.issuer] = (time.monotonic(), keys)
        return keys


def _proof(provider: OidcProvider, issuer: str, claims: Mapping[str, Any]) -> Proof:
    now = time.time()
    expires, begins = claims.get("exp"), claims.get("nbf", 0)
    if not isinstance(expires, int | float) or not isinstance(begins, int | float):
        raise IdentityTokenRefused("The token has no time at which it expires.")
    if expires + SKEW_S < now:
        raise ExpiredIdentityToken("Token expired: the current date/time must be before the expiration date/time")
    if begins - SKEW_S > now:
        raise IdentityTokenRefused("The token is not valid yet.")
    audiences = claims.get("aud", [])
    named = [audiences] if isinstance(audiences, str) else [str(each) for each in audiences]
    audience = next((each for each in named if each in provider.audiences), None)
    if audience is None:
        raise IdentityTokenRefused("Incorrect token audience")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise IdentityTokenRefused("The token names no subject.")
    host = issuer.partition("://")[2]
    prefix = host.lower()
    return Proof(
        host=host,
        subject=subject,
        audience=audience,
        facts={f"{prefix}:sub": subject, f"{prefix}:aud": audience},
    )


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Claims and header as they say themselves: good for choosing keys, and for nothing else."""
    from base64 import urlsafe_b64decode

    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN_CHARS:
        raise IdentityTokenRefused(
            "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"
        )
    try:
        header, claims = (json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts[:2])
    except (ValueError, RecursionError) as exc:
        raise IdentityTokenRefused("The ID Token provided is not a valid JWT.") from exc
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise IdentityTokenRefused("The ID Token provided is not a valid JWT.")
    return claims, header


def _is_file(provider: OidcProvider) -> bool:
    return "://" not in provider.jwks


def _fetched(provider: OidcProvider) -> KeySet:
    try:
        if _is_file(provider):
            raw = Path(provider.jwks).read_bytes()
        else:
            with urllib.request.urlopen(provider.jwks, timeout=FETCH_S) as answer:  # noqa: S310  (an address of ours)
                raw = answer.read(_MAX_JWKS_BYTES)
        return KeySet.import_key_set(json.loads(raw))
    except (OSError, ValueError, JoseError, KeyError) as exc:
        raise ServiceFault(f"The keys of {provider.issuer} cannot be read from {provider.jwks}: {exc}") from exc
