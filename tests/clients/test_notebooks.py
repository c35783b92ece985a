"""The sequences of calls in AWS's own notebooks for imported models, through boto3."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.server import Server


@pytest.fixture(scope="module")
def runtime(server: Server) -> Any:
    return server.client("bedrock-runtime")


def test_the_qwen_notebook_imports_polls_describes_invokes_and_deletes(
    server: Server, roomy_model: str, runtime: Any
) -> None:
    bedrock = server.client("bedrock")
    job = bedrock.create_model_import_job(
        jobName="notebook-job",
        importedModelName="notebook",
        roleArn=server.credentials.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://artifacts/roomy/"}},
    )
    while True:
        found = bedrock.get_model_import_job(jobIdentifier=job["jobArn"])
        if found["status"].upper() in ("COMPLETED", "FAILED"):
            break
        time.sleep(0.1)
    assert found["status"] == "Completed", found.get("failureMessage")
    listed = bedrock.list_model_import_jobs(nameContains="notebook-job")["modelImportJobSummaries"]
    assert [summary["status"] for summary in listed] == ["Completed"]

    model = bedrock.get_imported_model(modelIdentifier=found["importedModelArn"])
    body = {"prompt": "for each", "max_gen_len": 4, "top_p": 0.9, "temperature": 0.2}
    answer = json.loads(runtime.invoke_model(modelId=model["modelArn"], body=json.dumps(body))["body"].read())
    assert answer["generation_token_count"] == 4

    assert bedrock.get_imported_model(modelIdentifier="notebook")["modelArn"] == model["modelArn"]
    bedrock.delete_imported_model(modelIdentifier=model["modelArn"])
    with pytest.raises(bedrock.exceptions.ResourceNotFoundException):
        bedrock.get_imported_model(modelIdentifier="notebook")


def test_the_performance_notebook_converses_from_a_pool_of_threads(roomy_model: str, runtime: Any) -> None:
    def ask(number: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": [{"text": f"{number} for each"}]}]
        answer: dict[str, Any] = runtime.converse(
            modelId=roomy_model, messages=messages, inferenceConfig={"maxTokens": 4, "temperature": 0.0}
        )
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))

    assert all(answer["metrics"]["latencyMs"] >= 0 for answer in answers)
    assert {answer["usage"]["outputTokens"] for answer in answers} <= {1, 2, 3, 4}


def test_the_text_to_sql_notebook_retries_until_the_answer_has_a_generation(roomy_model: str, runtime: Any) -> None:
    body = json.dumps({"prompt": "for each", "max_gen_len": 2})
    answer: dict[str, Any] = {}
    for _ in range(3):
        answer = json.loads(runtime.invoke_model(modelId=roomy_model, body=body)["body"].read())
        if "generation" in answer:
            break

    assert answer["stop_reason"] in ("length", "stop")
