"""How much: limits per account, principal and model, and what was used of them.

A limit is for one account; *principal* (an ARN) and *model* (an id) narrow it, and an empty one means all of them
together. Rates are token buckets that hold one minute's worth; tokens are known at a request's end, so a request may
take its bucket below nothing, and the next one waits until it is filled again. Counters live in memory: a restart
begins with full buckets.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outcrop.errors import InvalidRequest, QuotaExceeded, Throttled
from outcrop.registry.identity_records import IdentityRecords

REQUESTS, TOKENS, CONCURRENT = "requests-per-minute", "tokens-per-minute", "concurrent-requests"
MODELS, JOBS = "imported-models", "import-jobs"
NAMES = {
    REQUESTS: "requests for inference that may begin within a minute",
    TOKENS: "tokens, read and written, that may be used within a minute",
    CONCURRENT: "requests for inference at a time",
    MODELS: "imported models, those being imported included",
    JOBS: "import jobs at a time",
}
_OF_ACCOUNTS = frozenset({MODELS, JOBS})  # cannot be narrowed
MOST = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Scope:
    """What a limit is about. Empty: every principal, every model."""

    account: str
    principal: str = ""
    model: str = ""


@dataclass(slots=True)
class _Bucket:
    """*left* of a minute's worth at *at*, in seconds of the clock."""

    left: float
    at: float


@dataclass(slots=True)
class _Use:
    limits: dict[str, int] = field(default_factory=dict)
    buckets: dict[str, _Bucket] = field(default_factory=dict)
    running: int = 0


class Ticket:
    """A request that is running. *leave* it once; leaving again does nothing."""

    __slots__ = ("_quotas", "_scopes")

    def __init__(self, quotas: Quotas, scopes: list[Scope]) -> None:
        self._quotas = quotas
        self._scopes = scopes

    def leave(self, tokens: int) -> None:
        self._quotas.left(self._scopes, tokens)
        self._scopes = []


class Quotas:
    """Every limit and its use. Owned by the event loop."""

    def __init__(self, records: IdentityRecords, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._uses: dict[Scope, _Use] = {}
        self._lock = asyncio.Lock()

    def load(self) -> None:
        """Read every limit, once, before the first request."""
        for row in self._records.quotas():
            scope = Scope(row["account"], row["principal"], row["model"])
            self._uses.setdefault(scope, _Use()).limits[row["name"]] = row["value"]

    async def set(self, scope: Scope, name: str, value: int | None) -> None:
        """Set a limit; None takes it away. Raises InvalidRequest."""
        if name not in NAMES:
            raise InvalidRequest(f"{name[:60]!r} is no quota; there are {', '.join(NAMES)}.")
        if value is not None and not 0 <= value <= MOST:
            raise InvalidRequest(f"The quota {name} is {value}; it must be 0 to {MOST}.")
        if name in _OF_ACCOUNTS and (scope.principal or scope.model):
            raise InvalidRequest(f"The quota {name} is an account's; it cannot be a principal's or a model's.")
        async with self._lock:
            row = {"account": scope.account, "principal": scope.principal, "model": scope.model, "name": name}
            await asyncio.to_thread(self._records.put_quota, row, value)
            use = self._uses.setdefault(scope, _Use())
            use.buckets.pop(name, None)
            if value is None:
                use.limits.pop(name, None)
                if not use.limits and not use.running:
                    del self._uses[scope]
            else:
                use.limits[name] = value

    def listed(self, account: str) -> list[dict[str, str | int | None]]:
        """Every limit of *account* with what is used of it now; None where only its own room can count."""
        found: list[dict[str, str | int | None]] = []
        for scope, use in self._uses.items():
            if scope.account == account:
                for name, value in sorted(use.limits.items()):
                    row: dict[str, str | int | None] = {"principal": scope.principal, "model": scope.model}
                    found.append({**row, "quota": name, "value": value, "used": self._used(use, name)})
        return found

    def enter(self, account: str, principal: str, model: str) -> Ticket | None:
        """Begin a request for inference; None where nothing limits it. Raises Throttled, and then nothing was used."""
        if not self._uses:
            return None
        scopes = [scope for scope in _scopes(account, principal, model) if scope in self._uses]
        for scope in scopes:
            self._check(scope, self._uses[scope])
        for scope in scopes:
            use = self._uses[scope]
            use.running += 1
            if REQUESTS in use.limits:
                self._bucket(use, REQUESTS).left -= 1
        return Ticket(self, scopes) if scopes else None

    def left(self, scopes: list[Scope], tokens: int) -> None:
        """A request of *scopes* has ended and used *tokens*."""
        for scope in scopes:
            if (use := self._uses.get(scope)) is not None:
                use.running -= 1
                if TOKENS in use.limits:
                    self._bucket(use, TOKENS).left -= tokens

    def check_count(self, account: str, name: str, count: int) -> None:
        """Whether one more than *count* is allowed. Raises QuotaExceeded."""
        limit = self._uses[Scope(account)].limits.get(name) if Scope(account) in self._uses else None
        if limit is not None and count >= limit:
            raise QuotaExceeded(
                f"Account {account} has {count} {name.replace('-', ' ')}, and its quota {name} is {limit}. Delete "
                "what is not needed, or have the quota raised (outcrop access quotas set)."
            )

    def _check(self, scope: Scope, use: _Use) -> None:
        if (most := use.limits.get(CONCURRENT)) is not None and use.running >= most:
            raise Throttled(_message("requests", scope, CONCURRENT, most))
        for name, what in ((REQUESTS, "requests"), (TOKENS, "tokens")):
            if (limit := use.limits.get(name)) is None:
                continue
            left = self._bucket(use, name).left
            needed = 1.0 if name == REQUESTS else 1e-9
            if left < needed:
                wait_s = (needed - left) * 60 / limit if limit else 60.0
                raise Throttled(_message(what, scope, name, limit), retry_after_s=min(60.0, wait_s))

    def _bucket(self, use: _Use, name: str) -> _Bucket:
        """The bucket, filled up to now."""
        now, limit = self._clock(), use.limits[name]
        bucket = use.buckets.setdefault(name, _Bucket(float(limit), now))
        bucket.left = min(float(limit), bucket.left + (now - bucket.at) * limit / 60)
        bucket.at = now
        return bucket

    def _used(self, use: _Use, name: str) -> int | None:
        if name == CONCURRENT:
            return use.running
        return None if name in _OF_ACCOUNTS else round(use.limits[name] - self._bucket(use, name).left)


def _scopes(account: str, principal: str, model: str) -> Iterator[Scope]:
    yield Scope(account)
    yield Scope(account, principal)
    yield Scope(account, "", model)
    yield Scope(account, principal, model)


def _message(what: str, scope: Scope, name: str, limit: int) -> str:
    whose = scope.principal or f"account {scope.account}"
    of = f" for model {scope.model}" if scope.model else ""
    return f"Too many {what}, please wait before trying again. The quota {name} of {whose}{of} is {limit}."
