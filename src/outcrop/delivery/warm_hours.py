"""When a model is kept warm by calls, and what that costs: hours of the week in a time zone, the next call. Pure.

Times are aware datetimes; hours are wall-clock times of the zone, so that office hours stay office hours when the
clocks change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from outcrop.errors import BadSetting
from outcrop.metering.windows import WINDOW_MINUTES

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
OFFICE_HOURS = "mon-fri 08:00-18:00"
ALWAYS = "always"
EVERY_MINUTES = 14.0
_PART = re.compile(r"^(?P<days>[a-z,-]+) (?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)$")


@dataclass(frozen=True, slots=True)
class Span:
    """Hours of the days whose numbers are in *days* (Monday is 0). *end* 00:00 is midnight, the day's end."""

    days: frozenset[int]
    begin: time
    end: time


@dataclass(frozen=True, slots=True)
class Hours:
    """Spans of the week; none: always."""

    spans: tuple[Span, ...]
    zone: ZoneInfo

    def opening(self, at: datetime) -> datetime:
        """*at* itself when that is within the hours, else when they next begin."""
        if not self.spans:
            return at
        return next(max(at, begin) for begin, end in self._from(at) if end > at)

    def is_open(self, at: datetime) -> bool:
        return self.opening(at) == at

    def share(self, begin: datetime, days: int = 28) -> float:
        """Share of the *days* from *begin* that the hours cover; spans that overlap count once."""
        if not self.spans:
            return 1.0
        until, open_s, counted = begin + timedelta(days=days), 0.0, begin
        for opens, closes in self._from(begin):
            if opens >= until:
                break
            opens, closes = max(opens, counted), min(closes, until)
            if closes > opens:
                open_s, counted = open_s + (closes - opens).total_seconds(), closes
        return open_s / (days * 86400)

    def _from(self, at: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Spans in the order in which they begin, from the day before *at* on."""
        day = at.astimezone(self.zone).date() - timedelta(days=1)
        while True:
            todays = sorted((s for s in self.spans if day.weekday() in s.days), key=lambda span: span.begin)
            for span in todays:
                closes = day + timedelta(days=span.end <= span.begin)
                yield (
                    datetime.combine(day, span.begin, self.zone).astimezone(UTC),
                    datetime.combine(closes, span.end, self.zone).astimezone(UTC),
                )
            day += timedelta(days=1)


def hours(text: str, zone: str) -> Hours:
    """Read ``always`` or spans like ``mon-fri 08:00-18:00; sat 09:00-12:00`` in *zone* (IANA). Raises BadSetting."""
    try:
        where = ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
        raise BadSetting(
            f"zone={zone!r} is not known here; give a name such as Europe/Berlin (a system without time zones needs "
            "the package tzdata)."
        ) from exc
    if text.strip().lower() == ALWAYS:
        return Hours((), where)
    return Hours(tuple(_span(part.strip().lower(), text) for part in text.split(";")), where)


def _span(part: str, whole: str) -> Span:
    found = _PART.match(part)
    try:
        if found is None:
            raise ValueError(part)
        begin, end = time.fromisoformat(found["begin"]), time.fromisoformat(found["end"])
        return Span(frozenset(_days(found["days"])), begin, end)
    except ValueError as exc:
        raise BadSetting(
            f"hours={whole!r}: {part!r} cannot be read. Write {ALWAYS}, or days and times such as '{OFFICE_HOURS}', "
            "more than one separated by ';'; hours that end before they begin go past midnight."
        ) from exc


def _days(text: str) -> Iterator[int]:
    for item in text.split(","):
        first, _, last = item.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last or first)
        yield from (day % 7 for day in range(begin, end + 1 + (7 if end < begin else 0)))


def next_call(last: datetime, every_minutes: float, jitter_s: float, drawn: float, within: Hours) -> datetime:
    """When to call after a call at *last*. *drawn*, in [0, 1), takes up to *jitter_s* off, so that no gap is longer."""
    due = last + timedelta(minutes=every_minutes) - timedelta(seconds=jitter_s * drawn)
    return within.opening(due)


def windows_per_hour(every_minutes: float) -> float:
    """Windows of five minutes that an hour of calls opens: one a call, none while one is still open."""
    return 60 / max(every_minutes, WINDOW_MINUTES)


def usd(every_minutes: float, open_hours: float, unit_minute: float, units: int) -> float:
    """What *open_hours* of calls cost at *unit_minute* dollars a unit and minute, when nothing else uses the copy."""
    return windows_per_hour(every_minutes) * open_hours * units * unit_minute * WINDOW_MINUTES
