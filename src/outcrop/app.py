"""The composition root: alone wires rooms together, opens the port and closes everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
import uvloop

from outcrop.access import sealing
from outcrop.access.audit_log import AuditLog, load_key
from outcrop.access.authenticate import Authenticator
from outcrop.access.authorizer import Authorizer, ResourcePolicies
from outcrop.access.bootstrap import ensure
from outcrop.access.credentials_file import load_or_create
from outcrop.access.directory import Directory
from outcrop.access.endpoint_keys import EndpointKeys
from outcrop.access.identities import AccessKey
from outcrop.access.import_roles import ImportRoles
from outcrop.access.quotas import Quotas
from outcrop.access.sessions import Sessions
from outcrop.access.tls import ServerTls
from outcrop.access.web_identity import WebIdentities
from outcrop.access.weight_keys import WeightKeys
from outcrop.api.access_door import AccessDoor
from outcrop.api.admin import Admin
from outcrop.api.audit_trail import AuditTrail
from outcrop.api.bedrock import Bedrock
from outcrop.api.bedrock_agent_runtime import BedrockAgentRuntime
from outcrop.api.bedrock_runtime import BedrockRuntime
from outcrop.api.client_address import ClientAddress
from outcrop.api.endpoint_operations import EndpointOperations
from outcrop.api.generation import Generation
from outcrop.api.iam import IAM
from outcrop.api.identity_door import IdentityDoor
from outcrop.api.listener.door import Limits
from outcrop.api.listener.listening import listening
from outcrop.api.migration.orders import MigrationOrders
from outcrop.api.migration.shadows import Shadows
from outcrop.api.migration.sides import Sides
from outcrop.api.migration.splitter import Splitter
from outcrop.api.observability import Observability
from outcrop.api.openai import OpenAI
from outcrop.api.operations import Operations
from outcrop.api.permissions import Permissions
from outcrop.api.responses import Responses
from outcrop.api.routes import Gateway
from outcrop.api.sagemaker import SageMaker, remember
from outcrop.api.sagemaker_door import SageMakerDoor
from outcrop.api.sagemaker_runtime import SageMakerRuntime
from outcrop.api.sts import STS
from outcrop.api.usage import UsageDoor
from outcrop.awswire.service import Router, Service
from outcrop.engines.base import Engine
from outcrop.engines.custom import Custom
from outcrop.engines.hardware import Hardware, detect
from outcrop.engines.installed import SGLANG, TENSORRT_LLM, VLLM, Installed, installed
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.engines.on_gpus import Options, sweep
from outcrop.engines.sglang import SGLang
from outcrop.engines.simulated import Simulated
from outcrop.engines.tensorrt_llm import TensorRTLLM
from outcrop.engines.vllm import Vllm
from outcrop.errors import BadSetting
from outcrop.importing.jobs import Importer
from outcrop.importing.sources.writing import Buckets
from outcrop.importing.weights import WeightStore, write_atomically
from outcrop.launchers import machine
from outcrop.launchers.local import LocalLauncher
from outcrop.metering.ledger import Ledger
from outcrop.metering.meter import About, Meter
from outcrop.metering.usage import is_proxies, proxies_id
from outcrop.registry.identity_records import IdentityRecords
from outcrop.registry.migration_records import MigrationRecords
from outcrop.registry.records import ImportedModel
from outcrop.registry.sagemaker_records import SageMakerRecords
from outcrop.registry.serving_records import ServingRecords
from outcrop.registry.store import Registry
from outcrop.registry.usage_records import UsageRecords
from outcrop.serving.aliases import Aliases
from outcrop.serving.catalogue import Catalogue, proven_start
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.fleet import Fleet
from outcrop.serving.migration.effects import Effects
from outcrop.serving.migration.runner import Migrations
from outcrop.serving.proxies import write_privately
from outcrop.serving.rollout import Endpoint
from outcrop.serving.schedule import Scaling
from outcrop.serving.starts import Tier
from outcrop.serving.unsealed import Unsealer
from outcrop.serving.watch import Watch
from outcrop.settings import Settings
from outcrop.telemetry import logs
from outcrop.telemetry.invocation_log import InvocationLog
from outcrop.telemetry.metric_table import AUDIT_LOST, AUDIT_RECORDS, SPANS_DROPPED, TASKS
from outcrop.telemetry.metrics import Metrics
from outcrop.telemetry.recorder import Recorder
from outcrop.telemetry.request_log import RequestLog
from outcrop.telemetry.requests import RequestRecord

if TYPE_CHECKING:
    from outcrop.telemetry.traces import Traces  # imports OpenTelemetry, which is an extra

log = structlog.get_logger(__name__)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Run a server on *listener* until SIGTERM or SIGINT; the exit status. The caller has claimed the home."""
    logs.configure(settings.log_level, as_json=settings.log_json)
    # What a crash would dump holds keys and prompts; children inherit it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
        credentials = load_or_create(settings.home, settings.account, settings.region)
        registry = await asyncio.to_thread(Registry.open, settings.database)
        undo.callback(registry.close)
        await asyncio.to_thread(registry.sweep)
        sealer = await asyncio.to_thread(sealing.load_or_create, settings.secret_key)
        directory = Directory(IdentityRecords(registry), sealer, account=credentials.account)
        await ensure(directory, credentials)
        quotas = Quotas(IdentityRecords(registry))
        await asyncio.to_thread(quotas.load)
        store = await asyncio.to_thread(WeightStore, settings.store)
        hardware = await asyncio.to_thread(
            detect, settings.cpu_cores or machine.cores(), machine.memory_bytes(), settings.gpus
        )
        found = await asyncio.to_thread(installed, settings, hardware)
        engines = engines_of(settings, hardware, found)
        fitted = {engine.name: engine.fitted for engine in engines}
        catalogue = Catalogue(settings, machine.memory_bytes(), fitted)
        metrics = Metrics(catalogue.name_of, lambda: (name for _, name in catalogue.by_id()))
        requests = RequestLog(
            settings.logs / "requests.jsonl", most_bytes=settings.request_log_bytes, kept=settings.request_records
        )
        traces = _traces(settings)
        usage = Ledger(UsageRecords(registry))
        meter = Meter(_about(catalogue, settings), stored=lambda: _stored(catalogue))
        recorder = Recorder(
            metrics,
            requests,
            slow_s=settings.slow_request_s,
            meter=lambda record: _meter_request(meter, record),
            export=traces.export if traces is not None else None,
        )
        if traces is not None:
            metrics.watch(lambda: [(SPANS_DROPPED, (), traces.dropped)])
        invocations = InvocationLog(Buckets(settings), region=settings.region, most_bytes=settings.invocation_log_bytes)
        metrics.watch(invocations.readings)
        for account, config in (await asyncio.to_thread(registry.attachments.all_logging)).items():
            invocations.configure(account, config)
        catalogue.load(await asyncio.to_thread(registry.all_models))
        await asyncio.to_thread(sweep, settings.engine_work, await asyncio.to_thread(registry.model_ids))
        records = ServingRecords(registry)
        keys = WeightKeys(settings.weight_keys, settings.region)
        fleet = Fleet(
            engines,
            LocalLauncher(settings.run / "copies"),
            settings=settings,
            memory_bytes=settings.memory_bytes or int(machine.memory_bytes() * machine.MEMORY_SHARE),
            cores=settings.cpu_cores or machine.cores(),
            on_start=lambda model_id, tier, seconds: _in_background(records.add_start, model_id, tier, seconds),
            model_count=catalogue.count,
            gpus=len(hardware.gpus),
            events=metrics,
            meter=meter,
            unsealer=Unsealer(keys),
        )
        metrics.watch(lambda: fleet.readings(catalogue.by_id()))
        metrics.watch(lambda: [(TASKS, (), len(asyncio.all_tasks()))])
        aliases = Aliases(catalogue=catalogue, fleet=fleet, records=records)
        await _remembered(records, catalogue, fleet, aliases)

        def on_model(model: ImportedModel) -> None:
            catalogue.add(model)
            fleet.learned(model.model_id, proven_start(model))

        async def on_withdrawn(model: ImportedModel) -> None:
            catalogue.remove(model)
            await fleet.remove(model.model_id)

        authorizer = Authorizer(directory, ResourcePolicies(registry.attachments), region=settings.region)
        sessions = Sessions(sealer)
        importer = Importer(
            settings=settings,
            registry=registry,
            store=store,
            fleet=fleet,
            engines=found,
            roles=ImportRoles(directory, authorizer, region=settings.region),
            spec=catalogue.spec,
            on_model=on_model,
            on_withdrawn=on_withdrawn,
            keys=keys,
        )
        fleet.brings_back_with(importer.bucket.bring_back)
        generation = Generation(fleet, settings, recorder)
        sagemaker_records = SageMakerRecords(registry)
        endpoint_keys = EndpointKeys(directory)

        async def proxy_environment(account: str, name: str) -> dict[str, str]:
            return _proxy_environment(settings, name, await endpoint_keys.of(account, name))

        async def on_endpoint(endpoint: Endpoint) -> None:
            if endpoint.status == "Deleted":
                endpoint_keys.forget(endpoint.account, endpoint.name)
            await asyncio.to_thread(remember, sagemaker_records, endpoint)

        endpoints = Endpoints(
            folder=settings.run / "proxies",
            logs=settings.logs / "proxies",
            buckets=settings.buckets,
            region=settings.region,
            settings_of=proxy_environment,
            changed=on_endpoint,
            note=lambda account, endpoint, copy_id, state: meter.copy(copy_id, proxies_id(endpoint), state),
            watch=Watch(),
        )
        sagemaker = SageMaker(region=settings.region, records=sagemaker_records, endpoints=endpoints)
        sagemaker_runtime = SageMakerRuntime(endpoints, sagemaker_records, settings.home / "async")
        endpoint_operations = EndpointOperations(endpoints, sagemaker_records)
        metrics.names_too(lambda: (f"endpoint/{endpoint.name}" for endpoint in endpoints.all()))
        permissions = Permissions(
            authorizer,
            catalogue=catalogue,
            registry=registry,
            region=settings.region,
            account=credentials.account,
        )
        effects = Effects(catalogue=catalogue, fleet=fleet, aliases=aliases)
        migrations = Migrations(
            records=MigrationRecords(registry),
            folder=settings.home / "migrations",
            warm=effects.warm,
            take_over=effects.move_alias,
        )
        await migrations.load()
        sides = Sides(timeout_s=settings.request_timeout_s)
        splitter = Splitter(migrations, sides, recorder, Shadows)
        is_ready = False
        router = Router([Service("bedrock"), Service("bedrock-runtime"), Service("bedrock-agent-runtime")])
        audit = await asyncio.to_thread(_audit_log, settings)
        if audit is not None:
            metrics.watch(lambda: [(AUDIT_RECORDS, (), audit.written), (AUDIT_LOST, (), audit.lost)])
        trail = AuditTrail(
            audit,
            router=router,
            region=settings.region,
            account=settings.account,
            strangers_per_s=settings.audit_strangers_per_s,
        )
        gateway = Gateway(
            authenticator=Authenticator(
                endpoint_keys,
                region=settings.region,
                now=lambda: datetime.now(UTC),
                services=("bedrock", "sagemaker", "iam", "sts"),
                sessions=sessions,
            ),
            router=router,
            bedrock=Bedrock(
                region=settings.region,
                registry=registry,
                importer=importer,
                catalogue=catalogue,
                fleet=fleet,
                store=store,
                quotas=quotas,
                invocations=invocations,
            ),
            runtime=BedrockRuntime(catalogue, generation),
            agents=BedrockAgentRuntime(catalogue, generation),
            openai=OpenAI(catalogue, generation),
            responses=Responses(catalogue, generation),
            admin=Admin(region=settings.region, registry=registry, importer=importer, catalogue=catalogue, fleet=fleet),
            operations=Operations(
                catalogue=catalogue,
                fleet=fleet,
                aliases=aliases,
                records=records,
                settings=settings,
                usage=UsageDoor(
                    meter=meter,
                    ledger=usage,
                    registry=registry,
                    endpoints=lambda account: [endpoint.name for endpoint in endpoints.all(account)],
                ),
                endpoints=endpoint_operations,
            ),
            sagemaker=SageMakerDoor(sagemaker, sagemaker_runtime, permissions),
            access=AccessDoor(directory, authorizer, quotas, region=settings.region),
            identity=IdentityDoor(
                IAM(directory, authorizer),
                STS(directory, authorizer, sessions, WebIdentities(settings.oidc_providers)),
            ),
            observability=Observability(recorder=recorder, catalogue=catalogue, fleet=fleet),
            recorder=recorder,
            invocations=invocations,
            audit=trail,
            addresses=ClientAddress(settings.trusted_proxies),
            permissions=permissions,
            quotas=quotas,
            max_body_bytes=settings.max_body_bytes,
            is_ready=lambda: is_ready,
            splitter=splitter,
            migrations=MigrationOrders(
                migrations=migrations, catalogue=catalogue, endpoints=endpoints, keyring=sides.keyring
            ),
        )
        if audit is not None:
            undo.push_async_callback(asyncio.to_thread, audit.close)
            undo.callback(trail.tell_of_strangers, is_last=True)
            undo.push_async_callback(_ended, asyncio.create_task(audit.run(), name="audit"))
        if traces is not None:
            undo.push_async_callback(asyncio.to_thread, traces.close)
        undo.push_async_callback(_ended, asyncio.create_task(requests.run(), name="request-log"))
        undo.push_async_callback(invocations.close)
        undo.push_async_callback(_ended, asyncio.create_task(invocations.run(), name="invocation-log"))
        # Runs until after the fleet is closed, and writes what that counted.
        undo.push_async_callback(meter.flush, usage)
        metering = asyncio.create_task(meter.run(usage), name="meter")
        undo.push_async_callback(_ended, metering)
        for engine in engines:
            undo.push_async_callback(engine.aclose)
        await fleet.start()
        undo.push_async_callback(fleet.close, settings.drain_s)
        undo.push_async_callback(importer.close)
        await importer.resume()
        tls = _tls(settings)
        if tls is not None:
            undo.push_async_callback(_ended, asyncio.create_task(tls.watch(hung_up or asyncio.Event()), name="tls"))
        context = tls.context if tls is not None else None
        opened = listening(gateway, listener, tls=context, limits=_limits(settings))
        port = await undo.enter_async_context(opened)
        url = port.url
        endpoints.start(url)
        undo.push_async_callback(endpoints.close, settings.drain_s)
        undo.push_async_callback(sagemaker_runtime.close)
        await endpoint_operations.resume()
        await sagemaker.resume()
        await sagemaker_runtime.resume()
        undo.push_async_callback(sides.aclose)
        undo.push_async_callback(migrations.close)
        undo.push_async_callback(splitter.shadows.close)
        undo.push_async_callback(_ended, asyncio.create_task(migrations.run(), name="migrations"))
        address = settings.run / "server.json"
        write_atomically(address, json.dumps({"url": url, "pid": os.getpid()}).encode())
        undo.callback(address.unlink, missing_ok=True)
        _settle_memory()
        is_ready = True
        yield url
        is_ready = False
        port.drain()
        # New requests are refused while running ones end; the listener closes after them.
        await fleet.close(settings.drain_s)


