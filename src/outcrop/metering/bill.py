"""From an hour's facts to money: what the usage was, and what it would have cost elsewhere. Pure, exact.

Sums are rational numbers until they are shown. What copies cost belongs to nobody by itself; it is divided among the
principals by the time that their requests ran on the model in that hour, in an hour without requests by their share of
the period, and where nobody asked at all it stays with "(nobody)".
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction

from msgspec import Struct

from outcrop.metering.price_book import CMU_MONTH, CMU_V1, CMU_V2, OWN_COPY_HOUR, PriceBook
from outcrop.metering.usage import HOUR_MS, NOBODY, SUMS, Key, Usage, is_proxies
from outcrop.metering.windows import WINDOW_MINUTES

MONTH_S = 730 * 3600  # AWS's month
IDLE = "(nobody)"
UNTAGGED = "(untagged)"
COSTS = (
    "cmi_usd",
    "cmi_storage_usd",
    "sagemaker_usd",
    "own_allocated_usd",
    "own_used_usd",
    "keep_warm_usd",
)


class ModelNote(Struct, frozen=True):
    """What a bill says of a model. A deleted one is known by its id alone."""

    name: str
    architecture: str = ""
    tags: Mapping[str, str] = {}


@dataclass(slots=True)
class Line:
    """One group. Counts are fractions only where a shared one was divided; dollars are exact."""

    group: str
    counts: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    usd: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a bill is made. *instance*: the SageMaker type that would hold one copy, reserved at the period's peak."""

    book: PriceBook
    region: str
    as_of: date
    instance: str = "ml.g6e.xlarge"


Rows = Mapping[Key, Usage]
Grouping = Callable[[Key, str], str]  # an hour's key and the principal that pays -> group


def grouping(by: str, models: Mapping[str, ModelNote]) -> Grouping:
    """How rows are gathered: model, principal, hour, day, month, total, or tag:KEY."""
    if by.startswith("tag:"):
        tag = by.removeprefix("tag:")
        return lambda key, _: note_of(models, key.model_id).tags.get(tag, UNTAGGED)
    spans = {"hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d", "month": "%Y-%m"}
    if by in spans:
        return lambda key, _: datetime.fromtimestamp(key.hour_ms / 1000, UTC).strftime(spans[by])
    simple: dict[str, Grouping] = {
        "model": lambda key, _: note_of(models, key.model_id).name,
        "principal": lambda _, principal: principal or IDLE,
        "total": lambda *_: "total",
    }
    return simple[by]


def note_of(models: Mapping[str, ModelNote], model_id: str) -> ModelNote:
    what = "proxies of a deleted endpoint" if is_proxies(model_id) else "deleted model"
    return models.get(model_id) or ModelNote(f"{what} {model_id}")


def bill(rows: Rows, models: Mapping[str, ModelNote], terms: Terms, *, by: str) -> list[Line]:
    """One line per group, in their order. Every kind of cost sums to the same total however it is grouped."""
    group_of, shares = grouping(by, models), _Shares(rows)
    lines: dict[str, Line] = {}

    def line(key: Key, principal: str) -> Line:
        group = group_of(key, principal)
        return lines.setdefault(group, Line(group))

    for key, usage in rows.items():
        payers = {key.principal: Fraction(1)} if key.principal != NOBODY else shares.of(key)
        costs = _costs(key, usage, models, terms)
        for principal, share in payers.items():
            into = line(key, principal)
            for name in SUMS:
                if value := getattr(usage, name):
                    into.counts[name] += share * value
            for name, usd in costs.items():
                into.usd[name] += share * usd
    for key, usd in _reserved(rows, terms).items():
        for principal, share in shares.of(key).items():
            line(key, principal).usd["sagemaker_usd"] += share * usd
    return [lines[group] for group in sorted(lines)]


