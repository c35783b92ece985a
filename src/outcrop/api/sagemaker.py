"""SageMaker's control plane, as far as endpoints need it, in the shapes of ``sagemaker/2017-07-24`` (JSON 1.1).

Images are not run: a model is a bundle (``ModelDataUrl``), or nothing, in front of the imported model that its
``Environment`` names as OUTCROP_PROXY_TARGET. What this server has no counterpart for is refused by name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from outcrop.access.identities import Principal
from outcrop.api.pages import when
from outcrop.api.sagemaker_configs import Configs
from outcrop.api.sagemaker_models import Models
from outcrop.api.sagemaker_rows import Rows
from outcrop.errors import InvalidRequest
from outcrop.registry.sagemaker_records import ENDPOINT, Resource, SageMakerRecords
from outcrop.serving.deployment import deployment_of
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.rollout import Endpoint, Fleet, Plan, Retained
from outcrop.serving.variants import Variant

log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any], Principal], Awaitable[dict[str, Any]]]

# Operation -> part of SageMaker and its method. The compatibility page is made from this.
OPERATIONS = {
    "CreateModel": ("models", "create"),
    "DescribeModel": ("models", "describe"),
    "ListModels": ("models", "list"),
    "DeleteModel": ("models", "delete"),
    "CreateEndpointConfig": ("configs", "create"),
    "DescribeEndpointConfig": ("configs", "describe"),
    "ListEndpointConfigs": ("configs", "list"),
    "DeleteEndpointConfig": ("configs", "delete"),
    "CreateEndpoint": ("", "create"),
    "DescribeEndpoint": ("", "describe"),
    "ListEndpoints": ("", "list"),
    "UpdateEndpoint": ("", "update"),
    "UpdateEndpointWeightsAndCapacities": ("", "reweigh"),
    "DeleteEndpoint": ("", "delete"),
    "AddTags": ("rows", "add_tags"),
    "ListTags": ("rows", "list_tags"),
    "DeleteTags": ("rows", "delete_tags"),
}


class SageMaker:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(self, *, region: str, records: SageMakerRecords, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self.rows = Rows(region, records)
        self.models = Models(self.rows, endpoints)
        self.configs = Configs(self.rows, endpoints)
        self.handlers: dict[str, Handler] = {
            name: getattr(getattr(self, part) if part else self, method) for name, (part, method) in OPERATIONS.items()
        }

    async def resume(self) -> None:
        """Start every endpoint that there was when the server ended, with the weights and counts that it had."""
        for row in await asyncio.to_thread(self.rows.records.all, ENDPOINT):
            name = row.body["EndpointConfigName"]
            try:
                plan = await self.configs.plan(row.account, name)
            except InvalidRequest as exc:  # its configuration or a model was deleted, which SageMaker allows
                log.error("an endpoint cannot be started again", endpoint=row.name, reason=exc.message)
                plan = Plan(config_name=name, variants=[])
            kept = row.body.get("Kept", {})
            plan = Plan(
                config_name=name,
                variants=[({**spec, **kept.get(spec["VariantName"], {})}, model) for spec, model in plan.variants],
                shadows=[({**spec, **kept.get(spec["VariantName"], {})}, model) for spec, model in plan.shadows],
                capture=row.body.get("KeptCapture", plan.capture),
            )
            endpoint = self._endpoints.create(row.account, row.name, plan)
            endpoint.deployment = row.body.get("KeptDeployment")

    async def create(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        plan = await self.configs.plan(principal.account, params["EndpointConfigName"])
        instances = [spec.get("InitialInstanceCount", 1) for spec, _ in plan.variants]
        deployment_of(params.get("DeploymentConfig"), instances)
        created = await self.rows.add(principal, ENDPOINT, params["EndpointName"], params, "EndpointArn")
        self._endpoints.create(principal.account, params["EndpointName"], plan)
        return created

    async def describe(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self.rows.find(principal.account, ENDPOINT, params["EndpointName"])
        endpoint = self._running(row)
        fleet = endpoint.fleet
        config = await asyncio.to_thread(self.configs.find_body, row.account, fleet.config_name)
        return {
            "EndpointName": row.name,
            "EndpointArn": self.rows.arn(row.account, ENDPOINT, row.name),
            "EndpointConfigName": fleet.config_name,
            "EndpointStatus": endpoint.status,
            "FailureReason": endpoint.failure[:1024] or None,
            "ProductionVariants": [_shown(variant) for variant in fleet.variants] or None,
            "ShadowProductionVariants": [_shown(variant) for variant in fleet.shadows] or None,
            "DataCaptureConfig": _captured(fleet.capture),
            "AsyncInferenceConfig": config.get("AsyncInferenceConfig"),
            "LastDeploymentConfig": endpoint.deployment,
            "PendingDeploymentSummary": None if endpoint.coming is None else _pending(endpoint.coming, endpoint.share),
            "CreationTime": when(row.created_at),
            "LastModifiedTime": when(row.modified_at),
        }

    async def list(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        def more(row: Resource) -> dict[str, Any] | None:
            endpoint = self._endpoints.find(row.account, row.name)
            if endpoint is None:
                return None
            return {"EndpointStatus": endpoint.status, "LastModifiedTime": when(row.modified_at)}

        return await self.rows.page(params, principal, ENDPOINT, "Endpoint", more)

    async def update(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self.rows.find(principal.account, ENDPOINT, params["EndpointName"])
        endpoint = self._running(row)
        deployment = params.get("DeploymentConfig")
        if deployment is None and params.get("RetainDeploymentConfig"):
            deployment = endpoint.deployment
        plan = await self.configs.plan(principal.account, params["EndpointConfigName"])
        if endpoint.status == "Failed":
            raise InvalidRequest(f'Cannot update endpoint "{row.name}": it is Failed. Delete it and create it anew.')
        self._endpoints.update(endpoint, plan, deployment, _retained(params))
        return {"EndpointArn": self.rows.arn(row.account, ENDPOINT, row.name)}

    async def reweigh(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self.rows.find(principal.account, ENDPOINT, params["EndpointName"])
        wanted = {
            entry["VariantName"]: (entry.get("DesiredWeight"), entry.get("DesiredInstanceCount"))
            for entry in params["DesiredWeightsAndCapacities"]
        }
        self._endpoints.reweigh(self._running(row), wanted)
        return {"EndpointArn": self.rows.arn(row.account, ENDPOINT, row.name)}

    async def delete(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self.rows.find(principal.account, ENDPOINT, params["EndpointName"])
        self._endpoints.delete(self._running(row))
        return {}

    def _running(self, row: Resource) -> Endpoint:
        endpoint = self._endpoints.find(row.account, row.name)
        if endpoint is None:
            raise self.rows.missing(row.account, ENDPOINT, row.name)
        return endpoint


def remember(records: SageMakerRecords, endpoint: Endpoint) -> None:
    """Keep what became of *endpoint*: its configuration, weights and counts; forget one that was deleted."""
    if endpoint.status == "Deleted":
        records.remove(endpoint.account, ENDPOINT, endpoint.name)
        return
    row = records.get(endpoint.account, ENDPOINT, endpoint.name)
    if row is None:
        return
    kept = {
        variant.name: {"InitialVariantWeight": variant.weight, "DesiredInstanceCount": variant.wanted}
        for variant in endpoint.fleet.everything
    }
    body = {
        **row.body,
        "EndpointConfigName": endpoint.fleet.config_name,
        "Kept": kept,
        "KeptCapture": endpoint.fleet.capture,
        "KeptDeployment": endpoint.deployment,
    }
    records.change(endpoint.account, ENDPOINT, endpoint.name, body=body)


def _retained(params: Mapping[str, Any]) -> Retained:
    """What UpdateEndpoint keeps. Raises InvalidRequest where only its exceptions are named."""
    excluded = {entry["VariantPropertyType"] for entry in params.get("ExcludeRetainedVariantProperties", [])}
    if not params.get("RetainAllVariantProperties"):
        if excluded:
            raise InvalidRequest(
                "ExcludeRetainedVariantProperties goes with RetainAllVariantProperties. Set it to true."
            )
        return Retained()
    return Retained(
        weights="DesiredWeight" not in excluded,
        instances="DesiredInstanceCount" not in excluded,
        capture="DataCaptureConfig" not in excluded,
    )


def _shown(variant: Variant) -> dict[str, Any]:
    """ProductionVariantSummary."""
    return {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": sum(copy.is_ready for copy in variant.copies),
        "DesiredInstanceCount": variant.wanted,
        "ManagedInstanceScaling": variant.spec.get("ManagedInstanceScaling"),
        "RoutingConfig": variant.spec.get("RoutingConfig"),
    }


def _pending(coming: Fleet, share: float) -> dict[str, Any]:
    """PendingDeploymentSummary."""
    message = f"{share:.0%} of the traffic"

    def shown(variant: Variant) -> dict[str, Any]:
        status = {"Status": coming.phase, "StatusMessage": message, "StartTime": when(coming.phase_since)}
        return {
            **_shown(variant),
            "CurrentWeight": variant.weight * share,
            "InstanceType": variant.spec.get("InstanceType"),
            "VariantStatus": [status],
        }

    return {
        "EndpointConfigName": coming.config_name,
        "StartTime": when(coming.begun_at),
        "ProductionVariants": [shown(variant) for variant in coming.variants],
        "ShadowProductionVariants": [shown(variant) for variant in coming.shadows] or None,
    }


def _captured(config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """DataCaptureConfigSummary."""
    if not config:
        return None
    is_on = config.get("EnableCapture", False)
    return {
        "EnableCapture": is_on,
        "CaptureStatus": "Started" if is_on else "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),
    }