def engines_of(settings: Settings, hardware: Hardware, found: Sequence[Installed]) -> list[Engine]:
    """The engines of *found* that can be used. Raises BadSetting for a model on one that cannot."""
    timeout_s = settings.request_timeout_s
    usable = {engine.engine: engine for engine in found if engine.is_usable}
    engines: list[Engine] = [
        LlamaCpp(request_timeout_s=timeout_s),
        Simulated(settings.simulated, request_timeout_s=timeout_s),
    ]
    if settings.custom_engine:
        engines.append(Custom(settings.custom_engine, request_timeout_s=timeout_s))
    on_gpus: list[tuple[Callable[..., Engine], str, list[str]]] = [
        (Vllm, VLLM, settings.vllm_args),
        (SGLang, SGLANG, settings.sglang_args),
        (TensorRTLLM, TENSORRT_LLM, settings.tensorrt_llm_args),
    ]
    for engine, name, arguments in on_gpus:
        if name in usable:
            options = Options(
                command=usable[name].command or name,
                work=settings.engine_work,
                memory_share=settings.gpu_memory_share,
                load_format=settings.load_format,
                sleep=settings.vllm_sleep,
                extra=tuple(arguments),
            )
            engines.append(engine(options, hardware, request_timeout_s=timeout_s))
    for model, name in settings.engine_by_model.items():
        if name not in usable:
            raise BadSetting(
                f"engine_by_model puts {model!r} on {name!r}; the engines here are {', '.join(usable)} "
                "(OUTCROP_ENGINE_BY_MODEL; outcrop engines says why not others)"
            )
    return engines


