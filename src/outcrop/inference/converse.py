"""Converse and ConverseStream: AWS's own messages in, canonical chat inside, AWS's events out.

Values arrive already checked against botocore's model (bedrock-runtime/2023-09-30) for shape; what is checked here is
what that model leaves to the service. Refusals that AWS words itself are worded as AWS does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.errors import ChatTemplateMissing, InvalidRequest
from outcrop.inference import fields
from outcrop.inference.answer import Timings
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, ModelFacts, Usage

NOT_A_CHAT_MODEL = (
    "This action doesn't support the model that you provided. Try again with a supported text or chat model."
)
SMALLEST_TOP_P = 1e-6
MAX_STOP_SEQUENCES = 2500  # botocore: InferenceConfiguration.stopSequences

# What OpenAI's finish reasons mean here. A matched stop sequence is "stop" there as an end of turn is, so
# "stop_sequence" is never answered.
STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "content_filtered",
}

Event = tuple[str, dict[str, Any]]


def decode(params: Mapping[str, Any], model: ModelFacts) -> GenerateRequest:
    """What *params*, under the API's own names, ask for; raises InvalidRequest.

    Roles need not alternate, as templates differ in whether they mind, but the first message must be the user's.
    Reasoning that an assistant message repeats is left out: templates add it, or not, only for the newest turn.
    """
    if not model.has_chat_template:
        raise ChatTemplateMissing(NOT_A_CHAT_MODEL)
    config = params.get("inferenceConfig") or {}
    extra = fields.mapping(params, "additionalModelRequestFields") or {}
    top_p = fields.number(config, "topP", 0, 1, called="inferenceConfig.topP")
    wanted: dict[str, Any] = {
        "messages": _system(params.get("system") or []) + _messages(params.get("messages") or []),
        **fields.other_sampling(extra),
        "max_tokens": fields.whole(config, "maxTokens", 1, called="inferenceConfig.maxTokens"),
        "temperature": fields.number(config, "temperature", 0, 1, called="inferenceConfig.temperature"),
        # AWS allows 0, engines do not; either way only the likeliest token is left.
        "top_p": None if top_p is None else max(top_p, SMALLEST_TOP_P),
        "stop": fields.stop_sequences(
            config, "stopSequences", most=MAX_STOP_SEQUENCES, called="inferenceConfig.stopSequences"
        ),
        "response_format": _response_format(params.get("outputConfig") or {}),
        **_tools(params.get("toolConfig") or {}),
    }
    return GenerateRequest(kind="chat", body=fields.without_none(wanted))


def encode(completion: Completion, timings: Timings) -> dict[str, Any]:
    """ConverseResponse of the first choice."""
    choice = completion.choices[0]
    content, stop_reason = _output(choice)
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": stop_reason,
        "usage": _usage(completion.usage),
        "metrics": {"latencyMs": timings.latency_ms},
    }


def stream() -> ConverseStream:
    """A fresh encoder of one answer of ConverseStream."""
    return ConverseStream()


class ConverseStream:
    """Writes one answer as ConverseStream's events, in AWS's order.

    messageStart, then for each block of text, reasoning or tool use its contentBlockStart (tool use only), its
    contentBlockDeltas and its contentBlockStop, then messageStop, then metadata.
    """

    def __init__(self) -> None:
        self._block = -1  # contentBlockIndex of the newest block
        self._open: tuple[str, int] | None = None  # kind of the open block, and which tool call
        self._finish_reason: str | None = None
        self._called_tools = False

    def start(self) -> list[Event]:
        return [("messageStart", {"role": "assistant"})]

    def chunk(self, chunk: Chunk) -> list[Event]:
        if chunk.index != 0:
            return []
        events: list[Event] = []
        if chunk.reasoning:
            events += self._enter("reasoning")
            events.append(self._delta({"reasoningContent": {"text": chunk.reasoning}}))
        if chunk.text:
            events += self._enter("text")
            events.append(self._delta({"text": chunk.text}))
        for call in chunk.tool_calls or []:
            events += self._tool_call(call)
        if chunk.finish_reason is not None:
            self._finish_reason = chunk.finish_reason
        return events

    def end(self, usage: Usage, timings: Timings) -> list[Event]:
        return [
            *self._leave(),
            ("messageStop", {"stopReason": _stop_reason(self._finish_reason, called_tools=self._called_tools)}),
            ("metadata", {"usage": _usage(usage), "metrics": {"latencyMs": timings.latency_ms}}),
        ]

    def _tool_call(self, call: Mapping[str, Any]) -> list[Event]:
        self._called_tools = True
        which = call.get("index") or 0
        function = call.get("function") or {}
        events: list[Event] = []
        if self._open != ("tool", which):
            events += self._enter("tool", which)
            tool_use = {"toolUseId": _tool_use_id(call, which), "name": function.get("name") or ""}
            events.append(("contentBlockStart", {"start": {"toolUse": tool_use}, "contentBlockIndex": self._block}))
        if function.get("arguments"):
            events.append(self._delta({"toolUse": {"input": function["arguments"]}}))
        return events

    def _enter(self, kind: str, which: int = 0) -> list[Event]:
        if self._open == (kind, which):
            return []
        events = self._leave()
        self._block += 1
        self._open = (kind, which)
        return events

    def _leave(self) -> list[Event]:
        if self._open is None:
            return []
        self._open = None
        return [("contentBlockStop", {"contentBlockIndex": self._block})]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return "contentBlockDelta", {"delta": delta, "contentBlockIndex": self._block}


def _system(blocks: list[Any]) -> list[dict[str, Any]]:
    texts = [_text(block, f"system.{index}") for index, block in enumerate(blocks)]
    return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    if not messages or messages[0].get("role") != "user":
        raise InvalidRequest(
            "A conversation must start with a user message. Try again with a conversation that starts with a user "
            "message."
        )
    canonical: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        content = message.get("content")
        if not content:
            raise InvalidRequest(
                f"The content field in the Message object at messages.{index} is empty. Add a ContentBlock object to "
                "the content field and try again."
            )
        where = f"messages.{index}.content"
        if role == "user":
            canonical += _user(content, where)
        elif role == "assistant":
            canonical.append(_assistant(content, where))
        else:
            raise fields.refusal(f"messages.{index}.role", "user or assistant", role)
    return canonical


def _user(blocks: list[Any], where: str) -> list[dict[str, Any]]:
    """The results of tools, each a message of its own, then the text."""
    results: list[dict[str, Any]] = []
    texts: list[str] = []
    for index, block in enumerate(blocks):
        if _kind(block) == "toolResult":
            result = block["toolResult"]
            content = _tool_result(result.get("content") or [], f"{where}.{index}.toolResult.content")
            results.append({"role": "tool", "tool_call_id": result.get("toolUseId"), "content": content})
        else:
            texts.append(_text(block, f"{where}.{index}"))
    return results + ([{"role": "user", "content": "\n".join(texts)}] if texts else [])


def _assistant(blocks: list[Any], where: str) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = _kind(block)
        if kind == "toolUse":
            use = block["toolUse"]
            arguments = msgspec.json.encode(use.get("input") or {}).decode()
            function = {"name": use.get("name"), "arguments": arguments}
            calls.append({"id": use.get("toolUseId"), "type": "function", "function": function})
        elif kind != "reasoningContent":
            texts.append(_text(block, f"{where}.{index}"))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts or not calls else None}
    return message | ({"tool_calls": calls} if calls else {})


def _tool_result(blocks: list[Any], where: str) -> str:
    texts: list[str] = []
    for index, block in enumerate(blocks):
        kind = _kind(block)
        if kind == "text":
            texts.append(block["text"])
        elif kind == "json":
            texts.append(msgspec.json.encode(block["json"]).decode())
        else:
            raise _unsupported(kind, f"{where}.{index}")
    return "\n".join(texts)


def _kind(block: Any) -> str:
    """The one key of a content block, which is a union."""
    return next(iter(block), "") if isinstance(block, Mapping) else ""


def _text(block: Any, where: str) -> str:
    kind = _kind(block)
    if kind != "text":
        raise _unsupported(kind, where)
    text = block["text"]
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(
            f"The text field in the ContentBlock object at {where} is blank. Add text to the text field, and try again."
        )
    return text


def _unsupported(kind: str, where: str) -> InvalidRequest:
    return InvalidRequest(f'{where} is a block of type "{kind}", which this model does not take; send "text" blocks')


def _tools(config: Mapping[str, Any]) -> dict[str, Any]:
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(config.get("tools") or []):
        if _kind(tool) != "toolSpec":
            raise InvalidRequest(
                f'toolConfig.tools.{index} is a "{_kind(tool)}", which this model does not take; send a "toolSpec"'
            )
        spec = tool["toolSpec"]
        function = {
            "name": spec.get("name"),
            "description": spec.get("description"),
            "parameters": (spec.get("inputSchema") or {}).get("json"),
            "strict": spec.get("strict"),
        }
        tools.append({"type": "function", "function": fields.without_none(function)})
    return {"tools": tools, "tool_choice": _tool_choice(config.get("toolChoice") or {})} if tools else {}


def _tool_choice(choice: Mapping[str, Any]) -> str | dict[str, Any] | None:
    match _kind(choice):
        case "auto":
            return "auto"
        case "any":
            return "required"
        case "tool":
            return {"type": "function", "function": {"name": choice["tool"].get("name")}}
    return None


def _response_format(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """``outputConfig.textFormat``, whose schema is a string of JSON, in OpenAI's form."""
    structure = (config.get("textFormat") or {}).get("structure") or {}
    wanted = structure.get("jsonSchema")
    if wanted is None:
        return None
    where = "outputConfig.textFormat.structure.jsonSchema.schema"
    try:
        schema = msgspec.json.decode(wanted.get("schema") or "")
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{where} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise fields.refusal(where, "a JSON object", schema)
    return {"type": "json_schema", "json_schema": {"name": wanted.get("name") or "answer", "schema": schema}}


