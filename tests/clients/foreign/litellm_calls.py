"""LiteLLM's Bedrock routes; the address comes from ``AWS_BEDROCK_RUNTIME_ENDPOINT``."""

from __future__ import annotations

import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a price list at import
os.environ["AWS_BEDROCK_RUNTIME_ENDPOINT"] = os.environ["OUTCROP_URL"]

import litellm
from report import ABSENT, MODEL, TOOL_MODEL, URL, WEATHER, report

litellm.telemetry = False
TURNS = [{"role": "user", "content": "for each record"}]
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": WEATHER}}


def ask(route: str, model: str = MODEL, **more: Any) -> Any:
    given = {"messages": TURNS, "max_tokens": 5, "temperature": 0, "num_retries": 0, **more}
    return litellm.completion(f"bedrock/{route}/{model}", **given)


def brief(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    return {"text": choice.message.content, "stop": choice.finish_reason, "tokens": answer.usage.completion_tokens}


def pieces(route: str) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in ask(route, stream=True) if chunk.choices)


def llama() -> Any:
    return brief(ask("llama"))


def llama_stream() -> Any:
    return pieces("llama")


def deepseek_r1() -> Any:
    return brief(ask("deepseek_r1"))


def qwen3() -> Any:
    return brief(ask("qwen3"))


def qwen3_stream() -> Any:
    return pieces("qwen3")


def qwen2() -> Any:
    return brief(ask("qwen2"))


def openai() -> Any:
    return brief(ask("openai"))


def converse() -> Any:
    return brief(ask("converse"))


def converse_stream() -> Any:
    return pieces("converse")


async def converse_async() -> Any:
    return brief(await litellm.acompletion(f"bedrock/converse/{MODEL}", messages=TURNS, max_tokens=5, temperature=0))


def converse_forced_tool() -> Any:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask("converse", TOOL_MODEL, tools=[TOOL], tool_choice=choice, max_tokens=200)
    call = answer.choices[0].message.tool_calls[0].function
    return {"name": call.name, "arguments": call.arguments, "stop": answer.choices[0].finish_reason}


def openai_api() -> Any:
    key = os.environ["OUTCROP_BEARER_KEY"]
    return brief(
        litellm.completion(
            "openai/roomy", messages=TURNS, max_tokens=5, temperature=0, api_base=f"{URL}/v1", api_key=key
        )
    )


def unknown_model() -> Any:
    return brief(ask("converse", ABSENT))


def refused_request() -> Any:
    return brief(ask("converse", temperature=0, messages=[{"role": "user", "content": "for each record " * 3000}]))


def wrong_secret() -> Any:
    return brief(ask("converse", aws_access_key_id=os.environ["AWS_ACCESS_KEY_ID"], aws_secret_access_key="wrong"))


report(
    llama,
    llama_stream,
    deepseek_r1,
    qwen3,
    qwen3_stream,
    qwen2,
    openai,
    converse,
    converse_stream,
    converse_async,
    converse_forced_tool,
    openai_api,
    unknown_model,
    refused_request,
    wrong_secret,
)
