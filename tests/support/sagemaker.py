"""SageMaker endpoints as tests make them: bundles, models, configurations, calls by boto3."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from tests.support.server import Server

SCRIPT = """
import json

from outcrop.proxy import Refuse


def preprocess(request, ctx):
    body = request.json()
    if "fail" in body:
        raise Refuse(body["fail"], body["status"])
    ctx.custom_attributes = "version=%(version)s;" + ctx.custom_attributes
    return {"messages": [{"role": "user", "content": body["question"]}], "max_tokens": 4, "temperature": 0}


def postprocess(response, ctx):
    return {"version": "%(version)s", "answer": response.json()["choices"][0]["message"]["content"]}


async def postprocess_stream(chunks, ctx):
    async for chunk in chunks:
        yield "|"
"""
WAIT = {"Delay": 0.1, "MaxAttempts": 600}


def proxies(server: Server) -> list[str]:
    """Processes that run a proxy or a worker of *server*."""
    mine = f"OUTCROP_PROXY_MODEL_DIR={server.home}/".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mine in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def put_bundle(server: Server, version: str) -> str:
    """A model.tar.gz with a script that tells its version."""
    data = (SCRIPT % {"version": version}).encode()
    target = server.home / "buckets" / "bundles" / version
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target / "model.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("code/inference.py")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return f"s3://bundles/{version}/model.tar.gz"


def create_model(server: Server, name: str, target: str, bundle: str | None = None) -> None:
    container: dict[str, Any] = {"Environment": {"OUTCROP_PROXY_TARGET": target, "OUTCROP_PROXY_DIALECT": "auto"}}
    if bundle:
        container["ModelDataUrl"] = bundle
    server.client("sagemaker").create_model(
        ModelName=name, PrimaryContainer=container, ExecutionRoleArn=server.credentials.import_role_arn
    )


def create_config(server: Server, name: str, weights: dict[str, float], **more: Any) -> None:
    variants = [
        {"VariantName": f"v-{model}", "ModelName": model, "InitialInstanceCount": 1, "InitialVariantWeight": weight}
        for model, weight in weights.items()
    ]
    server.client("sagemaker").create_endpoint_config(EndpointConfigName=name, ProductionVariants=variants, **more)


def create_endpoint(server: Server, name: str, config: str) -> None:
    sagemaker = server.client("sagemaker")
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config)
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=WAIT)


def ask(server: Server, endpoint: str, body: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    found = server.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint, Body=json.dumps(body), ContentType="application/json", **more
    )
    return json.loads(found["Body"].read()), found


def in_service(server: Server, name: str) -> dict[str, Any]:
    """The endpoint as it is described once it is InService."""
    sagemaker = server.client("sagemaker")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=WAIT)
    found: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=name)
    return found


def delete_endpoint(server: Server, name: str) -> None:
    sagemaker = server.client("sagemaker")
    sagemaker.delete_endpoint(EndpointName=name)
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=WAIT)


def copies(server: Server, endpoint: str) -> list[dict[str, Any]]:
    """The copies of an endpoint, as operators see them."""
    found = server.admin("/outcrop/v1/endpoints")["copies"]
    return [copy for copy in found if copy["endpoint"] == endpoint]
