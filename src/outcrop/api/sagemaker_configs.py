"""SageMaker's endpoint configurations: which variants there are, what is shadowed, captured, answered later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.access.identities import Principal
from outcrop.api.pages import when
from outcrop.api.sagemaker_rows import Rows, refuse, without
from outcrop.errors import InvalidRequest
from outcrop.registry.sagemaker_records import CONFIG, MODEL
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.rollout import Plan

_MOST_COPIES = 64


class Configs:
    def __init__(self, rows: Rows, endpoints: Endpoints) -> None:
        self._rows = rows
        self._endpoints = endpoints

    async def create(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        refuse(params, "ExplainerConfig", "VpcConfig", why="there is nothing behind it here")
        variants, shadows = params["ProductionVariants"], params.get("ShadowProductionVariants", [])
        if shadows and (len(shadows) > 1 or len(variants) > 1):
            raise InvalidRequest("ShadowProductionVariants may hold one variant, beside one production variant.")
        names = [variant["VariantName"] for variant in (*variants, *shadows)]
        if len(set(names)) < len(names):
            raise InvalidRequest(f"Variant names must differ, but they are {', '.join(names)}.")
        for variant in (*variants, *shadows):
            await self._check(variant, principal)
        if capture := params.get("DataCaptureConfig"):
            self._endpoints.object_path(capture["DestinationS3Uri"].rstrip("/") + "/x")
        if async_config := params.get("AsyncInferenceConfig"):
            output = async_config["OutputConfig"]
            for place in (output.get("S3OutputPath", ""), output.get("S3FailurePath")):
                if place is not None:
                    self._endpoints.object_path(place.rstrip("/") + "/x")
            refuse(output, "NotificationConfig", why="there are no topics here; look for the output object")
        return await self._rows.add(principal, CONFIG, params["EndpointConfigName"], params, "EndpointConfigArn")

    async def _check(self, variant: Mapping[str, Any], principal: Principal) -> None:
        name = variant["VariantName"]
        refuse(variant, "ServerlessConfig", why="ManagedInstanceScaling starts copies as load asks for them")
        if "ModelName" not in variant:
            raise InvalidRequest(f"Variant {name} names no ModelName.")
        scaling = variant.get("ManagedInstanceScaling", {})
        least, most = scaling.get("MinInstanceCount", 1), scaling.get("MaxInstanceCount", _MOST_COPIES)
        if least > most:
            raise InvalidRequest(f"Variant {name}: MinInstanceCount {least} is more than MaxInstanceCount {most}.")
        count = max(variant.get("InitialInstanceCount", 1), scaling.get("MaxInstanceCount", 1))
        if count > _MOST_COPIES:
            raise InvalidRequest(f"Variant {name} would have {count} copies; at most {_MOST_COPIES} run here.")
        await self._rows.find(principal.account, MODEL, variant["ModelName"])

    async def describe(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._rows.find(principal.account, CONFIG, params["EndpointConfigName"])
        return {
            **without(row.body, "Tags"),
            "EndpointConfigArn": self._rows.arn(row.account, CONFIG, row.name),
            "CreationTime": when(row.created_at),
        }

    async def list(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._rows.page(params, principal, CONFIG, "EndpointConfig")

    async def delete(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._rows.remove(principal, CONFIG, params["EndpointConfigName"])

    def find_body(self, account: str, name: str) -> Mapping[str, Any]:
        """The call that made a configuration; empty for one that is gone. Blocks."""
        row = self._rows.records.get(account, CONFIG, name)
        return {} if row is None else row.body

    async def plan(self, account: str, name: str) -> Plan:
        """What a configuration says is to run. Raises InvalidRequest for one that is gone, or whose model is."""
        body = (await self._rows.find(account, CONFIG, name)).body

        async def with_models(key: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
            return [
                (variant, (await self._rows.find(account, MODEL, variant["ModelName"])).body)
                for variant in body.get(key, [])
            ]

        return Plan(
            config_name=name,
            variants=await with_models("ProductionVariants"),
            shadows=await with_models("ShadowProductionVariants"),
            capture=body.get("DataCaptureConfig"),
        )
