"""A server from its parts: made, started and closed in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator

import structlog
import uvloop

from outcrop.access.tls import ServerTls
from outcrop.api.listener.door import Limits
from outcrop.api.listener.listening import listening
from outcrop.api.migration.shadows import Shadows
from outcrop.api.migration.sides import Sides
from outcrop.api.migration.splitter import Splitter
from outcrop.app.access import make_access
from outcrop.app.engines import engines_of
from outcrop.app.gateway import Parts, make_gateway
from outcrop.app.observers import make_observers
from outcrop.app.sagemaker import make_sagemaker
from outcrop.app.serving import make_importer, make_serving
from outcrop.app.tasks import runs_until_closed
from outcrop.awswire.service import Router, Service
from outcrop.engines.hardware import detect
from outcrop.engines.installed import installed
from outcrop.engines.on_gpus import sweep
from outcrop.importing.weights import WeightStore, write_atomically
from outcrop.launchers import machine
from outcrop.registry.migration_records import MigrationRecords
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.migration.effects import Effects
from outcrop.serving.migration.runner import Migrations
from outcrop.settings import Settings
from outcrop.telemetry import logs

log = structlog.get_logger(__name__)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Run a server on *listener* until SIGTERM or SIGINT; the exit status. The caller has claimed the home."""
    logs.configure(settings.log_level, as_json=settings.log_json)
    # What a crash would dump holds keys and prompts; children inherit it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    machine.share_heaps()
    return uvloop.run(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket.socket) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    hung_up = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    async with running(settings, listener, hung_up) as url:
        log.info("outcrop is serving", url=url, home=str(settings.home))
        await stop.wait()
        log.info("draining", limit_s=settings.drain_s)
    return 0


@contextlib.asynccontextmanager
async def running(
    settings: Settings, listener: socket.socket, hung_up: asyncio.Event | None = None
) -> AsyncIterator[str]:
    """A whole server inside this event loop; yields its URL once it answers. Leaving drains and closes it.

    *hung_up*: set to have the certificate loaded again.
    """
    for folder in (settings.buckets, settings.run, settings.logs):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as undo:
        registry = await asyncio.to_thread(Registry.open, settings.database)
        undo.callback(registry.close)
        await asyncio.to_thread(registry.sweep)
        access = await make_access(settings, registry)
        store = await asyncio.to_thread(WeightStore, settings.store)
        hardware = await asyncio.to_thread(
            detect, settings.cpu_cores or machine.cores(), machine.memory_bytes(), settings.gpus
        )
        found = await asyncio.to_thread(installed, settings, hardware)
        engines = engines_of(settings, hardware, found)
        catalogue = Catalogue(settings, machine.memory_bytes(), {engine.name: engine.fitted for engine in engines})
        catalogue.load(await asyncio.to_thread(registry.all_models))
        await asyncio.to_thread(sweep, settings.engine_work, await asyncio.to_thread(registry.model_ids))
        router = Router([Service("bedrock"), Service("bedrock-runtime"), Service("bedrock-agent-runtime")])
        observers = await make_observers(settings, registry, catalogue, router)
        serving = make_serving(settings, registry, catalogue, observers, engines, hardware, access.quotas)
        fleet = serving.fleet
        await serving.remember(catalogue)
        importer = make_importer(
            settings,
            registry,
            catalogue,
            serving,
            found,
            store=store,
            directory=access.directory,
            authorizer=access.authorizer,
        )
        sagemaker = make_sagemaker(settings, registry, access.directory, observers)
        effects = Effects(catalogue=catalogue, fleet=fleet, aliases=serving.aliases, endpoints=sagemaker.endpoints)
        migrations = Migrations(
            records=MigrationRecords(registry),
            folder=settings.home / "migrations",
            warm=effects.warm,
            take_over=effects.move_alias,
        )
        await migrations.load()
        observers.metrics.watch(migrations.readings)
        observers.metrics.names_too(migrations.labels)
        sides = Sides(timeout_s=settings.request_timeout_s, begin=observers.recorder.begin)
        splitter = Splitter(migrations, sides, observers.recorder, Shadows)
        sagemaker.runtime.processed = splitter.receipts.processed
        is_ready = False
        parts = Parts(
            settings=settings,
            registry=registry,
            store=store,
            router=router,
            access=access,
            catalogue=catalogue,
            observers=observers,
            serving=serving,
            importer=importer,
            sagemaker=sagemaker,
            migrations=migrations,
            sides=sides,
            splitter=splitter,
        )
        front = make_gateway(parts, lambda: is_ready)
        observers.start(undo)
        for engine in engines:
            undo.push_async_callback(engine.aclose)
        await fleet.start()
        undo.push_async_callback(fleet.close, settings.drain_s)
        undo.push_async_callback(importer.close)
        await importer.resume()
        tls = _tls(settings)
        if tls is not None:
            runs_until_closed(undo, tls.watch(hung_up or asyncio.Event()), "tls")
        context = tls.context if tls is not None else None
        port = await undo.enter_async_context(listening(front, listener, tls=context, limits=_limits(settings)))
        await sagemaker.start(port.url, undo, settings.drain_s)
        undo.push_async_callback(sides.aclose)
        undo.push_async_callback(migrations.close)
        undo.push_async_callback(splitter.shadows.close)
        runs_until_closed(undo, migrations.run(), "migrations")
        address = settings.run / "server.json"
        write_atomically(address, json.dumps({"url": port.url, "pid": os.getpid()}).encode())
        undo.callback(address.unlink, missing_ok=True)
        _settle_memory()
        is_ready = True
        yield port.url
        is_ready = False
        port.drain()
        # New requests are refused while running ones end; the listener closes after them.
        await fleet.close(settings.drain_s)


def _tls(settings: Settings) -> ServerTls | None:
    """What TLS is done with, if any. Raises BadSetting for a certificate that cannot be used."""
    if not settings.has_tls:
        return None
    names = [settings.host, "localhost", "127.0.0.1", *settings.tls_names]
    return ServerTls(settings.home / "tls", names, certificate=settings.tls_certificate, key=settings.tls_key)


def _limits(settings: Settings) -> Limits:
    return Limits(
        head_bytes=settings.header_bytes,
        headers=settings.headers,
        head_s=settings.header_timeout_s,
        idle_s=settings.idle_timeout_s,
        stall_s=settings.client_stall_s,
    )


def _settle_memory() -> None:
    """Take what stays for ever (modules, service models) out of the garbage collector's rounds.

    A full round over it held every request up for 40 to 80 ms, now and then.
    """
    gc.collect()
    gc.freeze()
