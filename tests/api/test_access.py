"""IAM and STS over a socket with boto3; every door held to what policies say; who is not let in learns nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import openai
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from tests.support.server import Server

ISSUER = "https://login.example.test/realm"


def policy(*actions: str, resource: Any = "*", effect: str = "Allow", **more: Any) -> str:
    made = {"Effect": effect, "Action": list(actions), "Resource": resource, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [made]})


def trust(principal: Any, action: str = "sts:AssumeRole", **more: Any) -> str:
    made = {"Effect": "Allow", "Principal": principal, "Action": action, **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [made]})


def refused(call: Any, code: str, says: str = "") -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    assert says in caught.value.response["Error"]["Message"]


@pytest.fixture(scope="module")
def signer() -> ECKey:
    return ECKey.generate_key("P-256", parameters={"kid": "one"})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, signer: ECKey) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "jwks.json"
    keys.write_text(json.dumps(KeySet([signer]).as_dict(private=False)))
    provider = {"issuer": ISSUER, "audiences": ["outcrop"], "jwks": str(keys)}
    server = Server(tmp_path_factory.mktemp("home"), cpu_threads=1, oidc_providers=json.dumps([provider])).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def iam(guarded: Server) -> Any:
    return guarded.client("iam")


@pytest.fixture(scope="module")
def imported(guarded: Server, tiny: Path) -> str:
    return guarded.import_model(tiny, "guarded")


class User:
    """A user of the server with one inline policy and clients of its own."""

    def __init__(self, server: Server, name: str, document: str | None) -> None:
        self.server, self.name = server, name
        self.iam = server.client("iam")
        self.arn: str = self.iam.create_user(UserName=name)["User"]["Arn"]
        if document is not None:
            self.put(document)
        key = self.iam.create_access_key(UserName=name)["AccessKey"]
        self.key_id = key["AccessKeyId"]
        self.keys = {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}

    def put(self, document: str) -> None:
        self.iam.put_user_policy(UserName=self.name, PolicyName="own", PolicyDocument=document)

    def client(self, service: str) -> Any:
        return self.server.client(service, **self.keys)


def session_of(server: Server, credentials: dict[str, Any]) -> dict[str, str]:
    return {
        "aws_access_key_id": credentials["AccessKeyId"],
        "aws_secret_access_key": credentials["SecretAccessKey"],
        "aws_session_token": credentials["SessionToken"],
    }


def test_a_user_lives_from_creation_to_deletion(iam: Any) -> None:
    made = iam.create_user(UserName="life", Path="/teams/red/", Tags=[{"Key": "team", "Value": "red@blue"}])["User"]
    assert made["Arn"] == "arn:aws:iam::000000000000:user/teams/red/life"
    assert iam.get_user(UserName="life")["User"]["Tags"] == [{"Key": "team", "Value": "red@blue"}]
    assert "life" in [user["UserName"] for user in iam.list_users(PathPrefix="/teams/")["Users"]]
    assert list(iam.get_paginator("list_users").paginate(PaginationConfig={"PageSize": 1}))
    refused(lambda: iam.create_user(UserName="life"), "EntityAlreadyExists")

    document = policy("s3:GetObject")
    iam.put_user_policy(UserName="life", PolicyName="read", PolicyDocument=document)
    assert iam.get_user_policy(UserName="life", PolicyName="read")["PolicyDocument"] == json.loads(document)
    assert iam.list_user_policies(UserName="life")["PolicyNames"] == ["read"]
    refused(lambda: iam.delete_user(UserName="life"), "DeleteConflict")
    refused(
        lambda: iam.put_user_policy(UserName="life", PolicyName="x", PolicyDocument="{}"), "MalformedPolicyDocument"
    )
    key = iam.create_access_key(UserName="life")["AccessKey"]
    assert "SecretAccessKey" not in iam.list_access_keys(UserName="life")["AccessKeyMetadata"][0]
    iam.delete_access_key(UserName="life", AccessKeyId=key["AccessKeyId"])
    iam.delete_user_policy(UserName="life", PolicyName="read")
    iam.untag_user(UserName="life", TagKeys=["team"])
    assert iam.list_user_tags(UserName="life")["Tags"] == []
    iam.delete_user(UserName="life")
    refused(lambda: iam.get_user(UserName="life"), "NoSuchEntity", "life")


def test_a_role_lives_from_creation_to_deletion(iam: Any) -> None:
    document = trust({"AWS": "arn:aws:iam::000000000000:root"})
    made = iam.create_role(RoleName="r", AssumeRolePolicyDocument=document, MaxSessionDuration=7200, Description="d")[
        "Role"
    ]
    assert made["AssumeRolePolicyDocument"] == json.loads(document)
    other = trust({"Service": "bedrock.amazonaws.com"})
    iam.update_assume_role_policy(RoleName="r", PolicyDocument=other)
    assert iam.get_role(RoleName="r")["Role"]["AssumeRolePolicyDocument"] == json.loads(other)
    refused(
        lambda: iam.update_assume_role_policy(RoleName="r", PolicyDocument=policy("a:b")), "MalformedPolicyDocument"
    )
    iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=policy("s3:*"))
    assert iam.list_role_policies(RoleName="r")["PolicyNames"] == ["p"]
    assert iam.list_attached_role_policies(RoleName="r")["AttachedPolicies"] == []
    iam.tag_role(RoleName="r", Tags=[{"Key": "a", "Value": "b"}])
    assert iam.list_role_tags(RoleName="r")["Tags"] == [{"Key": "a", "Value": "b"}]
    iam.delete_role_policy(RoleName="r", PolicyName="p")
    iam.delete_role(RoleName="r")
    assert "r" not in [role["RoleName"] for role in iam.list_roles()["Roles"]]


def test_a_key_is_refused_as_soon_as_it_is_disabled(guarded: Server, iam: Any) -> None:
    user = User(guarded, "rotating", policy("bedrock:ListImportedModels"))
    user.client("bedrock").list_imported_models()
    second = iam.create_access_key(UserName="rotating")["AccessKey"]
    refused(lambda: iam.create_access_key(UserName="rotating"), "LimitExceeded")

    iam.update_access_key(UserName="rotating", AccessKeyId=user.key_id, Status="Inactive")
    refused(lambda: user.client("bedrock").list_imported_models(), "UnrecognizedClientException")
    keys = {"aws_access_key_id": second["AccessKeyId"], "aws_secret_access_key": second["SecretAccessKey"]}
    guarded.client("bedrock", **keys).list_imported_models()


def test_a_bearer_key_needs_its_permission_and_ends(guarded: Server, iam: Any, imported: str) -> None:
    invoke = ["bedrock:InvokeModel", "bedrock:ListImportedModels", "bedrock:GetImportedModel"]
    user = User(guarded, "bearer", policy(*invoke))
    made = iam.create_service_specific_credential(
        UserName="bearer", ServiceName="bedrock.amazonaws.com", CredentialAgeDays=30
    )["ServiceSpecificCredential"]
    sdk = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=made["ServiceCredentialSecret"], max_retries=0)
    with pytest.raises(openai.PermissionDeniedError, match="bedrock:CallWithBearerToken"):
        sdk.models.list()

    user.put(policy(*invoke, "bedrock:CallWithBearerToken"))
    assert [model.id for model in sdk.models.list()] == ["guarded"]
    assert sdk.completions.create(model="guarded", prompt="x", max_tokens=1).choices
    with pytest.raises(openai.PermissionDeniedError, match="InvokeModelWithResponseStream"):
        list(sdk.completions.create(model="guarded", prompt="x", max_tokens=1, stream=True))
    rows = iam.list_service_specific_credentials(UserName="bearer")["ServiceSpecificCredentials"]
    assert [row["ServiceSpecificCredentialId"] for row in rows] == [made["ServiceSpecificCredentialId"]]
    iam.update_service_specific_credential(
        UserName="bearer", ServiceSpecificCredentialId=made["ServiceSpecificCredentialId"], Status="Inactive"
    )
    with pytest.raises(openai.AuthenticationError):
        sdk.models.list()


def test_every_door_asks_for_its_own_action(guarded: Server, imported: str) -> None:
    user = User(guarded, "nobody", None)
    runtime, bedrock = user.client("bedrock-runtime"), user.client("bedrock")
    sagemaker, sm_runtime = user.client("sagemaker"), user.client("sagemaker-runtime")
    says = f"User: {user.arn} is not authorized to perform: bedrock:InvokeModel on resource: {imported} because no identity"
    refused(lambda: runtime.invoke_model(modelId=imported, body="{}"), "AccessDeniedException", says)
    messages = [{"role": "user", "content": [{"text": "x"}]}]
    refused(lambda: runtime.converse(modelId="guarded", messages=messages), "AccessDeniedException", says)
    refused(
        lambda: runtime.converse_stream(modelId=imported, messages=messages),
        "AccessDeniedException",
        "bedrock:InvokeModelWithResponseStream",
    )
    refused(lambda: bedrock.list_imported_models(), "AccessDeniedException", "bedrock:ListImportedModels")
    # A model that is not there is denied in the same words as one that is.
    refused(
        lambda: bedrock.get_imported_model(modelIdentifier="nothing"), "AccessDeniedException", "imported-model/nothing"
    )
    refused(lambda: bedrock.delete_imported_model(modelIdentifier="guarded"), "AccessDeniedException", imported)
    refused(lambda: bedrock.list_model_import_jobs(), "AccessDeniedException", "bedrock:ListModelImportJobs")
    refused(lambda: sagemaker.list_endpoints(), "AccessDeniedException", "sagemaker:ListEndpoints")
    refused(lambda: sagemaker.describe_endpoint(EndpointName="e"), "AccessDeniedException", "endpoint/e")
    refused(
        lambda: sm_runtime.invoke_endpoint(EndpointName="e", Body=b"{}"),
        "AccessDeniedException",
        "sagemaker:InvokeEndpoint",
    )
    refused(lambda: user.client("iam").list_users(), "AccessDenied", "iam:ListUsers")
    refused(lambda: user.client("iam").create_access_key(UserName="admin"), "AccessDenied", "user/admin")


@pytest.mark.parametrize(
    "path", ["/metrics", "/outcrop/v1/status", "/outcrop/v1/store", "/outcrop/v1/top", "/outcrop/v1/models/guarded", "/outcrop/v1/nowhere"]
)  # fmt: skip
def test_our_own_doors_are_closed_to_who_was_not_given_them(
    guarded: Server, iam: Any, imported: str, path: str
) -> None:
    name = "own" + "".join(sign for sign in path if sign.isalnum())
    User(guarded, name, policy("bedrock:CallWithBearerToken"))
    made = iam.create_service_specific_credential(UserName=name, ServiceName="bedrock.amazonaws.com")
    secret = made["ServiceSpecificCredential"]["ServiceCredentialSecret"]
    request = urllib.request.Request(guarded.url + path, headers={"Authorization": f"Bearer {secret}"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403
    assert b"not authorized to perform: outcrop:" in caught.value.read()


def test_a_policy_narrows_to_one_model_by_arn_tag_and_address(guarded: Server, imported: str) -> None:
    user = User(guarded, "narrow", policy("bedrock:InvokeModel", resource=imported[:-3] + "*"))
    runtime, body = user.client("bedrock-runtime"), '{"prompt":"x","max_gen_len":1}'
    runtime.invoke_model(modelId=imported, body=body)
    user.put(policy("bedrock:InvokeModel", Condition={"StringEquals": {"aws:ResourceTag/stage": "live"}}))
    refused(lambda: runtime.invoke_model(modelId=imported, body=body), "AccessDeniedException")
    guarded.client("bedrock").tag_resource(resourceARN=imported, tags=[{"key": "stage", "value": "live"}])
    runtime.invoke_model(modelId=imported, body=body)
    user.put(policy("bedrock:InvokeModel", Condition={"NotIpAddress": {"aws:SourceIp": "127.0.0.0/8"}}))
    refused(lambda: runtime.invoke_model(modelId=imported, body=body), "AccessDeniedException")
    user.put(
        policy("bedrock:InvokeModel", Condition={"StringLike": {"bedrock:GuardrailIdentifier": "arn:*guardrail/g*"}})
    )
    refused(lambda: runtime.invoke_model(modelId=imported, body=body), "AccessDeniedException")
    refused(
        lambda: runtime.invoke_model(modelId=imported, body=body, guardrailIdentifier="g1", guardrailVersion="1"),
        "ValidationException",  # allowed, and there is no such guardrail
    )


def test_an_explicit_deny_on_the_model_stops_everybody(guarded: Server, imported: str) -> None:
    admin = guarded.client("bedrock")
    deny = policy("bedrock:InvokeModel", resource=imported, effect="Deny", Principal="*")
    admin.put_resource_policy(resourceArn=imported, resourcePolicy=deny)
    try:
        call = lambda: guarded.client("bedrock-runtime").invoke_model(modelId=imported, body="{}")  # noqa: E731
        refused(call, "AccessDeniedException", "with an explicit deny in a resource-based policy")
    finally:
        admin.delete_resource_policy(resourceArn=imported)


def test_who_am_i_needs_no_permission_signed_or_presigned(guarded: Server) -> None:
    user = User(guarded, "who", None)
    sts = user.client("sts")
    assert sts.get_caller_identity()["Arn"] == user.arn
    url = sts.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
    assert user.arn.encode() in urllib.request.urlopen(url, timeout=30).read()
    for broken in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.replace("GetCallerIdentity", "AssumeRole")):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(broken, timeout=30)
        assert caught.value.code == 403
    old = url.replace("X-Amz-Expires=60", "X-Amz-Expires=0")
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(old, timeout=30)


def test_a_role_is_assumed_by_whom_it_trusts_and_does_what_both_allow(guarded: Server, iam: Any, imported: str) -> None:
    user = User(guarded, "actor", None)
    iam.create_role(
        RoleName="invoker",
        AssumeRolePolicyDocument=trust({"AWS": user.arn}, Condition={"StringEquals": {"sts:ExternalId": "secret-7"}}),
    )
    iam.put_role_policy(
        RoleName="invoker", PolicyName="p", PolicyDocument=policy("bedrock:InvokeModel", "bedrock:ListImportedModels")
    )
    arn = "arn:aws:iam::000000000000:role/invoker"
    sts = user.client("sts")
    refused(lambda: sts.assume_role(RoleArn=arn, RoleSessionName="ses"), "AccessDenied", "sts:AssumeRole")
    refused(lambda: sts.assume_role(RoleArn=arn + "x", RoleSessionName="ses", ExternalId="secret-7"), "AccessDenied")
    refused(
        lambda: sts.assume_role(RoleArn=arn, RoleSessionName="ses", ExternalId="secret-7", DurationSeconds=7200),
        "ValidationError",
        "MaxSessionDuration",
    )
    given = sts.assume_role(
        RoleArn=arn, RoleSessionName="ses", ExternalId="secret-7", Policy=policy("bedrock:InvokeModel")
    )
    keys = session_of(guarded, given["Credentials"])
    assert guarded.client("sts", **keys).get_caller_identity()["Arn"].endswith("assumed-role/invoker/ses")
    guarded.client("bedrock-runtime", **keys).invoke_model(modelId=imported, body='{"prompt":"x","max_gen_len":1}')
    refused(
        lambda: guarded.client("bedrock", **keys).list_imported_models(),
        "AccessDeniedException",
        "no session policy allows",
    )
    for field, value in (
        ("aws_session_token", keys["aws_session_token"][:-4] + "AAAA"),
        ("aws_secret_access_key", "x" * 40),
    ):
        with pytest.raises(ClientError) as caught:
            guarded.client("bedrock", **{**keys, field: value}).list_imported_models()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    iam.delete_role_policy(RoleName="invoker", PolicyName="p")
    refused(
        lambda: guarded.client("bedrock-runtime", **keys).invoke_model(modelId=imported, body="{}"),
        "AccessDeniedException",
    )


def test_session_tags_and_source_identity_are_asked_for_and_count(guarded: Server, iam: Any) -> None:
    user = User(guarded, "tagger", None)
    iam.create_role(RoleName="tagged", AssumeRolePolicyDocument=trust({"AWS": user.arn}))
    condition = {"StringEquals": {"aws:PrincipalTag/team": "red", "aws:SourceIdentity": "ann"}}
    iam.put_role_policy(
        RoleName="tagged", PolicyName="p", PolicyDocument=policy("bedrock:ListImportedModels", Condition=condition)
    )
    arn, sts = "arn:aws:iam::000000000000:role/tagged", user.client("sts")
    asked = {
        "RoleArn": arn,
        "RoleSessionName": "ses",
        "Tags": [{"Key": "team", "Value": "red"}],
        "SourceIdentity": "ann",
    }
    refused(lambda: sts.assume_role(**asked), "AccessDenied", "sts:TagSession")
    iam.update_assume_role_policy(
        RoleName="tagged",
        PolicyDocument=json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"AWS": user.arn},
                        "Action": ["sts:AssumeRole", "sts:TagSession", "sts:SetSourceIdentity"],
                    }
                ],
            }
        ),
    )
    keys = session_of(guarded, sts.assume_role(**asked)["Credentials"])
    guarded.client("bedrock", **keys).list_imported_models()
    plain = sts.assume_role(RoleArn=arn, RoleSessionName="ses")["Credentials"]
    refused(
        lambda: guarded.client("bedrock", **session_of(guarded, plain)).list_imported_models(), "AccessDeniedException"
    )


def test_a_web_identity_assumes_the_role_that_trusts_its_subject(guarded: Server, iam: Any, signer: ECKey) -> None:
    host = ISSUER.removeprefix("https://")
    condition = {"StringEquals": {f"{host}:sub": "pod-1", f"{host}:aud": "outcrop"}}
    provider = {"Federated": f"arn:aws:iam::000000000000:oidc-provider/{host}"}
    iam.create_role(
        RoleName="pod",
        AssumeRolePolicyDocument=trust(provider, "sts:AssumeRoleWithWebIdentity", Condition=condition),
    )
    iam.put_role_policy(RoleName="pod", PolicyName="p", PolicyDocument=policy("bedrock:ListImportedModels"))
    sts = boto3.client(
        "sts", endpoint_url=guarded.url, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )

    def token(key: ECKey = signer, **change: Any) -> str:
        claims = {"iss": ISSUER, "sub": "pod-1", "aud": "outcrop", "exp": int(time.time()) + 600, **change}
        return jwt.encode({"alg": "ES256", "kid": "one"}, claims, key)

    def assume(text: str) -> Any:
        return sts.assume_role_with_web_identity(
            RoleArn="arn:aws:iam::000000000000:role/pod", RoleSessionName="web", WebIdentityToken=text
        )

    given = assume(token())
    assert given["SubjectFromWebIdentityToken"] == "pod-1"
    guarded.client("bedrock", **session_of(guarded, given["Credentials"])).list_imported_models()
    refused(lambda: assume(token(sub="pod-2")), "AccessDenied")
    refused(lambda: assume(token(aud="other")), "InvalidIdentityToken")
    refused(lambda: assume(token(iss="https://other.test")), "InvalidIdentityToken")
    refused(lambda: assume(token(exp=int(time.time()) - 600)), "ExpiredTokenException")
    stranger = ECKey.generate_key("P-256", parameters={"kid": "one"})
    refused(lambda: assume(token(stranger)), "InvalidIdentityToken")
    refused(lambda: assume("a.b.c"), "InvalidIdentityToken")
    refused(lambda: sts.get_caller_identity(), "MissingAuthenticationToken")


def test_passing_a_role_to_an_import_job_needs_its_own_permission(guarded: Server) -> None:
    user = User(guarded, "importer", policy("bedrock:CreateModelImportJob"))
    role = guarded.credentials.import_role_arn
    asked = {
        "jobName": "pass",
        "importedModelName": "pass",
        "roleArn": role,
        "modelDataSource": {"s3DataSource": {"s3Uri": "s3://artifacts/none/"}},
    }
    refused(
        lambda: user.client("bedrock").create_model_import_job(**asked),
        "AccessDeniedException",
        f"iam:PassRole on resource: {role}",
    )


@pytest.mark.parametrize(
    "header", ["", "Bearer", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=a/b", "é", "Basic YTpi"]
)
def test_a_broken_authorization_header_is_told_in_the_dialect_of_the_door(guarded: Server, header: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if header:
        headers["Authorization"] = header.encode().decode("latin-1")
    request = urllib.request.Request(guarded.url + "/", b"Action=ListUsers&Version=2010-05-08", headers, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code in (400, 403)
    assert b"<ErrorResponse><Error><Type>Sender</Type>" in caught.value.read()


def test_a_job_reads_a_bucket_as_its_role_and_a_denial_names_what_is_missing(
    guarded: Server, iam: Any, tiny: Path
) -> None:
    uri = guarded.put(tiny, "as-role")
    arn = "arn:aws:iam::000000000000:role/reader"

    def ended() -> str:
        job = guarded.ended_job(guarded.create_job(uri, f"as-role-{time.monotonic_ns()}", role=arn))
        return str(job.get("failureMessage") or job["status"])

    def told() -> str:
        with pytest.raises(ClientError) as refused:
            guarded.create_job(uri, "as-nobody", role=arn)
        assert refused.value.response["Error"]["Code"] == "ValidationException"
        return str(refused.value)

    assert "does not exist" in told()
    iam.create_role(RoleName="reader", AssumeRolePolicyDocument=trust({"AWS": "arn:aws:iam::000000000000:root"}))
    assert "trust policy does not let bedrock.amazonaws.com assume it" in told()
    elsewhere = trust({"Service": "bedrock.amazonaws.com"}, Condition={"StringEquals": {"aws:SourceAccount": "1" * 12}})
    iam.update_assume_role_policy(RoleName="reader", PolicyDocument=elsewhere)
    assert "for account 000000000000" in told()
    jobs = guarded.client("bedrock").list_model_import_jobs(nameContains="as-nobody")["modelImportJobSummaries"]
    assert jobs == []
    condition = {
        "StringEquals": {"aws:SourceAccount": "000000000000"},
        "ArnLike": {"aws:SourceArn": "arn:aws:bedrock:*:*:model-import-job/*"},
    }
    trusted = trust({"Service": "bedrock.amazonaws.com"}, Condition=condition)
    iam.update_assume_role_policy(RoleName="reader", PolicyDocument=trusted)
    assert "s3:ListBucket on resource: arn:aws:s3:::artifacts because no identity-based policy" in ended()
    listing = json.loads(policy("s3:ListBucket", resource="arn:aws:s3:::artifacts"))
    iam.put_role_policy(RoleName="reader", PolicyName="p", PolicyDocument=json.dumps(listing))
    assert "s3:GetObject on resource: arn:aws:s3:::artifacts/as-role/" in ended()
    listing["Statement"] += json.loads(policy("s3:GetObject", resource="arn:aws:s3:::artifacts/as-role/*"))["Statement"]
    iam.put_role_policy(RoleName="reader", PolicyName="p", PolicyDocument=json.dumps(listing))
    assert ended() == "Completed"


def test_another_account_sees_nothing_until_both_sides_allow_it(
    guarded: Server, imported: str, tiny: Path, run: Any
) -> None:
    theirs = json.loads(run("access", "accounts", "create", "222222222222", "--json"))
    keys = {"aws_access_key_id": theirs["access_key_id"], "aws_secret_access_key": theirs["secret_access_key"]}
    bedrock, runtime = guarded.client("bedrock", **keys), guarded.client("bedrock-runtime", **keys)
    body = '{"prompt":"x","max_gen_len":1}'
    assert bedrock.list_imported_models()["modelSummaries"] == []
    refused(
        lambda: runtime.invoke_model(modelId=imported, body=body), "AccessDeniedException", "no resource-based policy"
    )
    refused(lambda: bedrock.get_imported_model(modelIdentifier=imported), "AccessDeniedException")
    admin = guarded.client("bedrock")
    allow = policy("bedrock:InvokeModel", resource=imported, Principal={"AWS": "222222222222"})
    admin.put_resource_policy(resourceArn=imported, resourcePolicy=allow)
    try:
        assert runtime.invoke_model(modelId=imported, body=body)["body"].read()
        refused(lambda: bedrock.delete_imported_model(modelIdentifier=imported), "AccessDeniedException")
    finally:
        admin.delete_resource_policy(resourceArn=imported)
    # What is everybody's is the installation's own account's alone, whatever another one's policies say.
    request = urllib.request.Request(
        guarded.url + "/metrics", headers={"Authorization": f"Bearer {theirs['bearer_key']}"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 403

    uri = guarded.put(tiny, "shared")
    asked = {"roleArn": theirs["import_role_arn"], "modelDataSource": {"s3DataSource": {"s3Uri": uri}}}

    def ended(name: str) -> str:
        arn = bedrock.create_model_import_job(jobName=name, importedModelName=name, **asked)["jobArn"]
        until = time.monotonic() + 60
        while (job := bedrock.get_model_import_job(jobIdentifier=arn))["status"] == "InProgress":
            assert time.monotonic() < until
            time.sleep(0.05)
        return str(job.get("failureMessage") or job["status"])

    assert "because no resource-based policy allows the s3:ListBucket action" in ended("theirs-1")
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": theirs["import_role_arn"]},
        "Action": ["s3:ListBucket", "s3:GetObject"],
        "Resource": ["arn:aws:s3:::artifacts", "arn:aws:s3:::artifacts/shared/*"],
    }
    document = guarded.home / "bucket.json"
    document.write_text(json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    run("access", "buckets", "set", "artifacts", "--account", "000000000000", "--policy", str(document))
    assert ended("theirs-2") == "Completed"
    assert [model["modelName"] for model in bedrock.list_imported_models()["modelSummaries"]] == ["theirs-2"]


def test_the_commands_make_users_and_say_which_statement_decided(guarded: Server, imported: str, run: Any) -> None:
    made = json.loads(run("access", "users", "create", "cli", "--json"))
    document = guarded.home / "policy.json"
    document.write_text(
        policy("bedrock:InvokeModel", resource=imported, Condition={"Bool": {"aws:SecureTransport": "true"}})
    )
    run("access", "policies", "put", "cli", "invoke", str(document))
    assert json.loads(run("access", "policies", "get", "cli", "invoke")) == json.loads(document.read_text())
    asking = ["access", "explain", "--as", made["arn"], "--action", "bedrock:InvokeModel", "--resource", imported]
    assert "because no identity-based policy allows" in run(*asking, status=1)
    allowed = run(*asking, "--context", "aws:SecureTransport=true")
    assert "invoke, statement 1" in allowed
    assert "No door asks" in run(*asking[:5], "bedrock:Invoke", status=2)
    assert "cli" in run("access", "users", "list")
    bearer = json.loads(run("access", "keys", "create", "cli", "--bearer", "--days", "3", "--json"))
    assert bearer["expires"]
    rows = json.loads(run("access", "keys", "list", "cli", "--json"))
    assert {row["kind"] for row in rows} == {"access key", "bearer key"}
    for row in rows:
        run("access", "keys", "set", "cli", row["id"], "inactive")
    assert {row["status"] for row in json.loads(run("access", "keys", "list", "cli", "--json"))} == {"Inactive"}
    run("access", "boundary", "cli", str(document))
    run("access", "boundary", "cli")
    run("access", "users", "delete", "cli")
    assert "cli" not in [user["UserName"] for user in json.loads(run("access", "users", "list", "--json"))]


@pytest.fixture(scope="module")
def run(guarded: Server) -> Any:
    """Runs ``outcrop`` against the server; what it printed."""

    def command(*words: str, status: int = 0) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "outcrop.cli.main", *words, "--home", str(guarded.home)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == status, ended.stderr + ended.stdout
        return ended.stdout if status < 2 else ended.stderr

    return command


def test_quotas_throttle_and_are_shown(guarded: Server, imported: str, tiny: Path, run: Any) -> None:
    user = User(guarded, "limited", policy("bedrock:InvokeModel"))
    runtime, body = user.client("bedrock-runtime"), '{"prompt":"x","max_gen_len":1}'
    run("access", "quotas", "set", "requests-per-minute", "2", "--principal", user.arn)
    runtime.invoke_model(modelId=imported, body=body)
    runtime.invoke_model(modelId="guarded", body=body)
    with pytest.raises(ClientError) as caught:
        runtime.invoke_model(modelId=imported, body=body)
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    assert "requests-per-minute" in caught.value.response["Error"]["Message"]
    assert int(caught.value.response["ResponseMetadata"]["HTTPHeaders"]["retry-after"]) > 0
    rows = json.loads(run("access", "quotas", "list", "--json"))
    assert [(row["quota"], row["principal"], row["value"]) for row in rows] == [("requests-per-minute", user.arn, 2)]
    run("access", "quotas", "set", "requests-per-minute", "none", "--principal", user.arn)
    runtime.invoke_model(modelId=imported, body=body)

    run("access", "quotas", "set", "imported-models", "0")
    try:
        refused(lambda: guarded.create_job(guarded.put(tiny, "one-more"), "one-more"), "ServiceQuotaExceededException")
    finally:
        run("access", "quotas", "set", "imported-models", "none")
    assert json.loads(run("access", "quotas", "list", "--json")) == []
