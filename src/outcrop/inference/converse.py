"""Converse and ConverseStream: AWS's own messages in, canonical chat inside, AWS's events out.

Values arrive already checked against botocore's model (bedrock-runtime/2023-09-30) for shape; what is checked here is
what that model leaves to the service. Refusals that AWS words itself are worded as AWS does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from outcrop.errors import ChatTemplateMissing, InvalidRequest
from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, ModelFacts, Usage
from outcrop.inference.converse_content import conversation, system
from outcrop.inference.openai_chat import OPENAI_CHAT, REASONING_EFFORTS
from outcrop.inference.tool_calls import kind_of

NOT_A_CHAT_MODEL = (
    "This action doesn't support the model that you provided. Try again with a supported text or chat model."
)
MAX_STOP_SEQUENCES = 2500  # botocore: InferenceConfiguration.stopSequences

# What OpenAI's finish reasons mean here. A matched stop sequence is "stop" there as an end of turn is; the choice
# names it where the engine does.
CONTEXT_EXCEEDED = "model_context_window_exceeded"
STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
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
    wanted: dict[str, Any] = {
        "messages": system(params.get("system") or []) + conversation(params.get("messages") or [], model),
        **fields.other_sampling(extra),
        "chat_template_kwargs": fields.mapping(extra, "chat_template_kwargs"),
        "reasoning_effort": fields.one_of(extra, "reasoning_effort", REASONING_EFFORTS),
        "parallel_tool_calls": fields.flag(extra, "parallel_tool_calls"),
        "structured_outputs": fields.structured_outputs(extra),
        "max_tokens": fields.whole(config, "maxTokens", 1, called="inferenceConfig.maxTokens"),
        "temperature": fields.number(config, "temperature", 0, 1, called="inferenceConfig.temperature"),
        "top_p": fields.top_p(config, "topP", called="inferenceConfig.topP"),
        "stop": fields.stop_sequences(
            config, "stopSequences", most=MAX_STOP_SEQUENCES, called="inferenceConfig.stopSequences"
        ),
        "response_format": _response_format(params.get("outputConfig") or {}),
        **_tools(params.get("toolConfig") or {}),
    }
    return GenerateRequest(kind="chat", body=fields.without_none(wanted))


class ConverseContext(Struct, frozen=True):
    """What an answer of Converse depends on beside what was generated."""

    answer: AnswerContext
    max_tokens: int | None = None
    response_paths: tuple[str, ...] = ()  # additionalModelResponseFieldPaths


def context(params: Mapping[str, Any], answer: AnswerContext) -> ConverseContext:
    """Raises InvalidRequest when a path is not a JSON pointer."""
    paths = tuple(params.get("additionalModelResponseFieldPaths") or ())
    for path in paths:
        if not path.startswith("/"):
            raise fields.refusal("additionalModelResponseFieldPaths", "JSON pointers such as /stop_sequence", path)
    return ConverseContext(answer, (params.get("inferenceConfig") or {}).get("maxTokens"), paths)


def encode(completion: Completion, timings: Timings, ctx: ConverseContext) -> dict[str, Any]:
    """ConverseResponse of the first choice."""
    choice = completion.choices[0]
    content, malformed = _content(choice)
    answer = {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": _stop_reason(
            choice, completion.usage, ctx, called_tools=bool(choice.tool_calls), malformed=malformed
        ),
        "usage": _usage(completion.usage),
        "metrics": {"latencyMs": timings.latency_ms},
    }
    return answer | _additional(choice, completion.usage, ctx)


def stream(ctx: ConverseContext) -> ConverseStream:
    """A fresh encoder of one answer of ConverseStream."""
    return ConverseStream(ctx)


class ConverseStream:
    """Writes one answer as ConverseStream's events, in AWS's order.

    messageStart, then for each block of text, reasoning or tool use its contentBlockStart (tool use only), its
    contentBlockDeltas and its contentBlockStop, then messageStop, then metadata.
    """

    def __init__(self, ctx: ConverseContext) -> None:
        self._ctx = ctx
        self._block = -1  # contentBlockIndex of the newest block
        self._open: tuple[str, int] | None = None  # kind of the open block, and which tool call
        self._finish_reason: str | None = None
        self._stop_sequence: str | None = None
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
            self._stop_sequence = chunk.stop_sequence
        return events

    def end(self, usage: Usage, timings: Timings) -> list[Event]:
        choice = Choice(index=0, text="", finish_reason=self._finish_reason, stop_sequence=self._stop_sequence)
        reason = _stop_reason(choice, usage, self._ctx, called_tools=self._called_tools)
        return [
            *self._leave(),
            ("messageStop", {"stopReason": reason, **_additional(choice, usage, self._ctx)}),
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


def _tools(config: Mapping[str, Any]) -> dict[str, Any]:
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(config.get("tools") or []):
        if kind_of(tool) == "cachePoint":
            continue
        if kind_of(tool) != "toolSpec":
            raise InvalidRequest(
                f'toolConfig.tools.{index} is a "{kind_of(tool)}", which this model does not take; send a "toolSpec"'
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
    match kind_of(choice):
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


def _content(choice: Choice) -> tuple[list[dict[str, Any]], bool]:
    """Content blocks, and whether arguments are not JSON; those are given as the string that they are."""
    content: list[dict[str, Any]] = []
    malformed = False
    if choice.reasoning:
        content.append({"reasoningContent": {"reasoningText": {"text": choice.reasoning}}})
    if choice.text or not (choice.tool_calls or choice.reasoning):
        content.append({"text": choice.text})
    for index, call in enumerate(choice.tool_calls or []):
        function = call["function"]
        try:
            arguments = msgspec.json.decode(function.get("arguments") or "{}")
        except msgspec.DecodeError:
            arguments, malformed = function["arguments"], True
        use = {"toolUseId": _tool_use_id(call, index), "name": function["name"], "input": arguments}
        content.append({"toolUse": use})
    return content, malformed


def _tool_use_id(call: Mapping[str, Any], index: int) -> str:
    """The call's id, begun as AWS's are; some engines give none, and AWS's model requires one."""
    given = call.get("id") or str(index)
    return f"tooluse_{given.removeprefix('call_')}" if given.startswith("call_") or not call.get("id") else given


