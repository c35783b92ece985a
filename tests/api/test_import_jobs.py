"""Import jobs through real boto3: what works, and what each broken checkpoint is told."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from tests.support.checkpoints import (
    copy_of,
    drop_tensor,
    fill_nan,
    make_checkpoint,
    set_config,
    truncate_shard,
)
from tests.support.server import Server
from tests.support.split_tokenizer import split_tokenizer


def test_an_imported_model_is_described_as_aws_describes_it(server: Server, model: str) -> None:
    found = server.client("bedrock").get_imported_model(modelIdentifier=model)

    assert found["modelName"] == "tiny"
    assert found["modelArchitecture"] == "qwen2"
    assert found["instructSupported"] is True
    assert found["customModelUnits"] == {"customModelUnitsPerModelCopy": 1, "customModelUnitsVersion": "v1.0"}
    assert found["modelDataSource"]["s3DataSource"]["s3Uri"] == "s3://artifacts/tiny/"


def test_jobs_and_models_are_found_by_name_and_listed(server: Server, model: str) -> None:
    bedrock = server.client("bedrock")
    job = bedrock.get_model_import_job(jobIdentifier="job-tiny")

    assert job["status"] == "Completed"
    assert job["importedModelArn"] == model
    assert job["endTime"] >= job["creationTime"]
    assert "job-tiny" in [row["jobName"] for row in bedrock.list_model_import_jobs()["modelImportJobSummaries"]]
    found = bedrock.list_imported_models(nameContains="tin")["modelSummaries"]
    assert model in [row["modelArn"] for row in found]
    assert all("tin" in row["modelName"] for row in found)


def test_pages_of_one_walk_every_job(server: Server, model: str) -> None:
    bedrock = server.client("bedrock")
    whole = bedrock.list_model_import_jobs(maxResults=1000)["modelImportJobSummaries"]
    pages = bedrock.get_paginator("list_model_import_jobs").paginate(PaginationConfig={"PageSize": 1})

    assert [row for page in pages for row in page["modelImportJobSummaries"]] == whole


def test_a_llama_checkpoint_imports_and_answers(server: Server, tmp_path: Path) -> None:
    arn = server.import_model(make_checkpoint(tmp_path / "llama", "llama"), "tiny-llama")

    body = '{"prompt":"for each record","max_gen_len":4}'
    answer = server.client("bedrock-runtime").invoke_model(modelId=arn, body=body)

    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amzn-bedrock-output-token-count"] == "4"


def test_a_checkpoint_with_vocab_json_and_merges_txt_imports_and_answers_the_same(
    server: Server, model: str, tiny: Path, tmp_path: Path
) -> None:
    arn = server.import_model(split_tokenizer(tiny, tmp_path / "split"), "tiny-split")
    client, body = server.client("bedrock-runtime"), '{"prompt":"for each record","max_gen_len":8,"temperature":0}'

    answers = [client.invoke_model(modelId=name, body=body)["body"].read() for name in (arn, model)]

    assert answers[0] == answers[1]


def test_the_same_client_token_gives_the_same_job(server: Server, tiny: Path) -> None:
    uri = server.put(tiny, "token")
    first = server.create_job(uri, "token", clientRequestToken="once")

    assert server.create_job(uri, "token", clientRequestToken="once") == first
    assert server.ended_job(first)["status"] == "Completed"


def test_a_name_that_is_taken_is_a_conflict(server: Server, model: str) -> None:
    with pytest.raises(ClientError) as refused:
        server.create_job("s3://artifacts/tiny/", "tiny")

    assert refused.value.response["Error"]["Code"] == "ConflictException"
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_a_job_with_bad_parameters_is_refused_with_every_problem_named(server: Server) -> None:
    with pytest.raises(ClientError) as refused:
        server.create_job("s3://artifacts//x y", "-bad")

    error = refused.value.response["Error"]
    assert error["Code"] == "ValidationException"
    assert "'importedModelName'" in error["Message"]
    assert "s3Uri" in error["Message"]


def test_models_of_the_same_weights_share_one_artefact_until_the_last_is_deleted(server: Server, tiny: Path) -> None:
    arns = [server.import_model(tiny, f"same-weights-{number}") for number in (1, 2)]
    folders = [server.home / "store" / "models" / arn.rsplit("/", 1)[1] for arn in arns]
    body = '{"prompt":"x","max_gen_len":4,"temperature":0}'
    ask = functools.partial(server.client("bedrock-runtime").invoke_model, body=body)

    shared = next(entry for entry in server.admin("/outcrop/v1/store")["shared"] if entry["file"] == "model.gguf")
    artifacts = [(folder / "model.gguf").stat().st_ino for folder in folders]
    answers = [ask(modelId=arn)["body"].read() for arn in arns]
    server.client("bedrock").delete_imported_model(modelIdentifier=arns[0])

    assert artifacts[0] == artifacts[1]
    assert {"same-weights-1", "same-weights-2"} <= set(shared["models"])
    assert answers[0] == answers[1] == ask(modelId=arns[1])["body"].read()


def test_the_next_check_rests_on_what_imports_took_here(server: Server, model: str, tiny: Path) -> None:
    argv = [sys.executable, "-m", "outcrop.cli.main", "check", str(tiny), "--home", str(server.home), "--json"]

    told = json.loads(subprocess.run(argv, capture_output=True, check=True, timeout=60).stdout)

    assert told["expected_from_jobs"] > 0


def test_a_deleted_model_is_gone_everywhere(server: Server, tiny: Path) -> None:
    arn = server.import_model(tiny, "short-lived")
    bedrock = server.client("bedrock")
    server.client("bedrock-runtime").invoke_model(modelId=arn, body='{"prompt":"x","max_gen_len":1}')

    bedrock.delete_imported_model(modelIdentifier="short-lived")

    with pytest.raises(bedrock.exceptions.ResourceNotFoundException):
        bedrock.get_imported_model(modelIdentifier=arn)
    with pytest.raises(ClientError, match="ResourceNotFound"):
        server.client("bedrock-runtime").invoke_model(modelId=arn, body='{"prompt":"x"}')
    assert arn not in [copy["model_arn"] for copy in server.status()["copies"]]
    assert not (server.home / "store" / "models" / arn.rsplit("/", 1)[1]).exists()


@pytest.mark.parametrize(
    ("name", "break_it", "told"),
    [
        ("truncated", truncate_shard, "1000 bytes are missing"),
        (
            "no-tensor",
            lambda folder: drop_tensor(folder, "model.layers.1.mlp.up_proj.weight"),
            "Tensor model.layers.1.mlp.up_proj.weight [128, 64] is missing",
        ),
        (
            "nan",
            lambda folder: fill_nan(folder, "model.layers.0.mlp.up_proj.weight"),
            "model.layers.0.mlp.up_proj.weight holds values that are not finite",
        ),
        (
            "unknown",
            lambda folder: set_config(folder, model_type="bloom", architectures=["BloomForCausalLM"]),
            "does not support the architecture (bloom)",
        ),
        ("no-tokenizer", lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        ("quantised", lambda folder: set_config(folder, quantization_config={"quant_method": "gptq"}), "gptq"),
        ("wrong-shape", lambda folder: set_config(folder, intermediate_size=96), "config.json implies [96, 64]"),
    ],
)
def test_a_broken_checkpoint_fails_its_job_and_says_why(
    server: Server, tiny: Path, tmp_path: Path, name: str, break_it: Callable[[Path], object], told: str
) -> None:
    folder = copy_of(tiny, tmp_path / name)
    break_it(folder)

    job = server.ended_job(server.create_job(server.put(folder, name), name))

    assert job["status"] == "Failed"
    assert told in job["failureMessage"]
    assert "importedModelArn" not in job
    assert name not in [row["modelName"] for row in server.client("bedrock").list_imported_models()["modelSummaries"]]
    assert not list((server.home / "store" / "staging").glob("*"))


def test_a_prefix_that_does_not_exist_fails_the_job_and_names_it(server: Server) -> None:
    job = server.ended_job(server.create_job("s3://artifacts/nowhere/", "nowhere"))

    assert "s3://artifacts/nowhere/" in job["failureMessage"]


def test_a_key_with_dots_never_leaves_the_buckets(server: Server) -> None:
    job = server.ended_job(server.create_job("s3://artifacts/../../store", "dots"))

    assert "No checkpoint was found" in job["failureMessage"]
