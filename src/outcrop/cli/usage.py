"""``outcrop usage`` and ``outcrop bill``: what was used, and what it would have cost."""

from __future__ import annotations

import csv
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec
import typer

from outcrop.cli.client import HOME, JSON, connect, show
from outcrop.errors import BadSetting
from outcrop.metering import bill as billing
from outcrop.metering.bill import COSTS, Line, ModelNote, Rows, Terms
from outcrop.metering.price_book import CMU_MONTH, CMU_V1, CMU_V2, OWN_COPY_HOUR, PriceBook
from outcrop.metering.usage import COPY_STATES

SINCE = typer.Option(None, help="First day or hour, UTC (2026-07-01, 2026-07-01T08). Default: 30 days ago.")
UNTIL = typer.Option(None, help="Day or hour at which to stop, UTC. Default: now.")
BY = typer.Option("model", help="model, principal, hour, day, month, total, or tag:KEY (a tag of the models).")
OUT = typer.Option(None, help="Write .csv, .json or .parquet instead of a table.")
# Of what was used, columns for people; the rest is in the files.
TOLD = (
    *("group", "requests", "failed", "cancelled", "tokens_in", "tokens_out", "held_s", "run_s"),
    *("starting_s", "idle_s", "busy_s", "evictable_s", "asleep_s", "cold_starts", "spared_s", "windows"),
)
MOST_USD = 1_000_000  # an hour of one copy
GROUPS = ("model", "principal", "hour", "day", "month", "total")


def usage(
    since: str | None = SINCE,
    until: str | None = UNTIL,
    by: str = BY,
    out: Path | None = OUT,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show requests, tokens, waiting, and the time of copies by state.

    The table has what people look for; --json and --out have every count.
    """
    _check_out(out)
    rows, models = _asked(home, since, until)
    lines = billing.bill(rows, models, _terms(PriceBook.load(), "us-east-1", None, "ml.g6e.xlarge"), by=_grouping(by))
    records = [_usage_record(line) for line in lines]
    _give(records, out, as_json=as_json, columns=[name for name in _shown(records) if name in TOLD])


def bill(
    since: str | None = SINCE,
    until: str | None = UNTIL,
    by: str = BY,
    prices: list[Path] = typer.Option([], help="Price books of your own, after the one that ships. Repeatable."),
    own_copy_hour: str | None = typer.Option(
        None, help="What one copy costs you an hour on your own hardware, USD; no price is assumed."
    ),
    instance: str = typer.Option("ml.g6e.xlarge", help="SageMaker instance that would hold one copy."),
    region: str = typer.Option("us-east-1", help="Region of the prices."),
    as_of: str | None = typer.Option(None, help="Use the prices that were known on this day. Default: the newest."),
    out: Path | None = OUT,
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show what the usage costs here and would have cost on Custom Model Import and on reserved SageMaker instances."""
    _check_out(out)
    book = PriceBook.load(*prices)
    today = datetime.now(UTC).date()
    if own_copy_hour is not None:
        book = book.with_price(OWN_COPY_HOUR, _dollars(own_copy_hour), region=region, today=today)
    terms = _terms(book, region, as_of, instance)
    rows, models = _asked(home, since, until)
    lines = billing.bill(rows, models, terms, by=_grouping(by))
    records = [_bill_record(line) for line in lines]
    for cost in (cost for cost in COSTS if any(cost in line.usd for line in lines)):
        rounded = billing.cents(lines, cost)
        for record in records:
            record[cost] = rounded[record["group"]]
    _give(records, out, as_json=as_json, columns=_shown(records))
    if not as_json and out is None:
        for item in (CMU_V1, CMU_V2, CMU_MONTH, instance, OWN_COPY_HOUR):
            price = book.find(item, region=region, as_of=terms.as_of)
            said = f"{price.usd} USD, {price.region}, {price.date}: {price.source}" if price else "no price entered"
            typer.echo(f"{item}: {said}", err=True)


def _terms(book: PriceBook, region: str, as_of: str | None, instance: str) -> Terms:
    try:
        day = date.fromisoformat(as_of) if as_of else datetime.now(UTC).date()
    except ValueError as exc:
        raise typer.BadParameter(f"{as_of!r} is no day; write 2026-07-21.") from exc
    return Terms(book=book, region=region, as_of=day, instance=instance)


def _asked(home: Path | None, since: str | None, until: str | None) -> tuple[Rows, dict[str, ModelNote]]:
    now = datetime.now(UTC)
    begin = _moment(since, "--since") if since else now - timedelta(days=30)
    end = _moment(until, "--until") if until else now + timedelta(hours=1)
    if begin >= end:
        raise typer.BadParameter(
            f"{begin:%Y-%m-%d %H:%M} is not before {end:%Y-%m-%d %H:%M} (UTC).", param_hint="--since"
        )
    path = f"/outcrop/v1/usage/{int(begin.timestamp() * 1000)}/{int(end.timestamp() * 1000)}"
    found = connect(home).get(path)
    return billing.rows_of(found["rows"]), msgspec.convert(found["models"], dict[str, ModelNote])


def _usage_record(line: Line) -> dict[str, Any]:
    counts = line.counts
    saved = billing.saved_by_warmth_s(line)
    return {
        "group": line.group,
        **{name: round(counts[name]) for name in ("requests", "failed", "cancelled", "tokens_in", "tokens_out")},
        "held_s": _seconds(line, "held_ms"),
        "run_s": _seconds(line, "run_ms"),
        **{f"{state}_s": _seconds(line, f"{state}_ms") for state in COPY_STATES},
        "cold_starts": round(counts["cold_starts"]),
        "failed_starts": round(counts["failed_starts"]),
        **{f"start_{stage}_s": _seconds(line, f"start_{stage}_ms") for stage in ("queued", "spawn", "load")},
        "warm_hits": round(counts["warm_hits"]),
        "spared_s": None if saved is None else round(float(saved), 3),
        "windows": round(counts["windows"]),
        "window_units": round(counts["window_units"]),
        "stored_gb_h": round(float(counts["stored_byte_s"]) / 3.6e12, 6),
    }


def _bill_record(line: Line) -> dict[str, Any]:
    record: dict[str, Any] = {
        "group": line.group,
        "requests": round(line.counts["requests"]),
        "tokens": round(line.counts["tokens_in"] + line.counts["tokens_out"]),
        "copy_h": round(sum(float(line.counts[f"{state}_ms"]) for state in COPY_STATES) / 3.6e6, 4),
        "window_units": round(float(line.counts["window_units"]), 2),
    }
    for cost in ("own_allocated_usd", "own_used_usd"):
        if (value := billing.per_million(line, cost)) is not None:
            record[f"{cost.removesuffix('_usd')}_usd_per_million_tokens"] = round(float(value), 4)
    return record


def _seconds(line: Line, name: str) -> float:
    return round(float(line.counts[name]) / 1000, 3)


def _shown(records: list[dict[str, Any]]) -> list[str]:
    """Columns for people: those in which something is."""
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if name == "group" or any(record.get(name) for record in records)]


