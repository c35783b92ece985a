"""SageMaker's control plane, as far as endpoints need it, in the shapes of ``sagemaker/2017-07-24`` (JSON 1.1).

Images are not run: a model is a bundle (``ModelDataUrl``), or nothing, in front of the imported model that its
``Environment`` names as OUTCROP_PROXY_TARGET. What this server has no counterpart for is refused by name.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import structlog

from outcrop.access.identities import Principal
from outcrop.api.pages import when
from outcrop.errors import InvalidRequest
from outcrop.registry.sagemaker_records import CONFIG, ENDPOINT, MODEL, Resource, SageMakerRecords
from outcrop.serving.endpoints import Endpoint, Endpoints, Plan, Variant

log = structlog.get_logger(__name__)

Handler = Callable[[Mapping[str, Any], Principal], Awaitable[dict[str, Any]]]
IMAGE = "outcrop/proxy"
TARGET = "OUTCROP_PROXY_TARGET"
_ROWS = 10
_MOST_TAGS = 50
_ARN = re.compile(r"arn:aws:sagemaker:([a-z0-9-]+):([0-9]{12}):(model|endpoint-config|endpoint)/(.+)")

# Operation -> method of SageMaker. The compatibility page is made from this.
OPERATIONS = {
    "CreateModel": "create_model",
    "DescribeModel": "describe_model",
    "ListModels": "list_models",
    "DeleteModel": "delete_model",
    "CreateEndpointConfig": "create_config",
    "DescribeEndpointConfig": "describe_config",
    "ListEndpointConfigs": "list_configs",
    "DeleteEndpointConfig": "delete_config",
    "CreateEndpoint": "create_endpoint",
    "DescribeEndpoint": "describe_endpoint",
    "ListEndpoints": "list_endpoints",
    "UpdateEndpoint": "update_endpoint",
    "UpdateEndpointWeightsAndCapacities": "reweigh",
    "DeleteEndpoint": "delete_endpoint",
    "AddTags": "add_tags",
    "ListTags": "list_tags",
    "DeleteTags": "delete_tags",
}


class SageMaker:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(self, *, region: str, records: SageMakerRecords, endpoints: Endpoints) -> None:
        self._region = region
        self._records = records
        self._endpoints = endpoints
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    def arn(self, account: str, kind: str, name: str) -> str:
        return f"arn:aws:sagemaker:{self._region}:{account}:{kind}/{name.lower()}"

    async def resume(self) -> None:
        """Start every endpoint that there was when the server ended, with the weights that it had."""
        for row in await asyncio.to_thread(self._records.all, ENDPOINT):
            try:
                plan = await self.plan(row.account, row.body["EndpointConfigName"])
            except InvalidRequest as exc:  # its configuration or a model was deleted, which SageMaker allows
                log.error("an endpoint cannot be started again", endpoint=row.name, reason=exc.message)
                plan = Plan(config_name=row.body["EndpointConfigName"], variants=[])
            kept = row.body.get("Kept", {})
            variants = [({**spec, **kept.get(spec["VariantName"], {})}, model) for spec, model in plan.variants]
            self._endpoints.create(row.account, row.name, Plan(config_name=plan.config_name, variants=variants))

    # -- models ---------------------------------------------------------------------------------------

    async def create_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _refuse(params, "Containers", "InferenceExecutionConfig", "VpcConfig", why="a model is one container here")
        container = params.get("PrimaryContainer")
        if not container:
            raise InvalidRequest("PrimaryContainer must be given.")
        image = container.get("Image")
        if image not in (None, IMAGE):
            raise InvalidRequest(
                f"Image {image} is not run: this server runs no containers. Leave Image out (or {IMAGE}) and give a "
                "bundle with your script as ModelDataUrl; to run a server of your own, set OUTCROP_CUSTOM_ENGINE."
            )
        _refuse(
            container, "ModelPackageName", "InferenceSpecificationName", "MultiModelConfig", why="there is no registry"
        )
        container = dict(container)
        if source := container.pop("ModelDataSource", None):
            where = source.get("S3DataSource", {})
            if where.get("CompressionType") != "Gzip" or where.get("S3DataType") != "S3Object":
                raise InvalidRequest("ModelDataSource must be an S3Object with CompressionType Gzip: one model.tar.gz.")
            container["ModelDataUrl"] = where["S3Uri"]
        if not container.get("Environment", {}).get(TARGET):
            raise InvalidRequest(f"Environment must name the imported model as {TARGET} (its ARN or name).")
        if "ModelDataUrl" in container:
            self._endpoints.object_path(container["ModelDataUrl"])
        return await self._create(
            principal, MODEL, params["ModelName"], {**params, "PrimaryContainer": container}, "ModelArn"
        )

    async def describe_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._row(principal, MODEL, params["ModelName"])
        kept = _without(row.body, "Tags")
        return {**kept, "ModelArn": self.arn(row.account, MODEL, row.name), "CreationTime": when(row.created_at)}

    async def list_models(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._list(params, principal, MODEL, "Models", "Model", lambda row: {})

    async def delete_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._remove(principal, MODEL, params["ModelName"])

    # -- configurations -------------------------------------------------------------------------------

    async def create_config(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _refuse(params, "ShadowProductionVariants", why="traffic is not shadowed here")
        _refuse(params, "ExplainerConfig", "VpcConfig", why="there is nothing behind it here")
        if params.get("DataCaptureConfig", {}).get("EnableCapture"):
            raise InvalidRequest("DataCaptureConfig: data is not captured here. Leave it out.")
        names = [variant["VariantName"] for variant in params["ProductionVariants"]]
        if len(set(names)) < len(names):
            raise InvalidRequest(f"Variant names must differ, but they are {', '.join(names)}.")
        for variant in params["ProductionVariants"]:
            _refuse(variant, "ServerlessConfig", "ManagedInstanceScaling", why="proxies have a fixed count of workers")
            if "ModelName" not in variant:
                raise InvalidRequest(f"Variant {variant['VariantName']} names no ModelName.")
            await self._row(principal, MODEL, variant["ModelName"])
        if async_config := params.get("AsyncInferenceConfig"):
            self._endpoints.object_path(async_config["OutputConfig"].get("S3OutputPath", "").rstrip("/") + "/x")
        return await self._create(principal, CONFIG, params["EndpointConfigName"], params, "EndpointConfigArn")

    async def describe_config(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._row(principal, CONFIG, params["EndpointConfigName"])
        return {
            **_without(row.body, "Tags"),
            "EndpointConfigArn": self.arn(row.account, CONFIG, row.name),
            "CreationTime": when(row.created_at),
        }

    async def list_configs(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._list(params, principal, CONFIG, "EndpointConfigs", "EndpointConfig", lambda row: {})

    async def delete_config(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._remove(principal, CONFIG, params["EndpointConfigName"])

    # -- endpoints ------------------------------------------------------------------------------------

    async def create_endpoint(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _check_deployment(params.get("DeploymentConfig"))
        plan = await self.plan(principal.account, params["EndpointConfigName"])
        created = await self._create(principal, ENDPOINT, params["EndpointName"], params, "EndpointArn")
        self._endpoints.create(principal.account, params["EndpointName"], plan)
        return created

    async def plan(self, account: str, config_name: str) -> Plan:
        """What a configuration says is to run. Raises InvalidRequest for one that is gone, or whose model is."""
        config = await self._row_of(account, CONFIG, config_name)
        variants = [
            (variant, (await self._row_of(account, MODEL, variant["ModelName"])).body)
            for variant in config.body["ProductionVariants"]
        ]
        return Plan(config_name=config_name, variants=variants)

    async def describe_endpoint(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._row(principal, ENDPOINT, params["EndpointName"])
        endpoint = self._running(row)
        return {
            "EndpointName": row.name,
            "EndpointArn": self.arn(row.account, ENDPOINT, row.name),
            "EndpointConfigName": endpoint.config_name,
            "EndpointStatus": endpoint.status,
            "FailureReason": endpoint.failure[:1024] or None,
            "ProductionVariants": [_shown(variant) for variant in endpoint.variants] or None,
            "LastDeploymentConfig": endpoint.deployment,
            "CreationTime": when(row.created_at),
            "LastModifiedTime": when(row.modified_at),
        }

    async def list_endpoints(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._list(
            params,
            principal,
            ENDPOINT,
            "Endpoints",
            "Endpoint",
            lambda row: {"EndpointStatus": self._running(row).status, "LastModifiedTime": when(row.modified_at)},
        )

    async def update_endpoint(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        _refuse(params, "ExcludeRetainedVariantProperties", why="weights and counts are kept or not")
        row = await self._row(principal, ENDPOINT, params["EndpointName"])
        endpoint = self._running(row)
        deployment = params.get("DeploymentConfig")
        if deployment is None and params.get("RetainDeploymentConfig"):
            deployment = endpoint.deployment
        _check_deployment(deployment)
        plan = await self.plan(principal.account, params["EndpointConfigName"])
        if endpoint.status == "Failed":
            raise InvalidRequest(f'Cannot update endpoint "{row.name}": it is Failed. Delete it and create it anew.')
        self._endpoints.update(endpoint, plan, deployment, keeps=bool(params.get("RetainAllVariantProperties")))
        return {"EndpointArn": self.arn(row.account, ENDPOINT, row.name)}

    async def reweigh(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._row(principal, ENDPOINT, params["EndpointName"])
        wanted = {
            entry["VariantName"]: (entry.get("DesiredWeight"), entry.get("DesiredInstanceCount"))
            for entry in params["DesiredWeightsAndCapacities"]
        }
        self._endpoints.reweigh(self._running(row), wanted)
        return {"EndpointArn": self.arn(row.account, ENDPOINT, row.name)}

    async def delete_endpoint(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._row(principal, ENDPOINT, params["EndpointName"])
        self._endpoints.delete(self._running(row))
        return {}

    def _running(self, row: Resource) -> Endpoint:
        endpoint = self._endpoints.find(row.account, row.name)
        if endpoint is None:
            raise self._missing(row.account, ENDPOINT, row.name)
        return endpoint

    # -- tags -----------------------------------------------------------------------------------------

    async def add_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._tagged(params, principal)
        tags = {**row.tags, **_tags(params["Tags"])}
        if len(tags) > _MOST_TAGS:
            raise InvalidRequest(f"{params['ResourceArn']} would have {len(tags)} tags; {_MOST_TAGS} are allowed.")
        await asyncio.to_thread(self._records.change, row.account, row.kind, row.name, tags=tags)
        return {"Tags": _as_list(tags)}

    async def list_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        tags = _as_list((await self._tagged(params, principal)).tags)
        limit, start = params.get("MaxResults", _MOST_TAGS), _position(params.get("NextToken"))
        more = start + limit < len(tags)
        return {"Tags": tags[start : start + limit], "NextToken": _token(start + limit) if more else None}

    async def delete_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._tagged(params, principal)
        tags = {key: value for key, value in row.tags.items() if key not in params["TagKeys"]}
        await asyncio.to_thread(self._records.change, row.account, row.kind, row.name, tags=tags)
        return {}

    async def _tagged(self, params: Mapping[str, Any], principal: Principal) -> Resource:
        found = _ARN.fullmatch(params["ResourceArn"])
        if found is None or found[1] != self._region or found[2] != principal.account:
            raise InvalidRequest(f"{params['ResourceArn']} is no resource of this account and region.")
        rows = await asyncio.to_thread(self._records.all, found[3], principal.account)
        for row in rows:
            if row.name.lower() == found[4].lower():
                return row
        raise self._missing(principal.account, found[3], found[4])

    # -- what all kinds share -------------------------------------------------------------------------

    async def _create(
        self, principal: Principal, kind: str, name: str, body: Mapping[str, Any], field: str
    ) -> dict[str, Any]:
        tags = _tags(body.get("Tags", ()))
        plain = msgspec.to_builtins(body)
        if not await asyncio.to_thread(self._records.add, principal.account, kind, name, plain, tags):
            arn = self.arn(principal.account, kind, name)
            raise InvalidRequest(f'Cannot create already existing {kind.replace("-", " ")} "{arn}".')
        return {field: self.arn(principal.account, kind, name)}

    async def _row(self, principal: Principal, kind: str, name: str) -> Resource:
        return await self._row_of(principal.account, kind, name)

    async def _row_of(self, account: str, kind: str, name: str) -> Resource:
        row = await asyncio.to_thread(self._records.get, account, kind, name)
        if row is None:
            raise self._missing(account, kind, name)
        return row

    def _missing(self, account: str, kind: str, name: str) -> InvalidRequest:
        what = kind.replace("endpoint-config", "endpoint configuration")
        return InvalidRequest(f'Could not find {what} "{self.arn(account, kind, name)}".')

    async def _remove(self, principal: Principal, kind: str, name: str) -> dict[str, Any]:
        if not await asyncio.to_thread(self._records.remove, principal.account, kind, name):
            raise self._missing(principal.account, kind, name)
        return {}

    async def _list(
        self,
        params: Mapping[str, Any],
        principal: Principal,
        kind: str,
        key: str,
        prefix: str,
        more: Callable[[Resource], dict[str, Any]],
    ) -> dict[str, Any]:
        """A page of a List call. A token is the number of rows that were given."""
        rows = await asyncio.to_thread(self._records.all, kind, principal.account)
        after, before = params.get("CreationTimeAfter"), params.get("CreationTimeBefore")
        wanted = [
            row
            for row in rows
            if params.get("NameContains", "").lower() in row.name.lower()
            and (after is None or row.created_at >= after.timestamp())
            and (before is None or row.created_at <= before.timestamp())
            and (kind != ENDPOINT or self._endpoints.find(row.account, row.name) is not None)
        ]
        shown = [
            {
                f"{prefix}Name": row.name,
                f"{prefix}Arn": self.arn(row.account, kind, row.name),
                "CreationTime": when(row.created_at),
                **more(row),
            }
            for row in wanted
        ]
        if status := params.get("StatusEquals"):
            shown = [row for row in shown if row["EndpointStatus"] == status]
        if params.get("SortBy") == "Name":
            shown.sort(key=lambda row: str(row[f"{prefix}Name"]))
        if params.get("SortOrder", "Descending") == "Descending":
            shown.reverse()
        limit, start = params.get("MaxResults", _ROWS), _position(params.get("NextToken"))
        token = _token(start + limit) if start + limit < len(shown) else None
        return {key: shown[start : start + limit], "NextToken": token}


def remember(records: SageMakerRecords, endpoint: Endpoint) -> None:
    """Keep what became of *endpoint*: its configuration, weights and counts; forget one that was deleted."""
    if endpoint.status == "Deleted":
        records.remove(endpoint.account, ENDPOINT, endpoint.name)
        return
    row = records.get(endpoint.account, ENDPOINT, endpoint.name)
    if row is None:
        return
    kept = {
        variant.name: {"InitialVariantWeight": variant.weight, "InitialInstanceCount": variant.instances}
        for variant in endpoint.variants
    }
    body = {**row.body, "EndpointConfigName": endpoint.config_name, "Kept": kept}
    records.change(endpoint.account, ENDPOINT, endpoint.name, body=body)


def _shown(variant: Variant) -> dict[str, Any]:
    return {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": variant.instances,
        "DesiredInstanceCount": variant.instances,
    }


def _check_deployment(deployment: Mapping[str, Any] | None) -> None:
    """Raise InvalidRequest for what an update here does not do."""
    if not deployment:
        return
    _refuse(deployment, "RollingUpdatePolicy", why="updates are blue/green")
    if deployment.get("AutoRollbackConfiguration", {}).get("Alarms"):
        raise InvalidRequest(
            "AutoRollbackConfiguration.Alarms: there are no alarms here to watch. An update whose proxies do not start "
            "is rolled back by itself."
        )
    policy = deployment.get("BlueGreenUpdatePolicy", {})
    routing = policy.get("TrafficRoutingConfiguration", {})
    size = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}.get(routing.get("Type", ""))
    if size is None:
        return
    found = routing.get(size)
    if found is None:
        raise InvalidRequest(f"TrafficRoutingConfiguration of type {routing['Type']} must have {size}.")
    if found["Type"] != "CAPACITY_PERCENT" or not 0 < found["Value"] <= 50:
        raise InvalidRequest(f"{size} must be a CAPACITY_PERCENT from 1 to 50: workers of a proxy share its traffic.")


def _refuse(params: Mapping[str, Any], *names: str, why: str) -> None:
    for name in names:
        if params.get(name):
            raise InvalidRequest(f"{name} is not supported: {why}. Leave it out.")


def _without(body: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


def _tags(tags: Any) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def _token(start: int) -> str:
    return base64.urlsafe_b64encode(str(start).encode()).decode()


def _position(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.b64decode(token, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as exc:
        raise InvalidRequest("The NextToken is invalid. Use the token of the previous page.") from exc
