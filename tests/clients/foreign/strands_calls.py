"""Strands agents, instructor, and aioboto3, whose older botocore signs and retries as clients of last year do."""

from __future__ import annotations

import json
from typing import Any, Literal

import aioboto3
import boto3
import botocore
import instructor
from botocore.config import Config
from instructor import Mode
from openai import OpenAI
from pydantic import BaseModel
from report import ABSENT, BEARER_KEY, MODEL, TOOL_MODEL, URL, WEATHER, report
from strands import Agent, tool
from strands.models import BedrockModel
from strands.models.openai import OpenAIModel

ASKED = "for each record"
LETTERS = list("etaoinshrdlu ")  # one of them ends an answer soon


class Weather(BaseModel):
    """How the weather is."""

    city: Literal["Paris"]


@tool
def get_weather(city: str) -> str:
    """Say how the weather is.

    Args:
        city: Where.
    """
    return f"{city}: sunny"


def model(arn: str = MODEL, **more: Any) -> BedrockModel:
    return BedrockModel(model_id=arn, endpoint_url=URL, **{"temperature": 0.0, "max_tokens": 6, **more})


def strands_stream() -> Any:
    return _answered(Agent(model=model(stop_sequences=LETTERS), callback_handler=None, system_prompt="Be brief."))


def strands_whole() -> Any:
    whole = model(stop_sequences=LETTERS, streaming=False)
    return _answered(Agent(model=whole, callback_handler=None, system_prompt="Be brief."))


def strands_structured() -> Any:
    agent = Agent(model=model(TOOL_MODEL, max_tokens=60), callback_handler=None)
    return agent.structured_output(Weather, ASKED).city


def strands_cut() -> Any:
    return _answered(Agent(model=model(), callback_handler=None))


def strands_tool_result() -> Any:
    """A conversation that already holds a call and its result."""
    use = {"toolUseId": "tooluse_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"toolUseId": "tooluse_1", "status": "success", "content": [{"text": "sunny"}]}
    messages = [
        {"role": "user", "content": [{"text": ASKED}]},
        {"role": "assistant", "content": [{"toolUse": use}]},
        {"role": "user", "content": [{"toolResult": result}]},
    ]
    agent = Agent(
        model=model(TOOL_MODEL, stop_sequences=LETTERS),
        tools=[get_weather],
        messages=messages,
        callback_handler=None,
    )
    return _answered(agent)


def strands_unknown_model() -> Any:
    return str(Agent(model=model(ABSENT), callback_handler=None)(ASKED))


def strands_openai() -> Any:
    chosen = OpenAIModel(
        client_args={"base_url": f"{URL}/v1", "api_key": BEARER_KEY},
        model_id="roomy",
        params={"max_tokens": 6, "temperature": 0, "stop": LETTERS[:4]},
    )
    return _answered(Agent(model=chosen, callback_handler=None, system_prompt="Be brief."))


def _answered(agent: Agent) -> Any:
    result = agent(ASKED)
    return {"stop": result.stop_reason, "text": str(result), "tokens": result.metrics.accumulated_usage["outputTokens"]}


def _client() -> Any:
    config = Config(retries={"total_max_attempts": 1})
    return aioboto3.Session().client("bedrock-runtime", endpoint_url=URL, config=config)


async def aio_invoke() -> Any:
    async with _client() as client:
        body = json.dumps({"prompt": ASKED, "max_gen_len": 5, "temperature": 0})
        answer = await client.invoke_model(modelId=MODEL, body=body)
        return json.loads(await answer["body"].read())["generation"]


async def aio_invoke_stream() -> Any:
    async with _client() as client:
        body = json.dumps({"prompt": ASKED, "max_gen_len": 5, "temperature": 0})
        answer = await client.invoke_model_with_response_stream(modelId=MODEL, body=body)
        return [json.loads(event["chunk"]["bytes"]) async for event in answer["body"]]


def _asked(arn: str = MODEL, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": [{"text": ASKED}]}]
    return {"modelId": arn, "messages": messages, "inferenceConfig": {"maxTokens": 6, "temperature": 0.0}, **more}


async def aio_converse() -> Any:
    async with _client() as client:
        answer = await client.converse(**_asked())
        return {"text": answer["output"]["message"]["content"][0]["text"], "stop": answer["stopReason"]}


async def aio_converse_stream() -> Any:
    async with _client() as client:
        events = [event async for event in (await client.converse_stream(**_asked()))["stream"]]
        return "".join(e["contentBlockDelta"]["delta"]["text"] for e in events if "contentBlockDelta" in e)


async def aio_forced_tool() -> Any:
    async with _client() as client:
        spec = {"toolSpec": {"name": "get_weather", "inputSchema": {"json": WEATHER}}}
        config = {"tools": [spec], "toolChoice": {"any": {}}}
        answer = await client.converse(**_asked(TOOL_MODEL, toolConfig=config) | {"inferenceConfig": {}})
        return answer["output"]["message"]["content"][-1]["toolUse"]["input"]


async def aio_unknown_model() -> Any:
    async with _client() as client:
        return await client.converse(**_asked(ABSENT))


def instructor_tools() -> Any:
    client = instructor.from_bedrock(boto3.client("bedrock-runtime", endpoint_url=URL), mode=Mode.BEDROCK_TOOLS)
    messages = [{"role": "user", "content": [{"text": ASKED}]}]
    return client.chat.completions.create(
        modelId=TOOL_MODEL, messages=messages, response_model=Weather, max_retries=0
    ).city


def _instructor(name: str, mode: Mode) -> Any:
    client = instructor.from_openai(OpenAI(base_url=f"{URL}/v1", api_key=BEARER_KEY), mode=mode)
    messages = [{"role": "user", "content": ASKED}]
    return client.chat.completions.create(
        model=name, messages=messages, response_model=Weather, max_retries=0, max_tokens=60
    ).city


def instructor_openai_tools() -> Any:
    return _instructor("tools", Mode.TOOLS)


def instructor_openai_schema() -> Any:
    return _instructor("roomy", Mode.JSON_SCHEMA)


def version() -> Any:
    return botocore.__version__


report(
    strands_stream,
    strands_whole,
    strands_structured,
    strands_cut,
    strands_tool_result,
    strands_unknown_model,
    strands_openai,
    aio_invoke,
    aio_invoke_stream,
    aio_converse,
    aio_converse_stream,
    aio_forced_tool,
    aio_unknown_model,
    instructor_tools,
    instructor_openai_tools,
    instructor_openai_schema,
    version,
)
