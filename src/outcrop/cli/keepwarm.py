"""``outcrop keepwarm``: calls on a schedule, for models on AWS that fall asleep without them."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import typer

from outcrop.cli.client import JSON, echo_json
from outcrop.delivery import warm_hours
from outcrop.delivery.keepwarm import Called, Caller, caller, keep, refuse_ours
from outcrop.delivery.targets import Target, parse
from outcrop.errors import BadSetting
from outcrop.metering.price_book import CMU_V1, PriceBook

app = typer.Typer(help="Keep models warm by calls, where there are no least copies: on AWS.", no_args_is_help=True)

MONTH_H = 730
TARGETS = typer.Argument(
    help="API:MODEL@URL, API one of bedrock, sagemaker, openai; @aws: Amazon's endpoint. A key for an OpenAI endpoint "
    "in OPENAI_API_KEY. A server of Outcrop is refused: it has least copies and schedules."
)
EVERY = typer.Option(warm_hours.EVERY_MINUTES, "--every", min=1, max=1440, help="Minutes from one call to the next.")
JITTER_S = typer.Option(30.0, min=0, help="Seconds by which a call may come earlier, drawn anew each time.")
HOURS = typer.Option(warm_hours.OFFICE_HOURS, help="'always', or days and times; more than one separated by ';'.")
ZONE = typer.Option("UTC", help="Time zone of the hours, e.g. Europe/Berlin.")
UNITS = typer.Option(1, min=1, help="Model units of one copy (GetImportedModel tells them); the price is per unit.")
PRICES = typer.Option([], help="Price books of your own. Repeatable.")
BODY = typer.Option(None, help="File with the JSON body of a call; default: one token after 'ping'.")
WAIT_S = typer.Option(300.0, min=0, help="Longest time in s to go on calling a model that is still waking.")


@app.command()
def once(
    targets: list[str] = TARGETS,
    hours: str = typer.Option(warm_hours.ALWAYS, help="Call only within these hours; else do nothing and exit 0."),
    zone: str = ZONE,
    body: Path | None = BODY,
    wait_s: float = WAIT_S,
    units: int = UNITS,
    prices: list[Path] = PRICES,
    as_json: bool = JSON,
) -> None:
    """Call each target once, for cron and other schedulers. Exit status 1 when one did not answer."""
    within, found = warm_hours.hours(hours, zone), [parse(text) for text in targets]
    if not within.is_open(datetime.now(UTC)):
        typer.echo(f"outside {hours} {zone}: nothing was called", err=True)
        return
    price = _price(prices)
    each_usd = warm_hours.usd(60, 1, price, units)
    typer.echo(f"one call opens a window of five minutes: at most {each_usd:.4f} USD each", err=True)
    called = [keep(target, call, for_s=wait_s) for target, call in _callers(found, body)]
    if as_json:
        echo_json([asdict(each) for each in called])
    else:
        _tell(called)
    if not all(each.is_warm for each in called):
        raise typer.Exit(1)


@app.command()
def cost(
    every: float = EVERY,
    hours: str = HOURS,
    zone: str = ZONE,
    units: int = UNITS,
    prices: list[Path] = PRICES,
    as_json: bool = JSON,
) -> None:
    """Print what a schedule of calls costs a month on Custom Model Import, beside a copy that is always warm."""
    found = _costs(every, warm_hours.hours(hours, zone), units, _price(prices))
    echo_json(found) if as_json else typer.echo(_said(found))


@app.command()
def run(
    targets: list[str] = TARGETS,
    every: float = EVERY,
    jitter_s: float = JITTER_S,
    hours: str = HOURS,
    zone: str = ZONE,
    body: Path | None = BODY,
    wait_s: float = WAIT_S,
    units: int = UNITS,
    prices: list[Path] = PRICES,
) -> None:
    """Call the targets on a schedule until SIGTERM or Ctrl-C; the cost is printed before the first call.

    Keeps nothing on disk: started again, it calls at once, which costs one window at most.
    """
    within, found = warm_hours.hours(hours, zone), [parse(text) for text in targets]
    if jitter_s >= every * 60:
        raise BadSetting(f"--jitter-s {jitter_s:g} must be less than --every {every:g} minutes.")
    callers = _callers(found, body)
    typer.echo(f"each of {len(found)}: {_said(_costs(every, within, units, _price(prices)))}", err=True)
    stop, failures = threading.Event(), list[BaseException]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def one(target: Target, call: Caller) -> None:
        rng, at = random.Random(), within.opening(datetime.now(UTC))  # noqa: S311  (spreads calls)
        try:
            while not _waits(stop, at):
                _tell([keep(target, call, for_s=wait_s, sleep=stop.wait)])
                at = warm_hours.next_call(max(at, _now(at)), every, jitter_s, rng.random(), within)
        except BaseException as exc:  # the others cannot go on as if nothing had happened
            failures.append(exc)
            stop.set()

    threads = [threading.Thread(target=one, args=each, daemon=True) for each in callers]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join(1)
    if failures:
        raise failures[0]


def _now(due: datetime) -> datetime:
    """Now, or *due* where the call was on time: its own length must not shift the schedule."""
    now = datetime.now(UTC)
    return due if now - due < timedelta(seconds=60) else now


def _waits(stop: threading.Event, at: datetime) -> bool:
    """Wait until *at*, by the wall clock also across a sleep of the machine; True when it was stopped."""
    while (left_s := (at - datetime.now(UTC)).total_seconds()) > 0:
        if stop.wait(min(left_s, 30.0)):
            return True
    return stop.is_set()


def _callers(targets: list[Target], body: Path | None) -> list[tuple[Target, Caller]]:
    asked = _body(body)
    for target in targets:
        refuse_ours(target)
    key = os.environ.get("OPENAI_API_KEY", "")
    return [(target, caller(target, asked, key)) for target in targets]


def _body(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise BadSetting(f"the body {path} cannot be read: {exc}.") from exc
    if not isinstance(found, dict):
        raise BadSetting(f"the body {path} must be a JSON object.")
    return found


def _price(books: list[Path]) -> float:
    price = PriceBook.load(*books).need(CMU_V1, region="us-east-1", as_of=date.today())  # noqa: DTZ011
    return float(price.usd)


def _costs(every: float, within: warm_hours.Hours, units: int, unit_minute: float) -> dict[str, Any]:
    share = within.share(datetime.now(UTC))
    return {
        "open_hours_a_month": round(share * MONTH_H, 1),
        "calls_a_month": round(share * MONTH_H * 60 / every),
        "usd_a_month": round(warm_hours.usd(every, share * MONTH_H, unit_minute, units), 2),
        "always_warm_usd_a_month": round(unit_minute * units * 60 * MONTH_H, 2),
        "usd_per_unit_minute": unit_minute,
        "units": units,
    }


def _said(found: dict[str, Any]) -> str:
    return (
        f"about {found['calls_a_month']} calls in {found['open_hours_a_month']:g} hours a month; on Custom Model "
        f"Import at most {found['usd_a_month']:,.2f} USD a month ({found['units']} units at "
        f"{found['usd_per_unit_minute']:g} USD a minute, five minutes a call), where a copy that is billed all the "
        f"time is {found['always_warm_usd_a_month']:,.2f} USD"
    )


def _tell(called: list[Called]) -> None:
    for each in called:
        said = f"answered after {each.took_s:.1f} s" if each.is_warm else f"did not answer in {each.took_s:.1f} s"
        calls = "" if each.calls == 1 else f", {each.calls} calls"
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        typer.echo(f"{stamp} {each.target}: {said}{calls}{' - ' + each.error if each.error else ''}")
