"""How the commands reach the server: its address in the home, credentials beside it, boto3 for the AWS APIs."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from outcrop.access.credentials_file import Credentials, read
from outcrop.errors import BadSetting
from outcrop.settings import Settings, load

HOME = typer.Option(None, envvar="OUTCROP_HOME", help="Folder of the installation (default ~/.outcrop).")
JSON = typer.Option(False, "--json", help="Print JSON for machines.")


@dataclass(frozen=True, slots=True)
class Client:
    """A running server and the keys to it."""

    settings: Settings
    url: str
    credentials: Credentials

    def aws(self, service: str) -> Any:
        """A boto3 client of *service*, which retries as boto3 does by default."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name=self.credentials.region,
            aws_access_key_id=self.credentials.access_key_id,
            aws_secret_access_key=self.credentials.secret_access_key,
            verify=str(self.settings.authority) if self.url.startswith("https") and self.settings.authority else None,
            config=Config(read_timeout=900),
        )

    def get(self, path: str) -> Any:
        """JSON of one of the server's own resources. Raises BadSetting with the server's own words."""
        return self.send("GET", path)

    def patch(self, path: str, change: dict[str, Any]) -> Any:
        """JSON of one of the server's own resources after *change*."""
        return self.send("PATCH", path, change)

    def post(self, path: str) -> Any:
        """JSON of what the server answers to an order without a body."""
        return self.send("POST", path)

    def send(self, method: str, path: str, body: Any = None, *, timeout_s: float = 30) -> Any:
        """JSON that one of the server's own resources answers. Raises BadSetting with the server's own words."""
        import ssl

        request = urllib.request.Request(  # noqa: S310  (the URL is our own server's)
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.credentials.bearer_key}", "Content-Type": "application/json"},
        )
        is_tls = self.url.startswith("https")
        context = ssl.create_default_context(cafile=self.settings.authority) if is_tls else None
        try:
            with urllib.request.urlopen(request, timeout=timeout_s, context=context) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as exc:
            with exc:
                raise BadSetting(_said(exc.read()) or f"the server answered HTTP {exc.code}") from exc
        except urllib.error.URLError as exc:
            raise BadSetting(f"the server at {self.url} does not answer: {exc.reason}") from exc


def _said(body: bytes) -> str:
    try:
        found = json.loads(body)
        return str(found.get("message") or found.get("Message") or "")
    except (ValueError, AttributeError):
        return ""


def connect(home: Path | None) -> Client:
    """The running server of *home*. Raises BadSetting when there is none."""
    settings = load(home=home)
    try:
        address = json.loads((settings.run / "server.json").read_text())
    except (OSError, ValueError) as exc:
        raise BadSetting(f"no server is running for {settings.home}; start one with: outcrop serve") from exc
    return Client(settings, address["url"], read(settings.home))


def show(rows: list[dict[str, Any]], columns: dict[str, str], *, as_json: bool) -> None:
    """*rows* as JSON, or as a table with *columns* (key -> heading)."""
    if as_json:
        echo_json(rows)
        return
    table = Table(*columns.values(), box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def echo_json(value: Any) -> None:
    typer.echo(json.dumps(value, default=str, indent=2))