def _give(records: list[dict[str, Any]], out: Path | None, *, as_json: bool, columns: list[str]) -> None:
    if out is not None:
        _write(records, out)
    elif as_json or records:
        plain = [{name: _plain(value) for name, value in record.items()} for record in records]
        show(plain, {name: name.upper().replace("_", " ") for name in columns}, as_json=as_json)
    else:
        typer.echo("Nothing was used in that time.", err=True)


def _write(records: list[dict[str, Any]], out: Path) -> None:
    try:
        if out.suffix == ".parquet":
            _parquet(records, out)
        elif out.suffix == ".json":
            out.write_text(json.dumps(records, default=_plain, indent=2) + "\n")
        else:
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(dict.fromkeys(name for record in records for name in record)))
                writer.writeheader()
                writer.writerows(records)
    except OSError as exc:
        raise BadSetting(f"{out} cannot be written: {exc.strerror}.") from exc
    typer.echo(f"Wrote {len(records)} row(s) to {out}.", err=True)


def _check_out(out: Path | None) -> None:
    if out is not None and out.suffix not in (".csv", ".json", ".parquet"):
        raise BadSetting(f"{out} ends with none of .csv, .json, .parquet.")


def _parquet(records: list[dict[str, Any]], out: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise BadSetting(f"{out} needs pyarrow: pip install 'outcrop[parquet]', or write .csv.") from exc
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), out)


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value


def _grouping(by: str) -> str:
    if by in GROUPS or (by.startswith("tag:") and by != "tag:"):
        return by
    raise typer.BadParameter(f"{by!r} is none of {', '.join(GROUPS)}, tag:KEY.", param_hint="--by")


def _moment(text: str, option: str) -> datetime:
    """The full hour that begins the period or ends it: the ledger has no finer rows."""
    try:
        found = datetime.fromisoformat(text)
        found = (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError) as exc:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-07-01 or 2026-07-01T08.", param_hint=option) from exc
    if found.minute or found.second or found.microsecond:
        raise typer.BadParameter(f"{text!r} is within an hour; usage is kept by the full hour, UTC.", param_hint=option)
    return found


def _dollars(text: str) -> Decimal:
    try:
        found = Decimal(text)
    except InvalidOperation as exc:
        raise typer.BadParameter(f"{text!r} is no number of dollars.") from exc
    if not found.is_finite() or not 0 <= found <= MOST_USD:
        raise typer.BadParameter(f"{text} is outside 0..{MOST_USD}.", param_hint="--own-copy-hour")
    return found
