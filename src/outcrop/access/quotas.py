"""How much: limits per account, principal and model, and what was used of them.

A limit is for one account; *principal* (an ARN) and *model* (an id) narrow it, and an empty one means all of them
together. Rates are token buckets that hold one minute's worth; tokens are known at a request's end, so a request may
take its bucket below nothing, and the next one waits until it is filled again. Counters live in memory: a restart
begins with full buckets.

A call of an endpoint and what its proxy asks of models for it are one request of the account: the call counts, and pays
for the tokens of those within it (``Within``).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outcrop.errors import InvalidRequest, QuotaExceeded, Throttled
from outcrop.registry.identity_records import IdentityRecords

REQUESTS, TOKENS, CONCURRENT = "requests-per-minute", "tokens-per-minute", "concurrent-requests"
MODELS, JOBS, COPIES = "imported-models", "import-jobs", "copies"
NAMES = {
    REQUESTS: "requests for inference that may begin within a minute",
    TOKENS: "tokens, read and written, that may be used within a minute",
    CONCURRENT: "requests for inference at a time",
    MODELS: "imported models, those being imported included",
    JOBS: "import jobs at a time",
    COPIES: "copies of models at a time, those that start included",
}
_OF_ACCOUNTS = frozenset({MODELS, JOBS})  # cannot be narrowed
_COUNTED_ELSEWHERE = frozenset({MODELS, JOBS, COPIES})
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
    """A request that is running. *leave* it once; leaving again does nothing.

    *scopes*: where it counts; *charged*: where its tokens do, besides with *payer*. *name*: what ``Within`` calls it.
    """

    __slots__ = ("_charged", "_is_running", "_payer", "_quotas", "_scopes", "account", "name")

    def __init__(
        self, quotas: Quotas, account: str, scopes: list[Scope], charged: list[Scope], payer: Ticket | None = None
    ) -> None:
        self._quotas = quotas
        self._scopes = scopes
        self._charged = charged
        self._payer = payer
        self._is_running = True
        self.account = account
        self.name = ""

    def spend(self, tokens: int) -> None:
        """Charge *tokens*, also after the end: what was asked within may end later."""
        self._quotas.spent(self._charged, tokens)
        if self._payer is not None:
            self._payer.spend(tokens)

    def leave(self, tokens: int) -> None:
        if self._is_running:
            self._is_running = False
            self._quotas.left(self, self._scopes)
            self.spend(tokens)


@dataclass(frozen=True, slots=True)
class Within:
    """That a request is made in the course of another one, which counts already. *name*: its ticket's, where known."""

    name: str


class Quotas:
    """Every limit and its use. Owned by the event loop."""

    def __init__(self, records: IdentityRecords, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._uses: dict[Scope, _Use] = {}
        self._named: dict[str, Ticket] = {}
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
        if name == COPIES and scope.principal:
            raise InvalidRequest("The quota copies is an account's or a model's; principals share a model's copies.")
        if name == COPIES and value == 0:
            raise InvalidRequest("No copies would never serve. Choose 1 or more, or set requests-per-minute to 0.")
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

    def listed(
        self, account: str, counted: Callable[[str, str], int | None] = lambda _name, _model: None
    ) -> list[dict[str, str | int | None]]:
        """Every limit of *account* with what is used of it now.

        *counted*: how many there are of what other rooms count, by quota and model; empty: of the account.
        """
        found: list[dict[str, str | int | None]] = []
        for scope, use in self._uses.items():
            if scope.account == account:
                for name, value in sorted(use.limits.items()):
                    used = counted(name, scope.model) if name in _COUNTED_ELSEWHERE else self._used(use, name)
                    row: dict[str, str | int | None] = {"principal": scope.principal, "model": scope.model}
                    found.append({**row, "quota": name, "value": value, "used": used})
        return found

    def enter(self, account: str, principal: str, model: str, within: Within | None = None) -> Ticket | None:
        """Begin a request for inference; None where nothing limits it. Raises Throttled, and then nothing was used."""
        if not self._uses:
            return None
        scopes = [scope for scope in _scopes(account, principal, model) if scope in self._uses]
        charged, payer = scopes, None
        if within is not None:
            scopes = [scope for scope in scopes if scope != Scope(account)]
            payer = self._named.get(within.name)
            payer = None if payer is None or payer.account != account else payer
            charged = charged if payer is None else scopes
        for scope in scopes:
            self._check(scope, self._uses[scope])
        for scope in scopes:
            use = self._uses[scope]
            use.running += 1
            if REQUESTS in use.limits:
                self._bucket(use, REQUESTS).left -= 1
        return Ticket(self, account, scopes, charged, payer) if charged or payer else None

    def enter_outer(self, account: str, principal: str, model: str) -> Ticket | None:
        """``enter`` for a request that others are made within, which find it by its name."""
        ticket = self.enter(account, principal, model)
        if ticket is not None:
            ticket.name = secrets.token_hex(16)
            self._named[ticket.name] = ticket
        return ticket

    def left(self, ticket: Ticket, scopes: list[Scope]) -> None:
        """A request of *scopes* has ended."""
        self._named.pop(ticket.name, None)
        for scope in scopes:
            if (use := self._uses.get(scope)) is not None:
                use.running -= 1

    def spent(self, scopes: list[Scope], tokens: int) -> None:
        for scope in scopes:
            if (use := self._uses.get(scope)) is not None and TOKENS in use.limits:
                self._bucket(use, TOKENS).left -= tokens

    def copies(self, account: str, model: str) -> tuple[int | None, int | None]:
        """How many copies *account* may have, and how many of *model*; None: any number."""
        of_account, of_model = self._uses.get(Scope(account)), self._uses.get(Scope(account, "", model))
        return (
            None if of_account is None else of_account.limits.get(COPIES),
            None if of_model is None else of_model.limits.get(COPIES),
        )

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

    def _used(self, use: _Use, name: str) -> int:
        return use.running if name == CONCURRENT else round(use.limits[name] - self._bucket(use, name).left)


def _scopes(account: str, principal: str, model: str) -> Iterator[Scope]:
    yield Scope(account)
    yield Scope(account, principal)
    yield Scope(account, "", model)
    yield Scope(account, principal, model)


def _message(what: str, scope: Scope, name: str, limit: int) -> str:
    whose = scope.principal or f"account {scope.account}"
    of = f" for model {scope.model}" if scope.model else ""
    return f"Too many {what}, please wait before trying again. The quota {name} of {whose}{of} is {limit}."