def _stop_reason(
    choice: Choice, usage: Usage, ctx: ConverseContext, *, called_tools: bool, malformed: bool = False
) -> str:
    """AWS's stop reason. An answer that was cut before the tokens asked for filled the model's context."""
    if choice.finish_reason == "length":
        asked = ctx.max_tokens
        return "max_tokens" if asked is not None and usage.completion_tokens >= asked else CONTEXT_EXCEEDED
    if malformed:
        return "malformed_tool_use"
    if choice.stop_sequence is not None:
        return "stop_sequence"
    reason = STOP_REASONS.get(choice.finish_reason or "stop", "end_turn")
    # Engines that were told which tool to call finish with "stop" after calling it.
    return "tool_use" if called_tools and reason == "end_turn" else reason


def _additional(choice: Choice, usage: Usage, ctx: ConverseContext) -> dict[str, Any]:
    """What the response paths find in the answer as InvokeModel would give it, each under the last name of its path.

    A path that finds nothing is left out, as AWS does. ``/stop_sequence`` is there too, the example of AWS's guide.
    """
    if not ctx.response_paths:
        return {}
    native = OPENAI_CHAT.encode(Completion([choice], usage), ctx.answer) | {"stop_sequence": choice.stop_sequence}
    found = {}
    for path in ctx.response_paths:
        value: Any = native
        for step in path[1:].split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and name.isdigit() and int(name) < len(value):
                value = value[int(name)]
            else:
                value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return {"additionalModelResponseFields": found}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "inputTokens": usage.prompt_tokens,
        "outputTokens": usage.completion_tokens,
        "totalTokens": usage.prompt_tokens + usage.completion_tokens,
    }