def _costs(key: Key, usage: Usage, models: Mapping[str, ModelNote], terms: Terms) -> dict[str, Fraction]:
    if is_proxies(key.model_id):
        return {}  # a process without a model: its time is told, what a copy of a model costs is not its price
    is_second = note_of(models, key.model_id).architecture.startswith("GptOss")
    unit_minute = _usd(terms, CMU_V2 if is_second else CMU_V1)
    found = {
        "cmi_usd": usage.window_units * WINDOW_MINUTES * unit_minute,
        "cmi_storage_usd": usage.stored_unit_s * _usd(terms, CMU_MONTH) / MONTH_S,
    }
    own = terms.book.find(OWN_COPY_HOUR, region=terms.region, as_of=terms.as_of)
    if own is not None:
        hour = Fraction(own.usd) / HOUR_MS
        found["own_allocated_usd"] = usage.copy_ms * hour
        found["own_used_usd"] = usage.busy_ms * hour
        found["keep_warm_usd"] = usage.idle_ms * hour
    return found


def _reserved(rows: Rows, terms: Terms) -> dict[Key, Fraction]:
    """What each model's peak would have cost, held in every hour from its first to the last of the period."""
    if not rows:
        return {}
    price, last = _usd(terms, terms.instance), max(key.hour_ms for key in rows)
    peaks: dict[tuple[str, str], int] = defaultdict(int)
    first: dict[tuple[str, str], int] = {}
    for key, usage in rows.items():
        if is_proxies(key.model_id):
            continue
        model = key.account, key.model_id
        peaks[model] = max(peaks[model], usage.peak_copies)
        first[model] = min(first.get(model, key.hour_ms), key.hour_ms)
    return {
        Key(hour, account, model_id): peak * price
        for (account, model_id), peak in peaks.items()
        if peak
        for hour in range(first[account, model_id], last + 1, HOUR_MS)
    }


def _usd(terms: Terms, item: str) -> Fraction:
    return Fraction(terms.book.need(item, region=terms.region, as_of=terms.as_of).usd)


class _Shares:
    """Who used a model: by the time that requests ran there, of the hour, else of the period."""

    def __init__(self, rows: Rows) -> None:
        self._hours: dict[tuple[str, int], dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._period: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for key, usage in rows.items():
            if key.principal != NOBODY and usage.run_ms:
                self._hours[key.model_id, key.hour_ms][key.principal] += usage.run_ms
                self._period[key.model_id][key.principal] += usage.run_ms

    def of(self, key: Key) -> dict[str, Fraction]:
        ran = self._hours.get((key.model_id, key.hour_ms)) or self._period.get(key.model_id)
        if not ran:
            return {NOBODY: Fraction(1)}
        whole = sum(ran.values())
        return {principal: Fraction(ms, whole) for principal, ms in ran.items()}


def cents(lines: Iterable[Line], cost: str) -> dict[str, Decimal]:
    """*cost* of every line in whole cents that sum to the total's: the largest remainders are rounded up."""
    exact = {line.group: line.usd.get(cost, Fraction()) * 100 for line in lines}
    floors = {group: value.numerator // value.denominator for group, value in exact.items()}
    left = round(sum(exact.values(), Fraction())) - sum(floors.values())
    by_remainder = sorted(exact, key=lambda group: (floors[group] - exact[group], group))
    for group in by_remainder[: max(0, left)]:
        floors[group] += 1
    return {group: Decimal(value) / 100 for group, value in floors.items()}


def per_million(line: Line, cost: str) -> Fraction | None:
    """Dollars per million tokens, in and out; None where there were none, or no price."""
    tokens = line.counts["tokens_in"] + line.counts["tokens_out"]
    return line.usd[cost] * 1_000_000 / tokens if tokens and cost in line.usd else None


def saved_by_warmth_s(line: Line) -> Fraction | None:
    """Seconds of waiting that kept copies spared: requests to a model at rest times its mean cold start."""
    if not line.counts["cold_starts"]:
        return None
    stages = sum(line.counts[f"start_{stage}_ms"] for stage in ("queued", "spawn", "load"))
    return line.counts["warm_hits"] * stages / line.counts["cold_starts"] / 1000


def rows_of(found: Iterable[Mapping[str, int | str]]) -> dict[Key, Usage]:
    """Rows of the ledger's table as values."""
    keys, rows = Key.__struct_fields__, {}
    for row in found:
        key = Key(**{name: row[name] for name in keys})  # type: ignore[arg-type]
        rows[key] = Usage(**{name: value for name, value in row.items() if name not in keys})  # type: ignore[arg-type]
    return rows
