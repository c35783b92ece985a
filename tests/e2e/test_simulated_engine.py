"""A model on the simulated engine: through the real doors, with an engine's times and made-up words."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import openai
import pytest
from botocore.exceptions import ClientError
from tests.support.load import Load
from tests.support.server import Server, wait_for

COST = {
    "level": "virtual-time",
    "request_s": 0.05,
    "prompt_token_s": 0.0,
    "token_s": 0.01,
    "interference": 0.1,
}
CALIBRATION = {"cost": COST, "slots": 4, "kv_tokens": 100_000, "start_s": 0.3, "answer_tokens": 40.0}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Server, str]]:
    """A server whose model "planned" is simulated, on a machine with a single core for copies; its ARN."""
    folder = tmp_path_factory.mktemp("simulated")
    (folder / "copy.json").write_text(json.dumps(CALIBRATION))
    server = Server(
        folder / "home",
        engine_by_model='{"planned": "simulated"}',
        simulated=json.dumps({"calibration": str(folder / "copy.json"), "seed": 7}),
        cpu_cores=1,
    ).start()
    yield server, server.import_model(tiny, "planned")
    server.stop()


def invoke(server: Server, arn: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    answer = server.client("bedrock-runtime").invoke_model(modelId=arn, body=json.dumps(body))
    return json.loads(answer["body"].read()), answer["ResponseMetadata"]["HTTPHeaders"]


def test_every_answer_says_that_it_is_simulated(served: tuple[Server, str]) -> None:
    server, arn = served
    runtime = server.client("bedrock-runtime")
    said = [invoke(server, arn, CHAT)[1]]
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    answers = [
        runtime.converse(modelId=arn, messages=messages),
        runtime.invoke_model_with_response_stream(modelId=arn, body=json.dumps(CHAT)),
        runtime.count_tokens(modelId=arn, input={"converse": {"messages": messages}}),
    ]
    said += [answer["ResponseMetadata"]["HTTPHeaders"] for answer in answers]
    with pytest.raises(ClientError) as refused:
        invoke(server, arn, {**CHAT, "response_format": {"type": "json_object"}})
    said.append(refused.value.response["ResponseMetadata"]["HTTPHeaders"])
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key)
    said.append(dict(client.chat.completions.with_raw_response.create(model="planned", **CHAT).headers))  # type: ignore[call-overload]

    assert [headers.get("x-outcrop-engine") for headers in said] == ["simulated"] * len(said)
    assert "(simulated)" in str(refused.value)


def test_it_is_imported_without_a_conversion_and_takes_no_core(served: tuple[Server, str]) -> None:
    server, arn = served
    invoke(server, arn, CHAT)
    told = server.admin("/outcrop/v1/models/planned")
    (copy,) = server.status()["copies"]

    assert told["facts"]["engine"] == "simulated"
    assert "converting" not in told["timings"]
    assert told["facts"]["proof"]["load_s"] > 0.3  # the calibration's start
    assert (copy["threads"], copy["slots"]) == (0, 4)


def test_the_same_seed_gives_the_same_answer_and_lengths_are_kept(served: tuple[Server, str]) -> None:
    server, arn = served
    one, two = (invoke(server, arn, CHAT)[0] for _ in range(2))
    other = invoke(server, arn, {**CHAT, "seed": 1})[0]
    free = invoke(server, arn, {**CHAT, "max_tokens": 500})[0]
    forced = invoke(server, arn, {**CHAT, "max_tokens": 60, "ignore_eos": True})[0]

    text = one["choices"][0]["message"]["content"]
    assert text == two["choices"][0]["message"]["content"] != other["choices"][0]["message"]["content"]
    assert (one["usage"]["completion_tokens"], one["choices"][0]["finish_reason"]) == (8, "length")
    assert len(text.split()) == 8
    assert free["choices"][0]["finish_reason"] == "stop"
    assert forced["usage"]["completion_tokens"] == 60


def test_a_stream_brings_a_token_at_a_time_and_takes_the_time_of_its_calibration(served: tuple[Server, str]) -> None:
    server, _ = served
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.credentials.bearer_key)
    begun = time.monotonic()
    with client.chat.completions.create(
        model="planned", stream=True, stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        messages=[{"role": "user", "content": "x" * 396}], max_tokens=50,
    ) as stream:  # fmt: skip
        chunks = list(stream)
    took = time.monotonic() - begun

    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len("".join(words).split()) == 50
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (103, 50)
    assert took >= 0.05 + 50 * 0.01


def test_a_client_that_leaves_frees_its_slot(served: tuple[Server, str]) -> None:
    server, arn = served
    body = json.dumps({**CHAT, "max_tokens": 400, "ignore_eos": True})
    streams = [
        server.client("bedrock-runtime").invoke_model_with_response_stream(modelId=arn, body=body)["body"]
        for _ in range(4)
    ]
    for stream in streams:
        next(iter(stream))
        stream.close()

    wait_for(lambda: all(copy["in_flight"] == 0 for copy in server.status()["copies"]), 3)
    assert invoke(server, arn, CHAT)[0]["usage"]["completion_tokens"] == 8


def test_a_deletion_is_done_to_its_end_although_its_caller_left(served: tuple[Server, str], tiny: Path) -> None:
    server, _ = served
    tags = [{"key": "outcrop:engine", "value": "simulated"}]
    job = server.ended_job(server.create_job(server.put(tiny, "leaving"), "leaving", jobTags=tags))
    arn = job["importedModelArn"]
    files = server.home / "store" / "models" / arn.rpartition("/")[2]
    body = json.dumps({**CHAT, "max_tokens": 400, "ignore_eos": True})
    running = server.client("bedrock-runtime").invoke_model_with_response_stream(modelId=arn, body=body)["body"]
    next(iter(running))

    parts = urlsplit(server.url)
    caller = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    headers = {"Authorization": f"Bearer {server.credentials.bearer_key}"}
    caller.request("DELETE", f"/imported-models/{quote(arn, safe='')}", headers=headers)
    wait_for(lambda: "leaving" not in {row["model_name"] for row in server.status()["models"]})
    assert files.exists()  # its copy has a request to end
    caller.close()
    time.sleep(0.2)  # the server hears that the caller left
    running.close()

    wait_for(lambda: not files.exists())


def test_a_prompt_beyond_the_context_is_the_callers_error(served: tuple[Server, str]) -> None:
    server, arn = served

    with pytest.raises(ClientError, match="context holds 512 tokens"):
        invoke(server, arn, {"prompt": "word " * 2000, "max_tokens": 1})


def test_a_model_that_nobody_put_on_it_is_not_simulated(served: tuple[Server, str], tiny: Path) -> None:
    server, _ = served
    arn = server.import_model(tiny, "unplanned")

    assert invoke(server, arn, CHAT)[1]["x-outcrop-engine"] == "llama.cpp"


def test_a_model_on_an_engine_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    server = Server(tmp_path / "home", engine_by_model='{"*": "warp-drive"}')

    with pytest.raises(AssertionError, match="engine_by_model puts '\\*' on 'warp-drive'"):
        server.start()


def test_a_model_can_be_put_on_another_engine_and_back_and_says_why_it_is_on_it(
    served: tuple[Server, str], tiny: Path
) -> None:
    server, _ = served
    arn = server.import_model(tiny, "moved")
    chosen = server.admin("/outcrop/v1/models/moved")["engine"]
    put = server.patch("/outcrop/v1/models/moved", {"engine": "simulated"})["engine"]
    simulated = invoke(server, arn, CHAT)[1]["x-outcrop-engine"]
    with Load(server, [arn], closed=2, open_s=None, tokens=8) as load:
        wait_for(lambda: load.total >= 5)
        back = server.patch("/outcrop/v1/models/moved", {"engine": None})["engine"]
        wait_for(lambda: invoke(server, arn, CHAT)[1]["x-outcrop-engine"] == "llama.cpp")
        rolled = load.total
        wait_for(lambda: load.total >= rolled + 5)

    assert chosen["name"] == "llama.cpp"
    assert chosen["reasons"][0] == "llama.cpp: the first that serves it here (CPU)"
    assert any(reason.startswith("vllm: ") for reason in chosen["reasons"])
    assert (put["name"], simulated) == ("simulated", "simulated")
    assert "an operator put the model on it" in put["reasons"][0]
    assert back == chosen
    assert not load.failed
    assert not load.broken


def test_a_model_is_not_put_where_it_cannot_run(served: tuple[Server, str]) -> None:
    server, arn = served

    with pytest.raises(urllib.error.HTTPError) as refused:
        server.patch("/outcrop/v1/models/planned", {"engine": "llama.cpp"})
    assert b"needs an artefact of its own" in refused.value.read()
    assert invoke(server, arn, CHAT)[1]["x-outcrop-engine"] == "simulated"


def test_an_import_may_name_its_engine(served: tuple[Server, str], tiny: Path) -> None:
    server, _ = served
    bedrock = server.client("bedrock")
    uri = server.put(tiny, "named")
    job = server.ended_job(server.create_job(uri, "named", jobTags=[{"key": "outcrop:engine", "value": "simulated"}]))
    with pytest.raises(ClientError, match=r"outcrop:engine is 'warp-drive'; the engines here are llama\.cpp"):
        server.create_job(uri, "refused", jobTags=[{"key": "outcrop:engine", "value": "warp-drive"}])

    assert job["status"] == "Completed"
    assert server.admin("/outcrop/v1/models/named")["engine"]["name"] == "simulated"
    bedrock.delete_imported_model(modelIdentifier="named")
