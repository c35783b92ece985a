"""The rest of what AWS's clients can rely on; ``docs/reference/contract.md`` lists all of it with its tests."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import make_checkpoint
from tests.support.server import Server

ROOT = Path(__file__).parents[2]
JOB_ARN = re.compile(r"arn:aws:bedrock:us-east-1:000000000000:model-import-job/[a-z0-9]{12}")


@pytest.fixture(scope="module")
def runtime(server: Server) -> Any:
    return server.client("bedrock-runtime")


def refused(call: Any, *args: Any, **params: Any) -> tuple[str, int, str]:
    """Code, status and message of a call's error."""
    with pytest.raises(ClientError) as caught:
        call(*args, **params)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Message"]


def test_every_row_of_the_contract_names_a_test_that_exists() -> None:
    rows = re.findall(
        r"^\| (\d+) \|.*`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reference/contract.md").read_text(), re.M
    )

    assert [int(number) for number, _, _ in rows] == list(range(1, 40))
    for _, file, name in rows:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M), (file, name)


def test_a_created_job_is_told_by_its_arn_alone(server: Server, tiny: Path) -> None:
    answer = server.client("bedrock").create_model_import_job(
        jobName="contract-1",
        importedModelName="contract-1",
        roleArn=server.credentials.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": server.put(tiny, "contract-1")}},
    )

    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert set(answer) == {"ResponseMetadata", "jobArn"}
    assert JOB_ARN.fullmatch(answer["jobArn"])


@pytest.mark.parametrize("uri", ["s3://artifacts/a//b/", "s3://artifacts/a b/", "s3://artifacts/a=b/", "https://a/b"])
def test_a_uri_that_breaks_its_pattern_is_refused(server: Server, uri: str) -> None:
    code, status, message = refused(server.create_job, uri, "contract-uri")

    assert (code, status) == ("ValidationException", 400)
    assert "s3Uri" in message


def test_a_job_tells_its_end_only_once_it_has_ended(server: Server, tiny: Path) -> None:
    bedrock = server.client("bedrock")
    arn = server.create_job(server.put(tiny, "contract-end"), "contract-end")
    begun = bedrock.get_model_import_job(jobIdentifier=arn)
    completed = server.ended_job(arn)
    failed = server.ended_job(server.create_job("s3://artifacts/none/", "contract-failed"))

    if begun["status"] == "InProgress":
        assert not {"endTime", "importedModelArn", "failureMessage"} & set(begun)
    assert (completed["status"], failed["status"]) == ("Completed", "Failed")
    assert {"endTime", "importedModelArn"} <= set(completed)
    assert "failureMessage" not in completed
    assert {"endTime", "failureMessage"} <= set(failed)
    assert "importedModelArn" not in failed


def test_a_model_has_no_status(server: Server, model: str) -> None:
    assert "status" not in server.client("bedrock").get_imported_model(modelIdentifier="tiny")


def test_converse_on_a_model_without_a_template_is_refused_in_aws_s_words(
    server: Server, runtime: Any, tmp_path: Path
) -> None:
    arn = server.import_model(make_checkpoint(tmp_path / "plain", has_chat_template=False), "contract-plain")
    messages = [{"role": "user", "content": [{"text": "hi"}]}]

    assert server.client("bedrock").get_imported_model(modelIdentifier=arn)["instructSupported"] is False
    for call in (runtime.converse, runtime.converse_stream):
        assert refused(call, modelId=arn, messages=messages) == (
            "ValidationException",
            400,
            "This action doesn't support the model that you provided. Try again with a supported text or chat model.",
        )


def test_converse_s_temperature_ends_at_one(runtime: Any, model: str) -> None:
    asked = {"modelId": model, "messages": [{"role": "user", "content": [{"text": "hi"}]}]}
    code, status, message = refused(runtime.converse, **asked, inferenceConfig={"temperature": 2.0})

    assert (code, status) == ("ValidationException", 400)
    assert "temperature" in message
    assert runtime.converse(**asked, inferenceConfig={"temperature": 1.0, "maxTokens": 1})["stopReason"] == "max_tokens"


