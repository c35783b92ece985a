"""The AWS CLI, version 1: sends no Content-Type with an invocation; its endpoint comes from the environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import FOREIGN
from tests.support.server import Server, wait_for

Run = Callable[..., subprocess.CompletedProcess[str]]
USER = json.dumps([{"role": "user", "content": [{"text": "for each"}]}])
TOOLS = json.dumps(
    {
        "tools": [
            {
                "toolSpec": {
                    "name": "get_weather",
                    "inputSchema": {"json": {"type": "object", "properties": {"city": {"enum": ["Paris"]}}}},
                }
            }
        ],
        "toolChoice": {"any": {}},
    }
)


@pytest.fixture(scope="module")
def aws(environment: dict[str, str]) -> Run:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(FOREIGN / "awscli" / "bin" / "aws"), "--output", "json", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) if done.stdout.strip() else None


def test_a_model_is_imported_and_found_by_name(aws: Run, environment: dict[str, str]) -> None:
    source = json.dumps({"s3DataSource": {"s3Uri": environment["OUTCROP_SOURCE"]}})
    names = ["--job-name", "from-cli", "--imported-model-name", "cli", "--role-arn", environment["OUTCROP_ROLE_ARN"]]
    job = answer(aws("bedrock", "create-model-import-job", *names, "--model-data-source", source))
    found: dict[str, Any] = {}

    def has_ended() -> bool:
        found.update(answer(aws("bedrock", "get-model-import-job", "--job-identifier", job["jobArn"])))
        return bool(found["status"] != "InProgress")

    wait_for(has_ended, 60)
    assert found["status"] == "Completed", found
    listed = answer(aws("bedrock", "list-imported-models", "--name-contains", "cli"))
    assert [model["modelArn"] for model in listed["modelSummaries"]] == [found["importedModelArn"]]
    answer(aws("bedrock", "delete-imported-model", "--model-identifier", "cli"))


def test_invoke_model_writes_the_answer_to_a_file(aws: Run, roomy_model: str, tmp_path: Path) -> None:
    body = ["--body", '{"prompt":"for each","max_gen_len":3}']
    out = tmp_path / "answer.json"
    said = answer(aws("bedrock-runtime", "invoke-model", "--model-id", roomy_model, *body, str(out)))

    assert said["contentType"] == "application/json"
    assert json.loads(out.read_text())["generation_token_count"] == 3


def test_converse_answers(aws: Run, roomy_model: str) -> None:
    config = ["--messages", USER, "--inference-config", "maxTokens=4,temperature=0"]
    said = answer(aws("bedrock-runtime", "converse", "--model-id", roomy_model, *config))

    assert said["usage"]["outputTokens"] == 4
    assert said["output"]["message"]["role"] == "assistant"


def test_converse_calls_a_tool(aws: Run, tool_model: str) -> None:
    config = ["--messages", USER, "--inference-config", "maxTokens=200", "--tool-config", TOOLS]
    said = answer(aws("bedrock-runtime", "converse", "--model-id", tool_model, *config))

    assert said["stopReason"] == "tool_use"
    assert said["output"]["message"]["content"][-1]["toolUse"]["name"] == "get_weather"


def test_errors_name_the_exception_and_fail_the_command(aws: Run, roomy_model: str, server: Server) -> None:
    absent = roomy_model.rsplit("/", 1)[0] + "/aaaaaaaaaaaa"
    unknown = aws("bedrock-runtime", "converse", "--model-id", absent, "--messages", USER)
    refused = aws("bedrock-runtime", "converse", "--model-id", roomy_model, "--messages", "[]")

    assert unknown.returncode != 0
    assert refused.returncode != 0
    assert "(ResourceNotFoundException) when calling the Converse operation" in unknown.stderr
    assert "(ValidationException) when calling the Converse operation" in refused.stderr


def test_a_user_is_made_and_assumes_a_role(aws: Run, environment: dict[str, str]) -> None:
    user = answer(aws("iam", "create-user", "--user-name", "from-cli"))["User"]
    document = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": {"AWS": user["Arn"]}, "Action": "sts:AssumeRole"}],
        }
    )
    role = answer(aws("iam", "create-role", "--role-name", "cli", "--assume-role-policy-document", document))["Role"]
    assert role["AssumeRolePolicyDocument"] == json.loads(document)
    allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "bedrock:List*", "Resource": "*"}]}
    put = ["--role-name", "cli", "--policy-name", "list", "--policy-document", json.dumps(allow)]
    assert aws("iam", "put-role-policy", *put).returncode == 0
    key = answer(aws("iam", "create-access-key", "--user-name", "from-cli"))["AccessKey"]

    def as_user(keys: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
        given = {
            **environment,
            "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
            "AWS_SESSION_TOKEN": keys.get("SessionToken", ""),
        }
        command = [str(FOREIGN / "awscli" / "bin" / "aws"), "--output", "json", *arguments]
        return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)

    assert answer(as_user(key, "sts", "get-caller-identity"))["Arn"] == user["Arn"]
    refused = as_user(key, "bedrock", "list-imported-models")
    assert "is not authorized to perform: bedrock:ListImportedModels" in refused.stderr
    assumed = as_user(key, "sts", "assume-role", "--role-arn", role["Arn"], "--role-session-name", "from-cli")
    assert answer(as_user(answer(assumed)["Credentials"], "bedrock", "list-imported-models"))["modelSummaries"]
