"""What the commands of ``outcrop plan`` take alike: a copy, prices, limits, the live policy, a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.progress import Progress

from outcrop.errors import BadSetting
from outcrop.metering.price_book import CMU_MONTH, CMU_V1, OWN_COPY_HOUR, PriceBook
from outcrop.planning import costs as pricing
from outcrop.planning.copy_model import CopyModel
from outcrop.planning.rules import TICK_S, Ours
from outcrop.planning.traces import Trace, read_trace
from outcrop.serving.policy import Params
from outcrop.serving.schedule import Scaling, check

TRACES = typer.Argument(help="Traces: our request log or bench records (.jsonl), .csv or .parquet; also .gz.")
TRACE = typer.Argument(help="A trace: our request log or bench records (.jsonl), .csv or .parquet; also .gz.")
COPY = typer.Option(
    None, "--copy", help="File that outcrop plan fit wrote. Default: about a 14 B model on an A100-40GB."
)
COLD_START_S = typer.Option(30.0, min=0, max=86400, help="Seconds from the order of a copy until it is ready.")
DAYS = typer.Option(14.0, min=0.001, help="How much of each trace.")
MIN = typer.Option(0, "--min", min=0, help="Least copies.")
MAX = typer.Option(10, "--max", min=1, help="Most copies.")
KEEP_ALIVE_S = typer.Option(None, min=0, help="Idle seconds after which a copy goes; default: the break-even.")
PRICES = typer.Option([], help="Price books of your own. Repeatable.")
AS_OF = typer.Option(None, help="Use the prices that were known on this day. Default: the newest.")
INSTANCE = typer.Option("ml.g6e.xlarge", help="Instance that holds one copy when it is reserved.")
PROXY = typer.Option("ml.m5.large", help="Instance of the CPU proxy before a serverless copy.")
UNITS = typer.Option(1, min=1, help="Model units of one copy.")
FLEET_TICK_S = 5.0  # a fleet plays many weeks of copies: a fifth of the decisions, copy-hours within 1 %


def copy_of(path: Path | None) -> CopyModel:
    """The copy in *path*. Raises BadSetting."""
    if path is None:
        return CopyModel()
    try:
        raw = msgspec.json.decode(path.read_bytes(), type=dict[str, float])
        found = msgspec.convert(raw, CopyModel, strict=False)
    except (OSError, msgspec.MsgspecError) as exc:
        raise BadSetting(f"{path} is no copy of outcrop plan fit: {exc}.") from exc
    if unknown := sorted(raw.keys() - asdict(found).keys()):
        raise BadSetting(f"{path}: {', '.join(unknown)} unknown; a copy has {', '.join(asdict(found))}.")
    for name, value in asdict(found).items():
        if not 0 <= value < math.inf or (name == "slots" and value < 1):
            raise BadSetting(f"{path}: {name}={value} must be at least {1 if name == 'slots' else 0} and finite.")
    return found


def requests_of(path: Path, days: float) -> Trace:
    """The first *days* of the trace in *path*. Raises BadSetting where no request is in them."""
    found = read_trace(path)
    kept = found.first(days)
    if not len(kept):
        raise BadSetting(
            f"{path} has no request in its first {days:g} days; the first comes after {found.at_s[0] / 86400:.3g} days."
        )
    return kept


def write_out(out: Path, html: Callable[[], str], numbers: Any) -> None:
    """*html* or, as JSON, *numbers*, by the name of *out*. Raises BadSetting."""
    check_out(out)
    try:
        out.write_text(html() if out.suffix == ".html" else json.dumps(numbers, indent=1) + "\n")
    except OSError as exc:
        raise BadSetting(f"{out} cannot be written: {exc.strerror}.") from exc


def check_out(out: Path | None) -> None:
    """Raises BadSetting where ``write_out`` would: before the work is done, not after it."""
    if out is None:
        return
    if out.suffix not in (".html", ".json"):
        raise BadSetting(f"--out {out} ends with neither .html nor .json.")
    if not out.parent.is_dir():
        raise BadSetting(f"--out {out}: there is no folder {out.parent}.")


def day_of(text: str | None) -> date:
    """The day of ``--as-of``; today where none was given. Raises BadSetting."""
    try:
        return date.fromisoformat(text) if text else datetime.now(UTC).date()
    except ValueError as exc:
        raise BadSetting(f"--as-of {text} is no day; write 2026-07-21.") from exc


def prices_of(
    paths: list[Path], as_of: str | None, instance: str, proxy: str, units: int, own: float | None
) -> pricing.Prices:
    """The prices of the books on that day."""
    book, day = PriceBook.load(*paths), day_of(as_of)

    def usd(item: str) -> float:
        return float(book.need(item, region="us-east-1", as_of=day).usd)

    entered = book.find(OWN_COPY_HOUR, region="us-east-1", as_of=day)
    return pricing.Prices(
        unit_minute=usd(CMU_V1),
        unit_month=usd(CMU_MONTH),
        copy_hour=usd(instance),
        proxy_hour=usd(proxy),
        own_copy_hour=own if own is not None else (float(entered.usd) if entered else None),
        units=units,
    )


def limits(least: int, most: int, keep_alive_s: float | None) -> Scaling:
    """What an operator would set. Raises InvalidRequest, as the server does."""
    found = Scaling(min_copies=least, max_copies=most, keep_alive_s=keep_alive_s)
    check(found)
    return found


def live(model: CopyModel, cold_start_s: float, scaling: Scaling, tick_s: float = TICK_S) -> Ours:
    return Ours("outcrop", Params(interference=model.kappa), model, cold_start_s, scaling, tick_s=tick_s)


@contextmanager
def progress(what: str) -> Iterator[Any]:
    from rich.console import Console

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)