def _output(choice: Choice) -> tuple[list[dict[str, Any]], str]:
    """Content blocks and stop reason. Arguments that are not JSON are given as the string that they are."""
    content: list[dict[str, Any]] = []
    stop_reason = _stop_reason(choice.finish_reason, called_tools=bool(choice.tool_calls))
    if choice.reasoning:
        content.append({"reasoningContent": {"reasoningText": {"text": choice.reasoning}}})
    if choice.text or not choice.tool_calls:
        content.append({"text": choice.text})
    for index, call in enumerate(choice.tool_calls or []):
        function = call["function"]
        try:
            arguments = msgspec.json.decode(function.get("arguments") or "{}")
        except msgspec.DecodeError:
            arguments = function["arguments"]
            stop_reason = "malformed_tool_use"
        use = {"toolUseId": _tool_use_id(call, index), "name": function["name"], "input": arguments}
        content.append({"toolUse": use})
    return content, stop_reason


def _tool_use_id(call: Mapping[str, Any], index: int) -> str:
    """The call's id; some engines give none, and AWS's model requires one."""
    return call.get("id") or f"tooluse_{index}"


def _stop_reason(finish_reason: str | None, *, called_tools: bool) -> str:
    """AWS's stop reason. Engines that were told which tool to call finish with "stop" after calling it."""
    reason = STOP_REASONS.get(finish_reason or "stop", "end_turn")
    return "tool_use" if called_tools and reason == "end_turn" else reason


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
    }