def _traces(settings: Settings) -> Traces | None:
    """Who exports traces, where they are asked for. Raises BadSetting when OpenTelemetry is not installed."""
    if not settings.otlp_endpoint:
        return None
    from outcrop.telemetry.traces import Traces

    return Traces(settings.otlp_endpoint, sample=settings.otlp_sample)


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


def _audit_log(settings: Settings) -> AuditLog | None:
    """The audit log, its chain's end found and mended; None where it is switched off. Raises BadSetting."""
    if not settings.audit:
        return None
    key = load_key(settings.audit_key, create=settings.audit_key_file is None)
    return AuditLog(
        settings.audit_folder,
        key,
        file_bytes=settings.audit_file_bytes,
        keep_days=settings.audit_keep_days,
        most_bytes=settings.audit_bytes,
        account=settings.account,
    )


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _proxy_environment(settings: Settings, name: str, key: AccessKey) -> dict[str, str]:
    """What the proxies of endpoint *name* reach this server with; the keys are in a private file, not in here."""
    keys = settings.run / "proxy-credentials" / f"{key.principal.account}-{name}"
    lines = ["[default]", f"aws_access_key_id={key.access_key_id}", f"aws_secret_access_key={key.secret_access_key}"]
    write_privately(keys, "\n".join(lines) + "\n")
    found = {
        "AWS_SHARED_CREDENTIALS_FILE": str(keys),
        "AWS_EC2_METADATA_DISABLED": "true",
        "OUTCROP_PROXY_REGION": settings.region,
        "OUTCROP_PROXY_LOG_LEVEL": "warning",
    }
    if settings.has_tls and settings.authority is not None:
        found["AWS_CA_BUNDLE"] = str(settings.authority)
    return found


