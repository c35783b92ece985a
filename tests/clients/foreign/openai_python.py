"""The OpenAI SDK for Python, an older major version than the one that the main tests use; sync and async."""

from __future__ import annotations

from typing import Any

import openai
from report import BEARER_KEY, URL, WEATHER, report

TURNS: Any = [{"role": "user", "content": "for each record"}]
TOOLS: Any = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}}]
client = openai.OpenAI(base_url=f"{URL}/v1", api_key=BEARER_KEY, max_retries=0)


def version() -> Any:
    return openai.__version__


def models() -> Any:
    return [model.id for model in client.models.list()]


def model() -> Any:
    return client.models.retrieve("roomy").object


def chat() -> Any:
    answer = client.chat.completions.create(model="roomy", messages=TURNS, max_completion_tokens=6, temperature=0)
    return {"text": answer.choices[0].message.content, "tokens": answer.usage and answer.usage.completion_tokens}


def chat_stream() -> Any:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="roomy", messages=TURNS, max_tokens=6, temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return {"text": text, "tokens": chunks[-1].usage and chunks[-1].usage.completion_tokens}


async def chat_async() -> Any:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=BEARER_KEY, max_retries=0) as other:
        answer = await other.chat.completions.create(model="roomy", messages=TURNS, max_tokens=6, temperature=0)
    return answer.choices[0].message.content


def completion() -> Any:
    answer = client.completions.create(model="roomy", prompt="for each", max_tokens=4, temperature=0, logprobs=1)
    return {"tokens": answer.usage and answer.usage.completion_tokens, "stop": answer.choices[0].finish_reason}


def json_schema() -> Any:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    answer = client.chat.completions.create(model="roomy", messages=TURNS, max_tokens=60, response_format=wanted)
    return answer.choices[0].message.content


def forced_tool() -> Any:
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    answer = client.chat.completions.create(
        model="tools", messages=TURNS, tools=TOOLS, tool_choice=choice, max_tokens=200, temperature=0
    )
    call: Any = (answer.choices[0].message.tool_calls or [None])[0]
    return {"name": call.function.name, "arguments": call.function.arguments}


def unknown_model() -> Any:
    return client.chat.completions.create(model="absent", messages=TURNS).id


def bad_request() -> Any:
    return client.chat.completions.create(model="roomy", messages=[]).id


def wrong_key() -> Any:
    return client.with_options(api_key="wrong").models.list().data


report(
    version,
    models,
    model,
    chat,
    chat_stream,
    chat_async,
    completion,
    json_schema,
    forced_tool,
    unknown_model,
    bad_request,
    wrong_key,
)
