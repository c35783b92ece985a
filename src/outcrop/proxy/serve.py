"""Running one proxy: workers up, port open, keys renewed, and at SIGTERM all of it down again without losing a call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import structlog
import uvloop

from outcrop.api.claims import opened
from outcrop.awswire.sigv4 import Keys
from outcrop.errors import BadSetting
from outcrop.proxy import link, origin
from outcrop.proxy.front import Front
from outcrop.proxy.http1_server import Server, listening
from outcrop.proxy.metrics import Metrics
from outcrop.proxy.parent import end_with_parent
from outcrop.proxy.pool import Pool
from outcrop.proxy.settings import ProxySettings
from outcrop.proxy.worker import Config
from outcrop.telemetry import logs

log = structlog.get_logger(__name__)

_LOOK_S = 0.5  # between looks at the script's files


def serve(settings: ProxySettings, *, reload: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. *reload*: load the script anew when a file changes."""
    logs.configure(settings.log_level, as_json=settings.log_json)
    if settings.ends_with_parent:
        end_with_parent(signal.SIGTERM)
    return uvloop.run(_serve(settings, reload=reload))


async def _serve(settings: ProxySettings, *, reload: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with running(settings) as (url, pool):
        log.info("proxy is listening", url=url, target=settings.target, workers=settings.worker_count)
        stopping = asyncio.ensure_future(stop.wait())
        settled = asyncio.ensure_future(pool.settled.wait())
        await asyncio.wait({stopping, settled}, return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        if reload:
            changes = asyncio.create_task(_reload_at_changes(settings.model_dir, pool))
            await stopping
            changes.cancel()
            return 0
        if pool.failure and not pool.is_ready:
            # A platform's health check would only time out; this says why.
            log.error("the script cannot be used", reason=pool.failure)
            stopping.cancel()
            raise BadSetting(pool.failure)
        await stopping
        log.info("draining", limit_s=settings.drain_s)
    return 0


async def _reload_at_changes(folder: Path, pool: Pool) -> None:
    """Have workers load the script anew when a Python file below *folder* changes, appears or goes."""
    seen = await asyncio.to_thread(_times, folder)
    while True:
        await asyncio.sleep(_LOOK_S)
        found = await asyncio.to_thread(_times, folder)
        if found != seen:
            changed = sorted(path for path in found.keys() | seen.keys() if found.get(path) != seen.get(path))
            seen = found
            log.info("the script changed; loading it anew", files=changed)
            pool.reload()


def _times(folder: Path) -> dict[str, int]:
    found = {}
    for path in folder.rglob("*.py"):
        with contextlib.suppress(OSError):
            found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return found


@contextlib.asynccontextmanager
async def running(settings: ProxySettings, found: origin.Origin | None = None) -> AsyncIterator[tuple[str, Pool]]:
    """A proxy inside this event loop; yields its URL once it accepts, workers may still load. Leaving drains it.

    *found*: where the target is, when it is not to be looked for.
    """
    if found is None:
        found = await asyncio.to_thread(origin.find, settings)
    keys = [await asyncio.to_thread(found.keys)]
    metrics = Metrics()

    def config() -> dict[str, object]:
        now = keys[0]
        return _config(settings, found, now)

    pool = Pool(settings, config, lambda why: metrics.replaced.labels(why).inc())
    front = Front(settings, pool, metrics)

    def changed(new: Keys) -> None:
        keys[0] = new
        pool.broadcast(link.Sign(new.access_key_id, new.secret_access_key, new.session_token, new.bearer))

    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(pool.close)
        sock = undo.enter_context(contextlib.closing(opened(settings.host, settings.port, "OUTCROP_PROXY_PORT")))
        pool.start()
        watch = asyncio.create_task(found.watch(keys[0], changed))
        undo.callback(watch.cancel)
        host, port = sock.getsockname()[:2]
        # What the start made (botocore's models above all) stays: the collector need not walk it any more.
        gc.collect()
        gc.freeze()
        callers = Server(front.heard, most_body_bytes=settings.max_payload_bytes, refused=front.refused)
        async with listening(callers, sock):
            try:
                yield f"http://{host}:{port}", pool
            finally:
                front.is_draining = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(settings.drain_s):
                        while front.running:
                            await asyncio.sleep(0.02)


def _config(settings: ProxySettings, found: origin.Origin, keys: Keys) -> dict[str, object]:
    config = Config(
        model_dir=str(settings.model_dir.resolve()),
        program=settings.program,
        dialect=settings.dialect,
        forward=settings.forward,
        default_accept=settings.default_accept,
        is_hugging_face=any(name in os.environ for name in ("HF_TASK", "HF_MODEL_ID")),
        threads=settings.threads,
        tracebacks=settings.tracebacks,
        url=found.endpoint.url,
        region=found.endpoint.region,
        model=found.endpoint.model,
        stream_timeout_s=settings.stream_timeout_s,
        ca_bundle=found.ca_bundle,
        keys=[keys.access_key_id, keys.secret_access_key, keys.session_token, keys.bearer],
    )
    plain: dict[str, object] = msgspec.to_builtins(config)
    return plain