def _about(catalogue: Catalogue, settings: Settings) -> Callable[[str], About]:
    """What the meter asks of a model; one that is only being imported has no units yet."""

    def about(model_id: str) -> About:
        served = catalogue.of_id(model_id)
        return _metered(served.record) if served is not None else About(settings.account, 0)

    return about


def _meter_request(meter: Meter, record: RequestRecord) -> None:
    if record.model_id:
        meter.request(
            model_id=record.model_id,
            principal=record.principal,
            outcome=record.outcome,
            # Counting tokens is no invocation, and opens no billed window.
            copy_id=None if record.operation == "CountTokens" or is_proxies(record.model_id) else record.copy_id,
            tokens_in=record.input_tokens or 0,
            tokens_out=record.output_tokens or 0,
            held_s=record.held_s + record.queued_s,
            run_s=record.engine_s,
        )


def _stored(catalogue: Catalogue) -> dict[str, About]:
    return {served.record.model_id: _metered(served.record) for served in catalogue.everything()}


def _metered(record: ImportedModel) -> About:
    return About(record.account, record.model_units, record.facts.get("artifact_bytes", record.facts["weight_bytes"]))


async def _remembered(records: ServingRecords, catalogue: Catalogue, fleet: Fleet, aliases: Aliases) -> None:
    """Give serving back what it knew: starts that were measured (the proof run's at least), scaling, aliases."""
    seen = await asyncio.to_thread(records.starts)
    scaling = await asyncio.to_thread(records.scaling)
    aliases.load(await asyncio.to_thread(records.aliases))
    for served in catalogue.everything():
        model_id = served.record.model_id
        fleet.learned(model_id, proven_start(served.record))
        fleet.learned(model_id, [(Tier(tier), seconds) for tier, seconds in seen.get(model_id, ())])
        if model_id in scaling:
            found = msgspec.json.decode(scaling[model_id], type=Scaling)
            fleet.configure(model_id, found)
            catalogue.limit_context(model_id, found.context_tokens)
            fleet.adopt(served.spec)


def _settle_memory() -> None:
    """Take what stays for ever (modules, service models) out of the garbage collector's rounds.

    A full round over it held every request up for 40 to 80 ms, now and then.
    """
    gc.collect()
    gc.freeze()


def _in_background(work: Callable[..., None], *args: Any) -> None:
    """Run *work* on a thread; what it remembers is of use, not of need."""

    def run() -> None:
        try:
            work(*args)
        except Exception:
            log.warning("something could not be remembered", exc_info=True)

    asyncio.get_running_loop().run_in_executor(None, run)
