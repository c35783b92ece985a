"""``outcrop audit``: ask the audit log, prove that nobody changed it, export it."""

from __future__ import annotations

import asyncio
import gzip
import json
import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from msgspec import structs

from outcrop.access.audit_chain import entries, verify
from outcrop.access.audit_log import load_key
from outcrop.access.audit_query import Question, answers, named, when
from outcrop.cli.client import HOME, JSON, echo_json, show
from outcrop.errors import BadSetting
from outcrop.settings import Settings, load

app = typer.Typer(help="Ask the audit log, prove that it is whole, export it.", invoke_without_command=True)

PRINCIPAL = typer.Option("", help="Who: part of an ARN, user name or access key id, or a pattern with * and ?.")
ACTION = typer.Option("", help="What: part of an operation's name (Converse, CreateModelImportJob), or a pattern.")
RESOURCE = typer.Option("", help="On what: part of an ARN or of a name that the call gives, or a pattern.")
SINCE = typer.Option(None, help="First moment, UTC (2026-07-01, 2026-07-01T08:30).")
UNTIL = typer.Option(None, help="Moment at which to stop, UTC.")
MOST_RECORDS_A_FILE = 5000


@app.callback()
def audit(
    context: typer.Context,
    principal: str = PRINCIPAL,
    action: str = ACTION,
    resource: str = RESOURCE,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    errors: bool = typer.Option(False, "--errors", help="Only calls that were refused or failed."),
    last: int = typer.Option(50, min=0, help="The newest so many; 0 for all."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Show recorded calls, the oldest first. Works without a running server."""
    if context.invoked_subcommand is not None:
        return
    settings = load(home=home)
    found = _asked(
        settings,
        Question(
            principal=principal,
            action=action,
            resource=resource,
            since=_moment(since, 0.0),
            until=_moment(until, float("inf")),
            only_errors=errors,
            limit=last,
        ),
    )
    if as_json:
        echo_json(found)
        return
    columns = {"time": "TIME", "who": "WHO", "name": "ACTION", "on": "ON", "from": "FROM", "error": "ERROR", "n": "N"}
    show([_row(record) for record in found], columns, as_json=False)


@app.command("verify")
def verify_log(
    head: list[str] = typer.Option([], help="A head, N:MAC, that was written down elsewhere. Repeatable."),
    home: Path | None = HOME,
    as_json: bool = JSON,
) -> None:
    """Check every record against the chain. Status 1 and the first broken record when it was tampered with."""
    settings = load(home=home)
    folder = _folder(settings)
    verdict = verify(folder, load_key(settings.audit_key), anchors=_anchors(head))
    if as_json:
        echo_json(structs.asdict(verdict) | {"broken": verdict.broken and structs.asdict(verdict.broken)})
    elif verdict.broken is None:
        typer.echo(f"{verdict.records} record(s) in {verdict.files} file(s) are whole, from {verdict.first_n}.")
        typer.echo(f"head {verdict.head}")
    if verdict.broken is not None:
        broken = verdict.broken
        typer.echo(
            f"outcrop: the audit log is broken at record {broken.n} ({folder / broken.place}): {broken.reason}",
            err=True,
        )
        raise typer.Exit(1)


@app.command("export")
def export_log(
    out: str = typer.Option(..., help="Folder, or s3://bucket/prefix of a bucket that the server's settings know."),
    since: str | None = SINCE,
    until: str | None = UNTIL,
    home: Path | None = HOME,
) -> None:
    """Write records as CloudTrail does: gzipped files by day under AWSLogs/, which its tools read."""
    settings = load(home=home)
    question = Question(since=_moment(since, 0.0), until=_moment(until, float("inf")))
    found = _asked(settings, question)
    objects = _exported(found, settings.region)
    try:
        asyncio.run(_written(objects, out, settings))
    except OSError as exc:
        raise BadSetting(f"{out} cannot be written: {exc}") from exc
    typer.echo(f"Wrote {len(found)} record(s) in {len(objects)} file(s) to {out}.", err=True)


def _asked(settings: Settings, question: Question) -> list[dict[str, Any]]:
    return answers(entries(_folder(settings)), question)


def _folder(settings: Settings) -> Path:
    if not settings.audit_folder.is_dir():
        raise BadSetting(
            f"there is no audit log at {settings.audit_folder}; a server writes one unless OUTCROP_AUDIT=0."
        )
    return settings.audit_folder


def _exported(found: Sequence[dict[str, Any]], region: str) -> dict[str, bytes]:
    """Objects by key, in CloudTrail's layout."""
    days: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in found:
        day = f"{datetime.fromtimestamp(when(record), UTC):%Y/%m/%d}"
        days[str(record.get("recipientAccountId") or "000000000000"), day].append(
            {key: value for key, value in record.items() if key != "n"}
        )
    stamp = f"{datetime.fromtimestamp(time.time(), UTC):%Y%m%dT%H%MZ}"
    objects = {}
    for (account, day), records in days.items():
        for begin in range(0, len(records), MOST_RECORDS_A_FILE):
            name = f"{account}_CloudTrail_{region}_{stamp}_{secrets.token_hex(8)}.json.gz"
            content = json.dumps({"Records": records[begin : begin + MOST_RECORDS_A_FILE]}).encode()
            objects[f"AWSLogs/{account}/CloudTrail/{region}/{day}/{name}"] = gzip.compress(content)
    return objects


async def _written(objects: dict[str, bytes], out: str, settings: Settings) -> None:
    if not out.startswith("s3://"):
        for key, content in objects.items():
            place = Path(out) / key
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        return
    from outcrop.importing.sources.writing import Buckets

    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    for key, content in objects.items():
        await Buckets(settings).put(bucket, f"{prefix.strip('/')}/{key}".lstrip("/"), content)


def _row(record: dict[str, Any]) -> dict[str, Any]:
    identity = record.get("userIdentity", {})
    names = named(record)
    return {
        "time": record.get("eventTime"),
        "who": identity.get("arn") or identity.get("accessKeyId") or identity.get("invokedBy") or "unknown",
        "name": record.get("eventName"),
        "on": names[0] if names else "",
        "from": record.get("sourceIPAddress", ""),
        "error": record.get("errorCode", ""),
        "n": record["n"],
    }


def _anchors(heads: Sequence[str]) -> dict[int, str]:
    found = {}
    for text in heads:
        number, _, mac = text.partition(":")
        if not number.isdigit() or len(mac) != 64:
            raise typer.BadParameter(f"{text[:100]!r} is no head; it is N:MAC, as outcrop audit verify prints it.")
        found[int(number)] = mac.lower()
    return found


def _moment(text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        found = datetime.fromisoformat(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is no time; write 2026-07-01 or 2026-07-01T08:30.") from exc
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
