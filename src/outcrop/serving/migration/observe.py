"""What the sides did lately: observations in a sliding window, and what they amount to. Pure; the caller has time."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from outcrop.serving.migration.plan import Price
from outcrop.serving.migration.split import SideName

Outcome = Literal["ok", "failed", "not_ready", "refused"]
Role = Literal["primary", "shadow", "fallback"]
MOST = 4_000  # observations and pairs kept, whatever the window: a verdict over them takes some milliseconds
WINDOW_S = 300.0  # AWS bills imported models by windows of five minutes


class Observation(Struct, frozen=True, kw_only=True):
    """One answer of one side. *at*: the caller's monotonic clock, in s, when it ended.

    *seconds*: to the end of a whole answer, to the first part of a stream. *refused*: both sides refuse it, so the
    caller got it wrong. *primary*: the caller got it, or would have without *fell_back*. *is_timed*: somebody waited.
    """

    at: float
    side: SideName
    role: Role
    outcome: Outcome
    seconds: float
    is_stream: bool = False
    is_timed: bool = True
    fell_back: bool = False
    excused: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    error: str = ""


class Pair(Struct, frozen=True, kw_only=True):
    """Two answers to one request. *is_noise*: both are the source's. *score*: 0..1."""

    at: float
    is_noise: bool
    score: float


class SideFacts(Struct, frozen=True, kw_only=True):
    """*requests* counts all but those that both sides refuse; *p95_s*: of whole answers, *first_p95_s*: of streams."""

    requests: int = 0
    failed: int = 0
    not_ready: int = 0
    fell_back: int = 0
    whole: int = 0
    streams: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    first_p95_s: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    errors: dict[str, int] = {}

    @property
    def failure_rate(self) -> float:
        return self.failed / self.requests if self.requests else 0.0


class Facts(Struct, frozen=True, kw_only=True):
    """Both sides over *seconds*; agreement is the mean score of the pairs, None without any."""

    seconds: float
    source: SideFacts
    target: SideFacts
    pairs: int = 0
    agreement: float | None = None
    noise_pairs: int = 0
    noise: float | None = None
    target_usd_per_hour: float = 0.0
    source_usd_per_hour: float = 0.0


class Window:
    """Observations since *since*, at most *seconds* back."""

    def __init__(self, seconds: float, since: float) -> None:
        self._seconds = seconds
        self._since = since
        self._seen: deque[Observation] = deque(maxlen=MOST)
        self._pairs: deque[Pair] = deque(maxlen=MOST)

    def restart(self, now: float) -> None:
        """Forget all: a new step is judged by what happens in it."""
        self._since = now
        self._seen.clear()
        self._pairs.clear()

    def add(self, observation: Observation) -> None:
        self._seen.append(observation)

    def pair(self, pair: Pair) -> None:
        self._pairs.append(pair)

    def facts(self, now: float, source_price: Price, target_price: Price, *, last_s: float | None = None) -> Facts:
        """*last_s*: a shorter time than the window's own."""
        begin = max(self._since, now - (self._seconds if last_s is None else last_s))
        for kept in (self._seen, self._pairs):
            while kept and kept[0].at < now - self._seconds:
                kept.popleft()
        seen = [each for each in self._seen if each.at >= begin]
        pairs = [each for each in self._pairs if each.at >= begin]
        seconds = max(now - begin, 1e-3)
        source, target = (side_facts(each for each in seen if each.side == side) for side in ("source", "target"))
        compared = [each.score for each in pairs if not each.is_noise]
        noise = [each.score for each in pairs if each.is_noise]
        return Facts(
            seconds=seconds,
            source=source,
            target=target,
            pairs=len(compared),
            agreement=_mean(compared),
            noise_pairs=len(noise),
            noise=_mean(noise),
            source_usd_per_hour=usd_per_hour(source_price, source, seconds),
            target_usd_per_hour=usd_per_hour(target_price, target, seconds),
        )


def side_facts(seen: Iterable[Observation]) -> SideFacts:
    """What *seen*, all of one side, amounts to."""
    counted = [each for each in seen if each.outcome != "refused"]
    good = [each for each in counted if each.outcome == "ok" and each.role != "fallback" and each.is_timed]
    whole = sorted(each.seconds for each in good if not each.is_stream)
    streams = sorted(each.seconds for each in good if each.is_stream)
    return SideFacts(
        requests=len(counted),
        failed=sum(each.outcome == "failed" for each in counted),
        not_ready=sum(each.outcome == "not_ready" and not each.excused for each in counted),
        fell_back=sum(each.fell_back and not each.excused for each in counted),
        whole=len(whole),
        streams=len(streams),
        p50_s=percentile(whole or streams, 0.5),
        p95_s=percentile(whole, 0.95),
        first_p95_s=percentile(streams, 0.95),
        tokens_in=sum(each.tokens_in for each in counted),
        tokens_out=sum(each.tokens_out for each in counted),
        errors=dict(Counter(each.error for each in counted if each.error).most_common(8)),
    )


def usd_per_hour(price: Price, side: SideFacts, seconds: float) -> float:
    """What the side costs at the rate of the last *seconds*: a window of a side that answered is paid whole."""
    tokens = side.tokens_in * price.usd_per_1000_tokens_in + side.tokens_out * price.usd_per_1000_tokens_out
    windows = 3600 / WINDOW_S if side.requests else 0.0
    return price.usd_per_hour + price.usd_per_window * windows + tokens / 1000 * 3600 / seconds


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest rank of *share*; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
