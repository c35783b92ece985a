"""Frameworks that reach Bedrock through Converse: llama-index and pydantic-ai."""

from __future__ import annotations

import os
from typing import Any

import boto3
from llama_index.core.llms import ChatMessage
from llama_index.llms.bedrock_converse import BedrockConverse
from pydantic_ai import Agent
from pydantic_ai.models.bedrock import BedrockConverseModel
from pydantic_ai.providers.bedrock import BedrockProvider
from report import ABSENT, MODEL, URL, report


def index(arn: str = MODEL) -> BedrockConverse:
    # It refuses model names that it does not know; an ARN goes beside a name that it does.
    return BedrockConverse(
        model="meta.llama3-1-8b-instruct-v1:0",
        application_inference_profile_arn=arn,
        endpoint_url=URL,
        region_name=os.environ["AWS_REGION"],
        temperature=0,
        max_tokens=6,
        max_retries=1,
    )


def llama_index_chat() -> Any:
    return index().chat([ChatMessage(role="user", content="for each record")]).message.content


def llama_index_stream() -> Any:
    return "".join(
        part.delta or "" for part in index().stream_chat([ChatMessage(role="user", content="for each record")])
    )


def llama_index_unknown_model() -> Any:
    return index(ABSENT).complete("x").text


def agent() -> Agent:
    client = boto3.client("bedrock-runtime", endpoint_url=URL)
    return Agent(
        BedrockConverseModel(MODEL, provider=BedrockProvider(bedrock_client=client)),
        model_settings={"max_tokens": 6, "temperature": 0},
    )


def pydantic_ai_run() -> Any:
    result = agent().run_sync("for each record")
    return {"text": result.output, "tokens": result.usage.output_tokens}


async def pydantic_ai_stream() -> Any:
    async with agent().run_stream("for each record") as result:
        return await result.get_output()


report(llama_index_chat, llama_index_stream, llama_index_unknown_model, pydantic_ai_run, pydantic_ai_stream)
