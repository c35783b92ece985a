"""LangChain's Bedrock classes: ChatBedrock, ChatBedrockConverse, BedrockLLM."""

from __future__ import annotations

from typing import Any

from langchain_aws import BedrockLLM, ChatBedrock, ChatBedrockConverse
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from report import ABSENT, MODEL, TOOL_MODEL, URL, report

TURNS = [SystemMessage("Be brief."), HumanMessage("for each record")]


@tool
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"clear in {city}"


def converse(model: str = MODEL, **more: Any) -> ChatBedrockConverse:
    # With an ARN the provider is mandatory: it decides which request is written.
    given = {"provider": "meta", "temperature": 0.0, "max_tokens": 6, "disable_streaming": False, **more}
    return ChatBedrockConverse(model=model, endpoint_url=URL, **given)


def llm(provider: str, model: str = MODEL, **kwargs: Any) -> BedrockLLM:
    return BedrockLLM(model=model, provider=provider, endpoint_url=URL, model_kwargs=kwargs)


def converse_invoke() -> Any:
    answer = converse().invoke(TURNS)
    return {"text": answer.text, "usage": answer.usage_metadata, "stop": answer.response_metadata["stopReason"]}


def converse_stream() -> Any:
    pieces = list(converse().stream(TURNS))
    return {"text": "".join(piece.text for piece in pieces), "pieces": len(pieces)}


def converse_batch() -> Any:
    return [answer.text for answer in converse().batch([TURNS, TURNS, TURNS])]


def converse_forced_tool() -> Any:
    model = converse(TOOL_MODEL, max_tokens=200, supports_tool_choice_values=["auto", "any", "tool"])
    return model.bind_tools([get_weather], tool_choice="get_weather").invoke("Weather of Paris?").tool_calls


def converse_tool_result() -> Any:
    call = {"name": "get_weather", "args": {"city": "Paris"}, "id": "t1"}
    turns = [HumanMessage("Paris?"), AIMessage("", tool_calls=[call]), ToolMessage("clear", tool_call_id="t1")]
    return converse(TOOL_MODEL, max_tokens=1).bind_tools([get_weather]).invoke(turns).usage_metadata


def converse_unknown_model() -> Any:
    return converse(ABSENT).invoke("x").text


def chat_invoke() -> Any:
    answer = ChatBedrock(
        model=MODEL, provider="meta", endpoint_url=URL, model_kwargs={"max_gen_len": 5, "temperature": 0}
    ).invoke(TURNS)
    return {"text": answer.text, "usage": answer.usage_metadata}


def chat_stream() -> Any:
    model = ChatBedrock(
        model=MODEL, provider="meta", endpoint_url=URL, model_kwargs={"max_gen_len": 5, "temperature": 0}
    )
    return "".join(piece.text for piece in model.stream(TURNS))


def llm_meta() -> Any:
    return llm("meta", max_gen_len=5, temperature=0).invoke("for each")


def llm_meta_stream() -> Any:
    return "".join(llm("meta", max_gen_len=5, temperature=0).stream("for each"))


def llm_unknown_model() -> Any:
    return llm("meta", ABSENT).invoke("x")


report(
    converse_invoke,
    converse_stream,
    converse_batch,
    converse_forced_tool,
    converse_tool_result,
    converse_unknown_model,
    chat_invoke,
    chat_stream,
    llm_meta,
    llm_meta_stream,
    llm_unknown_model,
)
