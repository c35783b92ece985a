"""Prices, each with its date and source; several versions of one price side by side. None is invented."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation
from importlib.resources import files
from pathlib import Path
from typing import Any

from outcrop.errors import BadSetting

OWN_COPY_HOUR = "own-copy-hour"
CMU_V1, CMU_V2, CMU_MONTH = "cmu-v1-minute", "cmu-v2-minute", "cmu-month"
_FIELDS = {"item", "region", "usd", "date", "source"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per the unit that *item* ends with; an instance type is per hour. *date*: when it was read."""

    item: str
    region: str
    usd: Decimal
    date: date
    source: str


class PriceBook:
    def __init__(self, prices: Iterable[Price]) -> None:
        self._prices = sorted(prices, key=lambda price: price.date)

    @classmethod
    def load(cls, *own: Path) -> PriceBook:
        """The book that ships, and the operator's files after it. Raises BadSetting naming file, entry and field."""
        shipped = files("outcrop.metering").joinpath("prices.toml").read_text()
        found = _read(shipped, "prices.toml")
        for path in own:
            try:
                found += _read(path.read_text(), str(path))
            except (OSError, UnicodeDecodeError) as exc:
                why = getattr(exc, "strerror", None) or exc
                raise BadSetting(f"the price book {path} cannot be read: {why}.") from exc
        return cls(found)

    def with_price(self, item: str, usd: Decimal, *, region: str, today: date) -> PriceBook:
        """The book with one more price, entered by hand."""
        entered = Price(item=item, region=region, usd=usd, date=today, source="entered on the command line")
        return PriceBook([*self._prices, entered])

    def find(self, item: str, *, region: str, as_of: date) -> Price | None:
        """The price of *item* that was the newest on *as_of*; of another region when its own has none.

        A period before the first reading takes that one: it is the nearest that is known.
        """
        for candidates in ([p for p in self._prices if p.region == region], self._prices):
            named = [price for price in candidates if price.item == item]
            if named:
                earlier = [price for price in named if price.date <= as_of]
                return earlier[-1] if earlier else named[0]
        return None

    def need(self, item: str, *, region: str, as_of: date) -> Price:
        """As ``find``. Raises BadSetting when the book has no such price at all."""
        price = self.find(item, region=region, as_of=as_of)
        if price is None:
            known = ", ".join(sorted({each.item for each in self._prices}))
            raise BadSetting(f"no price of {item} is known; the book has {known}. Add it with --prices FILE.")
        return price

    def all(self) -> list[Price]:
        return list(self._prices)


def _read(text: str, name: str) -> list[Price]:
    try:
        book: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise BadSetting(f"{name} is not valid TOML: {exc}") from exc
    entries = book.get("price")
    if book.keys() != {"price"} or not isinstance(entries, list):
        raise BadSetting(f"{name} must hold [[price]] entries and nothing else; it has {', '.join(book) or 'nothing'}.")
    found = [_price(entry, f"{name}, price {number}") for number, entry in enumerate(entries, 1)]
    named = Counter((price.item, price.region, price.date) for price in found)
    for (item, region, day), count in named.items():
        if count > 1:
            raise BadSetting(f"{name} has {count} prices of {item} in {region} of {day}; keep one.")
    return found


def _price(entry: Any, where: str) -> Price:
    if not isinstance(entry, dict):
        raise BadSetting(f"{where} is no table; write [[price]] above its fields.")
    if wrong := sorted(_FIELDS ^ entry.keys()):
        raise BadSetting(f"{where}: {', '.join(wrong)} missing or unknown; a price has {', '.join(sorted(_FIELDS))}.")
    try:
        usd = Decimal(str(entry["usd"]))
    except InvalidOperation as exc:
        raise BadSetting(f'{where}: usd = {entry["usd"]!r} is no number; write it as "2.61".') from exc
    if not usd.is_finite() or usd < 0:
        raise BadSetting(f"{where}: usd = {usd} must be a finite number of at least 0.")
    for name in ("item", "region", "source"):
        if not isinstance(entry[name], str) or not entry[name]:
            raise BadSetting(f"{where}: {name} = {entry[name]!r} must be a text.")
    if type(entry["date"]) is not date:  # a date with a time of day is one too, by its class
        raise BadSetting(f"{where}: date = {entry['date']!r} is no date; write 2026-07-21, without quotes.")
    return Price(item=entry["item"], region=entry["region"], usd=usd, date=entry["date"], source=entry["source"])