def test_no_guardrail_exists(runtime: Any, model: str) -> None:
    asked = {"modelId": model, "body": json.dumps({"prompt": "x", "max_gen_len": 1})}
    halves = refused(runtime.invoke_model, **asked, guardrailIdentifier="gr1")
    applied = refused(
        runtime.apply_guardrail,
        guardrailIdentifier="gr1",
        guardrailVersion="1",
        source="INPUT",
        content=[{"text": {"text": "x"}}],
    )

    assert halves[:2] == ("ValidationException", 400)
    assert applied == (
        "ResourceNotFoundException",
        404,
        "The guardrail identifier or version provided in the request does not exist.",
    )


DOCUMENT = "Trail runs close at dusk. The hut is open in July.\n\nDogs stay on a leash."


def external(model: str, text: str | bytes = DOCUMENT, **generation: Any) -> dict[str, Any]:
    data = text.encode() if isinstance(text, str) else text
    content = {"contentType": "text/plain", "data": data, "identifier": "rules.txt"}
    sources = [{"sourceType": "BYTE_CONTENT", "byteContent": content}]
    inference = {"textInferenceConfig": {"maxTokens": 8, "temperature": 0}}
    generating = {"inferenceConfig": inference, **generation}
    return {
        "type": "EXTERNAL_SOURCES",
        "externalSourcesConfiguration": {
            "modelArn": model,
            "sources": sources,
            "generationConfiguration": generating,
        },
    }


def test_a_document_is_asked_through_an_imported_model(server: Server, model: str) -> None:
    agents = server.client("bedrock-agent-runtime")
    asked: dict[str, Any] = {
        "input": {"text": "When is the hut open?"},
        "retrieveAndGenerateConfiguration": external(model),
    }
    first = agents.retrieve_and_generate(**asked)
    second = agents.retrieve_and_generate(sessionId=first["sessionId"], **asked)

    assert first["output"]["text"]
    assert first["guardrailAction"] == "NONE"
    (citation,) = first["citations"]  # the tiny model names no passages
    part = citation["generatedResponsePart"]["textResponsePart"]
    assert part["text"] == first["output"]["text"]
    assert citation["retrievedReferences"] == []
    assert second["sessionId"] == first["sessionId"]


def test_of_a_document_longer_than_the_context_the_best_passages_are_read(server: Server, model: str) -> None:
    long = "\n\n".join(f"Paragraph {number} is about nothing much, at some length." for number in range(400))
    answer = server.client("bedrock-agent-runtime").retrieve_and_generate(
        input={"text": "What is paragraph 7 about?"}, retrieveAndGenerateConfiguration=external(model, long)
    )

    assert answer["output"]["text"]


def test_what_retrieve_and_generate_cannot_do_is_said(server: Server, model: str) -> None:
    agents = server.client("bedrock-agent-runtime")

    def said(config: dict[str, Any], **more: Any) -> tuple[str, int, str]:
        return refused(
            agents.retrieve_and_generate, input={"text": "q"}, retrieveAndGenerateConfiguration=config, **more
        )

    base = {"knowledgeBaseId": "KB12345678", "modelArn": model}
    in_s3 = external(model)
    in_s3["externalSourcesConfiguration"]["sources"] = [{"sourceType": "S3", "s3Location": {"uri": "s3://docs/a.txt"}}]

    none = said({"type": "KNOWLEDGE_BASE", "knowledgeBaseConfiguration": base})
    assert none[:2] == ("ResourceNotFoundException", 404)
    assert "KB12345678" in none[2]
    for config, more, word in (
        (in_s3, {}, "BYTE_CONTENT"),
        (external(model, b"\xff\xfe\xff"), {}, "UTF-8"),
        (external(model, "  \n"), {}, "no text"),
        (external(model, promptTemplate={"textPromptTemplate": "hi"}), {}, "$search_results$"),
        (external(model), {"sessionId": "unknown"}, "not valid"),
        (external(model, guardrailConfiguration={"guardrailId": "gr1", "guardrailVersion": "1"}), {}, "guardrail"),
    ):
        code, status, message = said(config, **more)
        assert (code, status) == ("ValidationException", 400)
        assert word in message
    assert refused(agents.retrieve, knowledgeBaseId="KB12345678", retrievalQuery={"text": "q"})[:2] == (
        "UnknownOperationException",
        501,
    )
