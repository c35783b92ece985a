"""Every rule of the service models behind SageMaker, IAM, STS and knowledge bases, broken alone over HTTP.

Bedrock and its runtime are held to theirs by ``tests/unit/awswire/test_models.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.support.broken import broken
from tests.support.server import Server

from outcrop.api import bedrock_agent_runtime, iam, sagemaker, sagemaker_runtime, sts

# Service -> operations, the code of a broken rule, the fewest rules that the model has for them.
SERVICES: dict[str, tuple[Iterable[str], str, int]] = {
    "sagemaker": (sagemaker.OPERATIONS, "ValidationException", 400),
    "sagemaker-runtime": (sagemaker_runtime.OPERATIONS, "ValidationError", 30),
    "iam": (iam.OPERATIONS, "ValidationError", 200),
    "sts": (sts.OPERATIONS, "ValidationError", 40),
    "bedrock-agent-runtime": (bedrock_agent_runtime.OPERATIONS, "ValidationException", 150),
}


def client(server: Server, service: str) -> Any:
    keys = server.credentials
    return boto3.client(
        service,
        endpoint_url=server.url,
        region_name=keys.region,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        config=Config(parameter_validation=False, retries={"total_max_attempts": 1}),
    )


@pytest.mark.parametrize("service", SERVICES)
def test_a_rule_that_is_broken_is_named(server: Server, service: str) -> None:
    operations, code, fewest = SERVICES[service]
    caller = client(server, service)
    calls = {operation: getattr(caller, name) for name, operation in caller.meta.method_to_api_mapping.items()}
    count, wrong = 0, []
    for operation in operations:
        shape = caller.meta.service_model.operation_model(operation).input_shape
        for path, params in broken(shape) if shape is not None else ():
            count += 1
            name = [part for part in path if isinstance(part, str)][-1]
            try:
                calls[operation](**params)
            except ClientError as exc:
                error, status = exc.response["Error"], exc.response["ResponseMetadata"]["HTTPStatusCode"]
                if (error["Code"], status) == (code, 400) and name.lower() in error["Message"].lower():
                    continue
                wrong.append((operation, path, error["Code"], status, error["Message"][:200]))
            else:
                wrong.append((operation, path, "accepted"))

    assert not wrong
    assert count >= fewest, count
