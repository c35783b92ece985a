"""The control plane through real boto3: every operation that concerns imported models, in AWS's words."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.server import Server

from outcrop.awswire.service import Service

JOB_ARN = re.compile(r"arn:aws:bedrock:us-east-1:000000000000:model-import-job/[a-z0-9]{12}")
KEY_ID = "1234abcd-12ab-34cd-56ef-1234567890ab"
UNKNOWN_MODEL = "arn:aws:bedrock:us-east-1:000000000000:imported-model/abcdef123456"


@pytest.fixture(scope="module")
def bedrock(server: Server) -> Any:
    return server.client("bedrock")


@pytest.fixture(scope="module")
def failed(server: Server) -> list[str]:
    """ARNs of four jobs that failed, oldest first."""
    return [server.ended_job(server.create_job("s3://artifacts/none/", f"paged-{n}"))["jobArn"] for n in range(4)]


def refused(call: Any, code: str, status: int = 400) -> dict[str, Any]:
    """The parsed error of *call*, which must be refused with *code* and *status*."""
    with pytest.raises(ClientError) as caught:
        call()
    response: dict[str, Any] = caught.value.response
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (code, status)
    assert response["ResponseMetadata"]["RequestId"]
    return response


def names(page: dict[str, Any]) -> list[str]:
    return [row["jobName"] for row in page["modelImportJobSummaries"]]


def test_everything_a_job_was_given_is_given_back(server: Server, bedrock: Any, tiny: Path) -> None:
    vpc = {"subnetIds": ["subnet-1"], "securityGroupIds": ["sg-1"]}
    created = bedrock.create_model_import_job(
        jobName="job+with.all",
        importedModelName="with-all",
        roleArn=server.credentials.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": server.put(tiny, "with-all")}},
        vpcConfig=vpc,
        importedModelKmsKeyId=KEY_ID,
        jobTags=[{"key": "team", "value": "a b"}],
        importedModelTags=[{"key": "stage", "value": ""}],
    )

    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert created.keys() == {"jobArn", "ResponseMetadata"}
    assert JOB_ARN.fullmatch(created["jobArn"])
    running = bedrock.get_model_import_job(jobIdentifier="job+with.all")
    assert running["status"] == "Completed" or "endTime" not in running
    job = server.ended_job(created["jobArn"])
    model = bedrock.get_imported_model(modelIdentifier=job["importedModelArn"])
    key_arn = f"arn:aws:kms:us-east-1:000000000000:key/{KEY_ID}"
    assert (job["status"], job["vpcConfig"], job["importedModelKmsKeyArn"]) == ("Completed", vpc, key_arn)
    assert (model["modelKmsKeyArn"], model["jobArn"], model["jobName"]) == (key_arn, job["jobArn"], "job+with.all")
    assert "status" not in model
    assert bedrock.list_tags_for_resource(resourceARN=job["jobArn"])["tags"] == [{"key": "team", "value": "a b"}]
    assert bedrock.list_tags_for_resource(resourceARN=model["modelArn"])["tags"] == [{"key": "stage", "value": ""}]

    bedrock.delete_imported_model(modelIdentifier="with-all")
    refused(lambda: bedrock.list_tags_for_resource(resourceARN=model["modelArn"]), "ResourceNotFoundException", 404)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("jobName", "bad name!", "Value 'bad name!' at 'jobName' failed to satisfy constraint: Member must satisfy"),
        ("jobName", "j" * 64, "Member must have length less than or equal to 63"),
        ("importedModelName", "-a", "at 'importedModelName' failed"),
        ("importedModelName", "m" * 64, "Member must have length less than or equal to 63"),
        ("roleArn", "arn:aws:iam::000000000000:user/x", "at 'roleArn' failed"),
        ("roleArn", "arn:aws:iam::123456789012:role/x", "The provided role ARN is invalid"),
        ("clientRequestToken", "-", "at 'clientRequestToken' failed"),
        ("importedModelKmsKeyId", "k e y", "at 'importedModelKmsKeyId' failed"),
        ("modelDataSource", {"s3DataSource": {"s3Uri": "s3://bucket//key"}}, "modelDataSource.s3DataSource.s3Uri"),
        ("modelDataSource", {"s3DataSource": {"s3Uri": "s3://bucket/a key"}}, "modelDataSource.s3DataSource.s3Uri"),
        ("modelDataSource", {"s3DataSource": {"s3Uri": "s3://bucket/a=b"}}, "modelDataSource.s3DataSource.s3Uri"),
        ("vpcConfig", {"subnetIds": ["x"] * 17, "securityGroupIds": ["y"]}, "length less than or equal to 16"),
        ("jobTags", [{"key": "a*", "value": ""}], "at 'jobTags.1.member.key'"),
        ("jobTags", [{"key": "a", "value": "1"}, {"key": "a", "value": "2"}], "jobTags has the key 'a' more than once"),
        ("importedModelTags", [{"key": "aws:x", "value": ""}], "keys that begin with 'aws:' are reserved"),
    ],
)
def test_a_parameter_that_breaks_its_rule_is_refused_and_named(
    server: Server, bedrock: Any, field: str, value: Any, told: str
) -> None:
    given = {
        "jobName": "job-bad",
        "importedModelName": "bad",
        "roleArn": server.credentials.import_role_arn,
        "modelDataSource": {"s3DataSource": {"s3Uri": "s3://artifacts/tiny/"}},
        field: value,
    }

    error = refused(lambda: bedrock.create_model_import_job(**given), "ValidationException")["Error"]
    assert told in error["Message"]


def test_a_token_that_was_used_gives_the_first_job_whatever_else_is_asked(server: Server, bedrock: Any) -> None:
    first = server.create_job("s3://artifacts/none/", "token-a", clientRequestToken="used")

    assert server.create_job("s3://artifacts/none/", "token-b", clientRequestToken="used") == first
    refused(lambda: bedrock.get_model_import_job(jobIdentifier="job-token-b"), "ResourceNotFoundException", 404)


def test_a_repeated_call_gives_its_job_though_the_quotas_are_used_up(server: Server, bedrock: Any, model: str) -> None:
    first = server.create_job("s3://artifacts/none/", "repeated", clientRequestToken="repeated")
    quota = {"account": server.credentials.account, "quota": "imported-models"}
    server.admin("/outcrop/v1/access/quotas", "PUT", {**quota, "value": 1})
    try:
        again = server.create_job("s3://artifacts/none/", "repeated", clientRequestToken="repeated")
        refused(lambda: server.create_job("s3://artifacts/none/", "another"), "ServiceQuotaExceededException")
    finally:
        server.admin("/outcrop/v1/access/quotas", "PUT", {**quota, "value": None})

    assert again == first


def test_pages_stay_whole_while_jobs_are_added(server: Server, bedrock: Any, failed: list[str]) -> None:
    ask = {"nameContains": "paged", "maxResults": 2}
    first = bedrock.list_model_import_jobs(**ask)
    server.ended_job(server.create_job("s3://artifacts/none/", "paged-late"))
    second = bedrock.list_model_import_jobs(**ask, nextToken=first["nextToken"])

    assert names(first) + names(second) == ["job-paged-3", "job-paged-2", "job-paged-1", "job-paged-0"]
    assert "nextToken" not in second


def test_jobs_are_filtered_by_time_name_and_status_and_sorted(bedrock: Any, failed: list[str]) -> None:
    middle = bedrock.get_model_import_job(jobIdentifier=failed[1])["creationTime"]
    ask = {"nameContains": "PAGED-", "sortBy": "CreationTime", "sortOrder": "Ascending"}
    step = timedelta(milliseconds=1)

    assert names(bedrock.list_model_import_jobs(**ask, creationTimeBefore=middle + step)) == [
        "job-paged-0",
        "job-paged-1",
    ]
    assert names(bedrock.list_model_import_jobs(**ask, creationTimeAfter=middle))[0] == "job-paged-2"
    assert names(bedrock.list_model_import_jobs(**ask, statusEquals="Completed")) == []
    assert names(bedrock.list_model_import_jobs(**ask, statusEquals="Failed"))[:2] == ["job-paged-0", "job-paged-1"]


def test_models_are_listed_by_the_same_rules(bedrock: Any, model: str) -> None:
    pages = bedrock.get_paginator("list_imported_models").paginate(PaginationConfig={"PageSize": 1})
    found = [row for page in pages for row in page["modelSummaries"]]

    assert found == bedrock.list_imported_models(maxResults=1000)["modelSummaries"]
    assert model in [row["modelArn"] for row in found]
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    assert bedrock.list_imported_models(creationTimeBefore=long_ago)["modelSummaries"] == []


def test_a_token_that_is_not_ours_or_comes_with_other_filters_is_refused(bedrock: Any, failed: list[str]) -> None:
    token = bedrock.list_model_import_jobs(maxResults=1, nameContains="paged")["nextToken"]
    for given in (
        {"nextToken": "x"},
        {"nextToken": "W10="},
        {"nextToken": token[:-6] + "AAAA=="},
        {"nextToken": token},
        {"nextToken": token, "nameContains": "paged", "sortOrder": "Ascending"},
    ):
        error = refused(lambda given=given: bedrock.list_model_import_jobs(**given), "ValidationException")["Error"]
        assert "nextToken is invalid" in error["Message"]
    refused(lambda: bedrock.list_imported_models(nextToken=token, nameContains="paged"), "ValidationException")


@pytest.mark.parametrize("given", [{"maxResults": 1001}, {"statusEquals": "Paused"}, {"sortBy": "Name"}])
def test_a_list_call_out_of_range_is_refused(bedrock: Any, given: dict[str, Any]) -> None:
    refused(lambda: bedrock.list_model_import_jobs(**given), "ValidationException")


def test_a_resource_of_another_account_is_denied_and_one_of_another_region_not_found(
    bedrock: Any, model: str, failed: list[str]
) -> None:
    for change, code, status in (
        (("000000000000", "123456789012"), "AccessDeniedException", 403),
        (("us-east-1", "us-west-2"), "ResourceNotFoundException", 404),
        (("arn:aws:", "arn:aws-cn:"), "ResourceNotFoundException", 404),
    ):
        theirs, their_job = model.replace(*change), failed[0].replace(*change)
        for call in (
            lambda: bedrock.get_imported_model(modelIdentifier=theirs),  # noqa: B023  (called at once)
            lambda: bedrock.delete_imported_model(modelIdentifier=theirs),  # noqa: B023
            lambda: bedrock.get_model_import_job(jobIdentifier=their_job),  # noqa: B023
            lambda: bedrock.list_tags_for_resource(resourceARN=theirs),  # noqa: B023
        ):
            refused(call, code, status)


@pytest.mark.parametrize("kind", ["job", "model"])
def test_tags_are_put_replaced_listed_and_removed(bedrock: Any, model: str, failed: list[str], kind: str) -> None:
    arn = model if kind == "model" else failed[0]
    bedrock.tag_resource(resourceARN=arn, tags=[{"key": "a", "value": "1"}, {"key": "b", "value": "2"}])
    bedrock.tag_resource(resourceARN=arn, tags=[{"key": "a", "value": "3"}, {"key": "A", "value": "4"}])

    assert bedrock.list_tags_for_resource(resourceARN=arn)["tags"] == [
        {"key": "A", "value": "4"},
        {"key": "a", "value": "3"},
        {"key": "b", "value": "2"},
    ]
    bedrock.untag_resource(resourceARN=arn, tagKeys=["a", "A", "b", "never-there"])
    assert bedrock.list_tags_for_resource(resourceARN=arn)["tags"] == []


def test_the_fifty_first_tag_is_refused_and_nothing_of_the_call_is_kept(bedrock: Any, model: str) -> None:
    many = [{"key": f"k{n}", "value": ""} for n in range(50)]
    bedrock.tag_resource(resourceARN=model, tags=many)
    more = [{"key": "k0", "value": "changed"}, {"key": "one-more", "value": ""}]

    with pytest.raises(bedrock.exceptions.TooManyTagsException) as caught:
        bedrock.tag_resource(resourceARN=model, tags=more)
    assert caught.value.response["resourceName"] == model
    assert {"key": "k0", "value": ""} in bedrock.list_tags_for_resource(resourceARN=model)["tags"]
    bedrock.untag_resource(resourceARN=model, tagKeys=[tag["key"] for tag in many])


def test_tags_of_what_does_not_exist_are_not_found(bedrock: Any) -> None:
    guardrail = "arn:aws:bedrock:us-east-1:000000000000:guardrail/abc"
    for arn in (UNKNOWN_MODEL, UNKNOWN_MODEL.replace("imported-model", "model-import-job"), guardrail):
        refused(lambda arn=arn: bedrock.tag_resource(resourceARN=arn, tags=[]), "ResourceNotFoundException", 404)
        refused(lambda arn=arn: bedrock.untag_resource(resourceARN=arn, tagKeys=[]), "ResourceNotFoundException", 404)


def test_the_invocation_logging_configuration_makes_the_round_trip(bedrock: Any, server: Server) -> None:
    (server.home / "buckets" / "log-bucket").mkdir(parents=True, exist_ok=True)
    config = {
        "s3Config": {"bucketName": "log-bucket", "keyPrefix": "invocations"},
        "textDataDeliveryEnabled": True,
        "imageDataDeliveryEnabled": False,
    }
    assert "loggingConfig" not in bedrock.get_model_invocation_logging_configuration()

    bedrock.put_model_invocation_logging_configuration(loggingConfig=config)
    assert bedrock.get_model_invocation_logging_configuration()["loggingConfig"] == config
    bedrock.put_model_invocation_logging_configuration(loggingConfig={})
    assert bedrock.get_model_invocation_logging_configuration()["loggingConfig"] == {}
    bedrock.delete_model_invocation_logging_configuration()
    assert "loggingConfig" not in bedrock.get_model_invocation_logging_configuration()


def test_a_resource_policy_makes_the_round_trip(bedrock: Any, model: str) -> None:
    policy = json.dumps({"Version": "2012-10-17", "Statement": []}, indent=1)
    refused(lambda: bedrock.get_resource_policy(resourceArn=model), "ResourceNotFoundException", 404)

    put = bedrock.put_resource_policy(resourceArn=model, resourcePolicy=policy)
    assert (put["ResponseMetadata"]["HTTPStatusCode"], put["resourceArn"]) == (201, model)
    assert bedrock.get_resource_policy(resourceArn=model)["resourcePolicy"] == policy
    bedrock.delete_resource_policy(resourceArn=model)
    refused(lambda: bedrock.delete_resource_policy(resourceArn=model), "ResourceNotFoundException", 404)


@pytest.mark.parametrize("policy", ["{", "[]", "{}", '{"Statement":1}', "é" * 20481])
def test_a_resource_policy_that_is_none_is_refused(bedrock: Any, model: str, policy: str) -> None:
    refused(lambda: bedrock.put_resource_policy(resourceArn=model, resourcePolicy=policy), "ValidationException")


def test_a_resource_policy_of_a_model_that_does_not_exist_is_refused(bedrock: Any) -> None:
    put = lambda: bedrock.put_resource_policy(resourceArn=UNKNOWN_MODEL, resourcePolicy='{"Statement":[]}')  # noqa: E731
    refused(put, "ValidationException")


def test_who_sees_a_job_s_end_may_start_the_next_at_once(tiny: Path, tmp_path: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, imports_in_parallel=1).start()
    try:
        uri = server.put(tiny, "one-at-a-time")
        bedrock = server.client("bedrock")
        ends = []
        for number in range(8):
            arn = server.create_job(uri, f"one-{number}")
            while (status := bedrock.get_model_import_job(jobIdentifier=arn)["status"]) == "InProgress":
                pass  # asks again at once, so as to be early
            ends.append(status)
    finally:
        server.stop()

    assert ends == ["Completed"] * 8


def test_a_second_job_over_the_quota_is_refused_with_the_quotas_name(tmp_path: Path, tiny: Path) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, imports_in_parallel=1).start()
    try:
        server.create_job(server.put(tiny, "first"), "first")
        again = refused(lambda: server.create_job("s3://artifacts/first/", "second"), "ServiceQuotaExceededException")
        assert "Concurrent model import jobs" in again["Error"]["Message"]
        # What was refused left nothing behind: its names are free.
        refused(
            lambda: server.client("bedrock").get_model_import_job(jobIdentifier="job-second"),
            "ResourceNotFoundException",
            404,
        )
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("operation", "given"),
    [
        ("create_model_copy_job", {"sourceModelArn": "ARN", "targetModelName": "copy"}),
        ("create_provisioned_model_throughput", {"modelUnits": 1, "provisionedModelName": "p", "modelId": "ARN"}),
        ("create_inference_profile", {"inferenceProfileName": "p", "modelSource": {"copyFrom": "ARN"}}),
        ("create_custom_model_deployment", {"modelDeploymentName": "d", "modelArn": "ARN"}),
        (
            "create_model_invocation_job",
            {
                "jobName": "batch",
                "roleArn": "arn:aws:iam::000000000000:role/x",
                "modelId": "ARN",
                "inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://bucket/in"}},
                "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://bucket/out"}},
            },
        ),
    ],
)
def test_what_aws_refuses_for_imported_models_is_refused(
    bedrock: Any, model: str, operation: str, given: dict[str, Any]
) -> None:
    given = json.loads(json.dumps(given).replace("ARN", model))

    with pytest.raises(bedrock.exceptions.ValidationException, match=re.escape(model)):
        getattr(bedrock, operation)(**given)


def test_an_operation_that_is_not_served_says_so_by_name(server: Server, bedrock: Any) -> None:
    agent = refused(bedrock.list_guardrails, "UnknownOperationException", 501)
    assert "ListGuardrails" in agent["Error"]["Message"]
    runtime = server.client("bedrock-runtime")
    asynchronous = refused(runtime.list_async_invokes, "UnknownOperationException", 501)
    assert "ListAsyncInvokes" in asynchronous["Error"]["Message"]


def test_every_operation_of_both_services_answers_as_a_service(server: Server) -> None:
    """No operation, served or not, called with nothing in its labels, gets a page or a defect for an answer."""
    import httpx

    bearer = {"authorization": f"Bearer {server.credentials.bearer_key}"}
    with httpx.Client(base_url=server.url, headers=bearer) as client:
        for operation in (op for name in ("bedrock", "bedrock-runtime") for op in Service(name).operations.values()):
            path = re.sub(r"\{\w+\+?\}", "a", operation.uri.partition("?")[0])
            if (operation.method, path) == ("DELETE", "/logging/modelinvocations"):
                continue
            answer = client.request(operation.method, path)
            assert answer.headers["x-amzn-requestid"]
            if answer.status_code == 501:
                assert operation.name in answer.json()["message"]
                assert answer.headers["x-amzn-errortype"] == "UnknownOperationException"
            else:
                assert answer.status_code in (200, 201, 400, 404), (operation.name, answer.text)
