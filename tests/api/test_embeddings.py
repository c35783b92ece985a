"""Models that give embeddings: imported, shown, asked through InvokeModel and the OpenAI API, held to transformers."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.embedders import EMBEDDERS, TEXTS, make_embedder
from tests.support.server import Server

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "exactness" / "embeddings.json").read_text())
NAMES = {name: f"embedder-{number}" for number, name in enumerate(EMBEDDERS)}
FIRST, UNNORMALISED = NAMES["qwen3, last token, ended, bare"], NAMES["mistral, last token, bare, as computed"]


@pytest.fixture(scope="module")
def embedders(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ARN by name of every kind of embedding model."""
    folder = tmp_path_factory.mktemp("embedders")
    jobs = {
        called: server.create_job(server.put(make_embedder(folder / called, name), called), called)
        for name, called in NAMES.items()
    }
    ended = {called: server.ended_job(arn) for called, arn in jobs.items()}
    assert {job["status"] for job in ended.values()} == {"Completed"}, ended
    return {called: job["importedModelArn"] for called, job in ended.items()}


@pytest.fixture(scope="module")
def sdk(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key, max_retries=0)


@pytest.fixture(scope="module")
def runtime(server: Server) -> Any:
    return server.client("bedrock-runtime")


def invoke(runtime: Any, arn: str, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(runtime.invoke_model(modelId=arn, body=json.dumps(body))["body"].read())
    return answer


@pytest.mark.parametrize("name", EMBEDDERS)
def test_vectors_are_those_of_transformers(name: str, embedders: dict[str, str], sdk: openai.OpenAI) -> None:
    answer = sdk.embeddings.create(model=NAMES[name], input=list(TEXTS))

    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    for item, expected in zip(answer.data, RECORDED[name], strict=True):
        assert item.embedding == pytest.approx(expected, abs=2e-4 * max(map(abs, expected)))


@pytest.mark.parametrize("name", EMBEDDERS)
def test_texts_that_are_embedded_at_the_same_time_do_not_disturb_each_other(
    name: str, embedders: dict[str, str], sdk: openai.OpenAI
) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(sdk.embeddings.create, model=NAMES[name], input=text) for text in TEXTS * 6]
        found = [one.result().data[0].embedding for one in asked]

    for vector, expected in zip(found, RECORDED[name] * 6, strict=True):
        assert vector == pytest.approx(expected, abs=2e-4 * max(map(abs, expected)))


def test_floats_base64_and_token_ids_say_the_same(embedders: dict[str, str], sdk: openai.OpenAI) -> None:
    floats = sdk.embeddings.create(model=FIRST, input="for each", encoding_format="float")
    packed = sdk.embeddings.create(model=FIRST, input=["for each"], encoding_format="base64")
    ids = sdk.embeddings.create(model=FIRST, input=[[40, 41], [42]])

    unpacked = np.frombuffer(base64.b64decode(packed.data[0].embedding), dtype="<f4")  # type: ignore[arg-type]
    assert unpacked.tolist() == pytest.approx(floats.data[0].embedding)
    assert floats.usage.total_tokens == floats.usage.prompt_tokens == packed.usage.prompt_tokens > 1
    assert len(ids.data) == 2


def test_fewer_dimensions_are_the_first_ones_brought_to_unit_length(
    embedders: dict[str, str], sdk: openai.OpenAI
) -> None:
    whole = sdk.embeddings.create(model=FIRST, input="for each").data[0].embedding
    short = sdk.embeddings.create(model=FIRST, input="for each", dimensions=16).data[0].embedding

    assert np.linalg.norm(short) == pytest.approx(1)
    assert short == pytest.approx((np.array(whole[:16]) / np.linalg.norm(whole[:16])).tolist())
    with pytest.raises(openai.BadRequestError, match="dimensions must be at most 64"):
        sdk.embeddings.create(model=FIRST, input="for each", dimensions=65)


def test_invoke_model_answers_in_the_format_of_the_body(embedders: dict[str, str], runtime: Any) -> None:
    arn = embedders[FIRST]
    vllm = invoke(runtime, arn, input=["for each", "record"])
    titan = invoke(runtime, arn, inputText="for each")
    cohere = invoke(runtime, arn, texts=["for each", "record"], input_type="search_document")
    response = runtime.invoke_model(modelId=arn, body=b'{"inputText": "for each"}')

    vectors = [item["embedding"] for item in vllm["data"]]
    assert vllm["object"] == "list"
    assert vllm["model"].endswith(arn.rpartition("/")[2])
    assert titan["embedding"] == titan["embeddingsByType"]["float"] == vectors[0]
    assert cohere["embeddings"] == vectors
    assert cohere["response_type"] == "embeddings_floats"
    headers = response["ResponseMetadata"]["HTTPHeaders"]
    assert int(headers["x-amzn-bedrock-input-token-count"]) == titan["inputTextTokenCount"]


def test_a_titan_body_may_ask_for_unit_length_of_a_model_that_does_not_give_it(
    embedders: dict[str, str], runtime: Any
) -> None:
    arn = embedders[UNNORMALISED]
    own, unit = invoke(runtime, arn, inputText="for each"), invoke(runtime, arn, inputText="for each", normalize=True)

    assert np.linalg.norm(own["embedding"]) > 2
    assert np.linalg.norm(unit["embedding"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "gives embeddings"),
        ({"prompt": "x", "max_tokens": 1}, "gives embeddings"),
        ({"input": []}, "input must be"),
        ({"input": ["a", ""]}, "input must be"),
        ({"input": "x " * 600}, "context"),
        ({"inputText": "x", "embeddingTypes": ["binary"]}, "embeddingTypes"),
        ({"texts": ["x"] * 97}, "texts"),
    ],
)
def test_what_an_embedding_model_does_not_do_is_refused_by_name(
    body: dict[str, Any], said: str, embedders: dict[str, str], runtime: Any
) -> None:
    with pytest.raises(ClientError, match=said) as refused:
        invoke(runtime, embedders[FIRST], **body)
    assert refused.value.response["Error"]["Code"] == "ValidationException"


def test_a_model_that_generates_gives_no_embeddings(model: str, runtime: Any, sdk: openai.OpenAI) -> None:
    with pytest.raises(ClientError, match="generates text and gives no embeddings"):
        invoke(runtime, model, inputText="x")
    with pytest.raises(openai.BadRequestError, match="generates text and gives no embeddings"):
        sdk.embeddings.create(model="tiny", input="x")


def test_any_decoder_embeds_when_its_import_says_so(server: Server, tiny: Path, sdk: openai.OpenAI) -> None:
    tag = [{"key": "outcrop:embedding", "value": "mean"}]
    job = server.ended_job(server.create_job(server.put(tiny, "told-to-embed"), "told-to-embed", jobTags=tag))

    assert job["status"] == "Completed", job
    told = server.admin("/outcrop/v1/models/told-to-embed")
    assert told["facts"]["embedding"] == {"pooling": "mean", "normalize": True}
    shown = server.client("bedrock").get_imported_model(modelIdentifier="told-to-embed")
    assert shown["instructSupported"] is False
    vector = sdk.embeddings.create(model="told-to-embed", input="for each").data[0].embedding
    assert np.linalg.norm(vector) == pytest.approx(1)
