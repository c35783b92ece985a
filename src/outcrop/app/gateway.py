"""The one front door and every API behind it, from the parts of a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from outcrop.access.authenticate import Authenticator
from outcrop.access.web_identity import WebIdentities
from outcrop.api.access_door import AccessDoor
from outcrop.api.admin import Admin
from outcrop.api.bedrock import Bedrock
from outcrop.api.bedrock_agent_runtime import BedrockAgentRuntime
from outcrop.api.bedrock_runtime import BedrockRuntime
from outcrop.api.browsers import Browsers
from outcrop.api.client_address import ClientAddress
from outcrop.api.generation import Generation
from outcrop.api.iam import IAM
from outcrop.api.identity_door import IdentityDoor
from outcrop.api.migration.orders import MigrationOrders
from outcrop.api.migration.sides import Sides
from outcrop.api.migration.splitter import Splitter
from outcrop.api.observability import Observability
from outcrop.api.openai import OpenAI
from outcrop.api.operations import Operations
from outcrop.api.permissions import Permissions
from outcrop.api.quota_use import QuotaUse
from outcrop.api.responses import Responses
from outcrop.api.routes import Gateway
from outcrop.api.sagemaker_door import SageMakerDoor
from outcrop.api.sts import STS
from outcrop.api.usage import UsageDoor
from outcrop.app.access import Access
from outcrop.app.observers import Observers
from outcrop.app.sagemaker import SageMakerParts
from outcrop.app.serving import Serving
from outcrop.awswire.service import Router
from outcrop.importing.jobs import Importer
from outcrop.importing.weights import WeightStore
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.migration.runner import Migrations
from outcrop.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """All that a server's APIs speak for."""

    settings: Settings
    registry: Registry
    store: WeightStore
    router: Router
    access: Access
    catalogue: Catalogue
    observers: Observers
    serving: Serving
    importer: Importer
    sagemaker: SageMakerParts
    migrations: Migrations
    sides: Sides
    splitter: Splitter


def make_gateway(parts: Parts, is_ready: Callable[[], bool]) -> Gateway:
    settings, access, observers = parts.settings, parts.access, parts.observers
    catalogue, fleet, registry = parts.catalogue, parts.serving.fleet, parts.registry
    generation = Generation(fleet, settings, observers.recorder)
    permissions = Permissions(
        access.authorizer,
        catalogue=catalogue,
        registry=registry,
        region=settings.region,
        account=access.credentials.account,
    )
    return Gateway(
        authenticator=Authenticator(
            parts.sagemaker.keys,
            region=settings.region,
            now=lambda: datetime.now(UTC),
            services=("bedrock", "sagemaker", "iam", "sts"),
            sessions=access.sessions,
        ),
        router=parts.router,
        bedrock=Bedrock(
            region=settings.region,
            registry=registry,
            importer=parts.importer,
            catalogue=catalogue,
            fleet=fleet,
            store=parts.store,
            quotas=access.quotas,
            invocations=observers.invocations,
        ),
        runtime=BedrockRuntime(catalogue, generation),
        agents=BedrockAgentRuntime(catalogue, generation),
        openai=OpenAI(catalogue, generation),
        responses=Responses(catalogue, generation),
        admin=Admin(
            region=settings.region, registry=registry, importer=parts.importer, catalogue=catalogue, fleet=fleet
        ),
        operations=_operations(parts),
        sagemaker=SageMakerDoor(parts.sagemaker.control, parts.sagemaker.runtime, permissions),
        access=AccessDoor(
            access.directory,
            access.authorizer,
            access.quotas,
            QuotaUse(parts.registry, catalogue, fleet),
            region=settings.region,
        ),
        identity=IdentityDoor(
            IAM(access.directory, access.authorizer),
            STS(access.directory, access.authorizer, access.sessions, WebIdentities(settings.oidc_providers)),
        ),
        observability=Observability(recorder=observers.recorder, catalogue=catalogue, fleet=fleet),
        recorder=observers.recorder,
        invocations=observers.invocations,
        audit=observers.trail,
        addresses=ClientAddress(settings.trusted_proxies),
        browsers=Browsers(settings.browser_origins),
        permissions=permissions,
        quotas=access.quotas,
        max_body_bytes=settings.max_body_bytes,
        is_ready=is_ready,
        splitter=parts.splitter,
        migrations=MigrationOrders(
            migrations=parts.migrations,
            catalogue=catalogue,
            endpoints=parts.sagemaker.endpoints,
            keyring=parts.sides.keyring,
        ),
    )


def _operations(parts: Parts) -> Operations:
    endpoints = parts.sagemaker.endpoints
    return Operations(
        catalogue=parts.catalogue,
        fleet=parts.serving.fleet,
        aliases=parts.serving.aliases,
        records=parts.serving.records,
        settings=parts.settings,
        usage=UsageDoor(
            meter=parts.observers.meter,
            ledger=parts.observers.usage,
            registry=parts.registry,
            endpoints=lambda account: [endpoint.name for endpoint in endpoints.all(account)],
        ),
        endpoints=parts.sagemaker.operations,
    )
