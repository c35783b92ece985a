"""SageMaker's models: a bundle in front of an imported model, that model alone, or a way to somewhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.access.identities import Principal
from outcrop.api.pages import when
from outcrop.api.sagemaker_rows import Rows, refuse, without
from outcrop.errors import InvalidRequest
from outcrop.registry.sagemaker_records import MODEL
from outcrop.serving.endpoints import Endpoints
from outcrop.serving.forwards import TARGET, TO, destination

IMAGE = "outcrop/proxy"
# Settings of a proxy that the server itself gives; another value would take the proxy out of its hands.
_OWN = ("HOST", "PORT", "KEY", "KEY_FILE", "MODEL_DIR", "ENDS_WITH_PARENT")


class Models:
    def __init__(self, rows: Rows, endpoints: Endpoints) -> None:
        self._rows = rows
        self._endpoints = endpoints

    async def create(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        refuse(params, "Containers", "InferenceExecutionConfig", "VpcConfig", why="a model is one container here")
        container = params.get("PrimaryContainer")
        if not container:
            raise InvalidRequest("PrimaryContainer must be given.")
        container = _without_source(dict(container))
        self._check(container)
        return await self._rows.add(
            principal, MODEL, params["ModelName"], {**params, "PrimaryContainer": container}, "ModelArn"
        )

    def _check(self, container: Mapping[str, Any]) -> None:
        """Raise InvalidRequest for what cannot run here."""
        image = container.get("Image")
        if image not in (None, IMAGE):
            raise InvalidRequest(
                f"Image {image} is not run: this server runs no containers. Leave Image out (or {IMAGE}) and give a "
                "bundle with your script as ModelDataUrl; to run a server of your own, set OUTCROP_CUSTOM_ENGINE."
            )
        refuse(
            container, "ModelPackageName", "InferenceSpecificationName", "MultiModelConfig", why="there is no registry"
        )
        environment = container.get("Environment", {})
        for name in _OWN:
            if f"OUTCROP_PROXY_{name}" in environment:
                raise InvalidRequest(f"Environment sets OUTCROP_PROXY_{name}, which the server chooses. Leave it out.")
        to = destination(environment, self._rows.region)
        if (to is None) == (not environment.get(TARGET)):
            raise InvalidRequest(
                f"Environment must name the imported model as {TARGET} (its ARN or name), or as {TO} the endpoint or "
                "OpenAI model elsewhere that invocations are forwarded to."
            )
        if "ModelDataUrl" in container:
            if to is not None:
                raise InvalidRequest(f"A model with {TO} runs no script. Leave ModelDataUrl out, or give {TARGET}.")
            self._endpoints.object_path(container["ModelDataUrl"])

    async def describe(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        row = await self._rows.find(principal.account, MODEL, params["ModelName"])
        return {
            **without(row.body, "Tags"),
            "ModelArn": self._rows.arn(row.account, MODEL, row.name),
            "CreationTime": when(row.created_at),
        }

    async def list(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._rows.page(params, principal, MODEL, "Model")

    async def delete(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return await self._rows.remove(principal, MODEL, params["ModelName"])


def _without_source(container: dict[str, Any]) -> dict[str, Any]:
    """A container whose ModelDataSource is the ModelDataUrl that it means."""
    if source := container.pop("ModelDataSource", None):
        where = source.get("S3DataSource", {})
        if where.get("CompressionType") != "Gzip" or where.get("S3DataType") != "S3Object":
            raise InvalidRequest("ModelDataSource must be an S3Object with CompressionType Gzip: one model.tar.gz.")
        container["ModelDataUrl"] = where["S3Uri"]
    return container
