"""The whole front door on a real socket over a runtime that does as it is told: transport without an engine.

Everything from the port to the parsed parameters is the product's own; only what answers inference is scripted, by the
model's name, and counts what it gave.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import uvloop
from botocore.config import Config

from outcrop.access.authenticate import Authenticator
from outcrop.access.authorizer import Authorizer, ResourcePolicies
from outcrop.access.bootstrap import EVERYTHING
from outcrop.access.directory import Directory
from outcrop.access.identities import IdentityKind, Principal
from outcrop.access.quotas import Quotas
from outcrop.access.sealing import Sealer
from outcrop.access.tls import ServerTls
from outcrop.api.audit_trail import AuditTrail
from outcrop.api.bedrock_runtime import EVENT_STREAM
from outcrop.api.browsers import Browsers
from outcrop.api.claims import opened
from outcrop.api.client_address import ClientAddress
from outcrop.api.http import Response, Stream
from outcrop.api.listener.listening import listening
from outcrop.api.permissions import Permissions
from outcrop.api.routes import Gateway
from outcrop.awswire.eventstream import encode_chunk
from outcrop.awswire.service import Router, Service
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.store import Registry
from outcrop.settings import Settings
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.metrics import Metrics
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.request_log import RequestLog

KEY, SECRET, BEARER = "AKIAABCDEFGHIJKLMNOP", "s" * 40, "bearer-key"
ACCOUNT, REGION = "000000000000", "us-east-1"
CHUNK = b"x" * 65536


class Runtime:
    """Answers by model name: ``echo`` gives the body back, ``flood`` streams without end, ``defect`` breaks off; others as *script* says."""

    def __init__(self) -> None:
        self.script: dict[str, Callable[[], Any]] = {}
        self.given_chunks = 0
        self.open_streams = 0
        self.seen_headers: list[dict[str, str]] = []
        self.handlers = {"InvokeModel": self.invoke, "InvokeModelWithResponseStream": self.stream}

    async def invoke(self, params: Mapping[str, Any], principal: Principal, measured: Any) -> Response:
        if made := self.script.get(params["modelId"]):
            raise made()
        return Response(200, [("content-type", "application/json")], params.get("body", b""))

    async def stream(self, params: Mapping[str, Any], principal: Principal, measured: Any) -> Stream:
        if made := self.script.get(params["modelId"]):
            raise made()
        if params["modelId"] == "defect":
            return Stream(200, [("content-type", EVENT_STREAM)], self._defect())
        return Stream(200, [("content-type", "application/octet-stream")], self._flood())

    async def _defect(self) -> AsyncIterator[bytes]:
        yield encode_chunk(b"{}")
        raise ZeroDivisionError

    async def _flood(self) -> AsyncIterator[bytes]:
        self.open_streams += 1
        try:
            while True:
                self.given_chunks += 1
                yield CHUNK
                await asyncio.sleep(0)
        finally:
            self.open_streams -= 1


class Refusing:
    """A sink that nothing should reach."""

    async def put(self, bucket: str, key: str, content: bytes) -> None:
        raise AssertionError(key)


class FrontDoor:
    """A gateway in a thread of its own; use as a context manager."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.settings = Settings(home=home, port=0, **settings)
        self.runtime = Runtime()
        self.url = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)

    def __enter__(self) -> FrontDoor:
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        registry = Registry.open(self.settings.home / "front.db")
        directory = Directory(IdentityRecords(registry), Sealer(b"k" * 32), account=ACCOUNT)
        me = await directory.create(ACCOUNT, IdentityKind.USER, "me", policies={"all": EVERYTHING})
        await directory.add_access_key(me, KEY, SECRET)
        await directory.add_bearer_key(me, lambda _: BEARER)
        catalogue: Any = SimpleNamespace(id_of=lambda account, identifier: None)
        made = {
            "authenticator": Authenticator(directory, region=REGION, now=lambda: datetime.now(UTC)),
            "quotas": Quotas(IdentityRecords(registry)),
            "permissions": Permissions(
                Authorizer(directory, ResourcePolicies(registry.attachments), region=REGION),
                catalogue=catalogue,
                registry=registry,
                region=REGION,
                account=ACCOUNT,
            ),
            "router": Router([Service("bedrock"), Service("bedrock-runtime")]),
            "bedrock": SimpleNamespace(handlers={}),
            "runtime": self.runtime,
            "agents": SimpleNamespace(handlers={}),
            "sagemaker": SimpleNamespace(is_meant=lambda request: False),
            "identity": SimpleNamespace(is_meant=lambda request: False),
            "recorder": Recorder(Metrics(), RequestLog(None, most_bytes=0, kept=10), slow_s=5),
            "invocations": InvocationLog(Refusing(), region="us-east-1", most_bytes=0),
            "audit": AuditTrail(None, router=Router([]), region="us-east-1", account=""),
            "addresses": ClientAddress([]),
            "browsers": Browsers(self.settings.browser_origins),
            "max_body_bytes": self.settings.max_body_bytes,
            "is_ready": lambda: True,
        }
        # Doors that nobody knocks at here are empty frames.
        wanted = inspect.signature(Gateway).parameters.values()
        needed = [parameter.name for parameter in wanted if parameter.default is inspect.Parameter.empty]
        others = {name: SimpleNamespace() for name in needed if name not in made}
        gateway = Gateway(**made, **others)  # type: ignore[arg-type]
        with closing(opened("127.0.0.1", 0)) as listener:
            tls = (
                ServerTls(self.settings.home / "tls", ["127.0.0.1", "localhost"]).context if self.settings.tls else None
            )
            async with listening(gateway, listener, tls=tls) as port:
                self.url = port.url
                self._up.set()
                await self._stop.wait()

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.rpartition("//")[2].partition(":")
        return host, int(port)

    def tasks(self) -> int:
        """Tasks of the server's event loop."""
        assert self._loop is not None
        counted: asyncio.Future[int] = asyncio.run_coroutine_threadsafe(self._count(), self._loop)  # type: ignore[assignment]
        return counted.result(10)  # type: ignore[call-arg]

    async def _count(self) -> int:
        return len(asyncio.all_tasks()) - 1

    def client(self, **config: Any) -> Any:
        return boto3.client(
            "bedrock-runtime",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            config=Config(**config),
        )
