"""The ledger in the database: where batches of the meter go and whence bills are made."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import structs

from outcrop.metering.bill import rows_of
from outcrop.metering.usage import Key, Usage
from outcrop.registry.usage_records import UsageRecords


class Ledger:
    """Values over rows; blocks as they do."""

    def __init__(self, records: UsageRecords) -> None:
        self._records = records

    def apply(self, writer: str, number: int, rows: Mapping[Key, Usage]) -> None:
        """Add *rows*, once per *writer* and *number*."""
        flat = [{**structs.asdict(key), **structs.asdict(usage)} for key, usage in rows.items()]
        self._records.add(writer, number, flat)

    def between(self, account: str, since_ms: int, until_ms: int) -> dict[Key, Usage]:
        """The hours that begin in ``[since_ms, until_ms)``."""
        return rows_of(self._records.between(account, since_ms, until_ms))
