"""OpenAI's Responses: ``input`` items in, a ``response`` of output items out, over the canonical chat.

Source: OpenAI, API reference, Responses, and the types of its Python SDK. What only OpenAI's own service can do (hosted
tools, stored prompts, background runs, files) is refused by name; what only tunes it is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest, ServiceError
from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext
from outcrop.inference.canonical import Choice, Chunk, Completion, GenerateRequest, ModelFacts, Usage
from outcrop.inference.openai_chat import OPENAI_CHAT

_NOT_HERE = {
    "background": "answers are not made in the background; leave it out",
    "conversation": "conversations are not kept; send previous_response_id or the whole input",
    "prompt": "prompts are not stored here; send their text as instructions",
}
_TEXT_PARTS = ("input_text", "output_text", "text")
_ECHOED = (
    *("instructions", "max_output_tokens", "metadata", "parallel_tool_calls", "previous_response_id"),
    *("temperature", "tool_choice", "tools", "top_p", "user"),
)
_DEFAULTS: Mapping[str, Any] = {
    "metadata": {},
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
}


def decode(body: dict[str, Any], model: ModelFacts, before: list[dict[str, Any]]) -> GenerateRequest:
    """What *body* asks for after *before*, the messages of the response that it follows. Raises InvalidRequest."""
    for name, why in _NOT_HERE.items():
        if body.get(name):
            raise InvalidRequest(f"{name} is not supported: {why}", param=name)
    if body.get("truncation") not in (None, "disabled"):
        raise fields.refusal("truncation", '"disabled"', body["truncation"])
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise fields.refusal("instructions", "a string", instructions)
    first = [{"role": "system", "content": instructions}] if instructions else []
    reasoning = fields.mapping(body, "reasoning") or {}
    chat: dict[str, Any] = {
        **{key: body[key] for key in ("temperature", "top_p", "parallel_tool_calls") if key in body},
        **{key: body[key] for key in ("top_k", "min_p", "seed", "stop", "chat_template_kwargs") if key in body},
        "messages": [*first, *before, *messages(body)],
        "max_tokens": fields.whole(body, "max_output_tokens", 1),
        "tools": _tools(body),
        "tool_choice": _tool_choice(body),
        "response_format": _format(body),
        "reasoning_effort": reasoning.get("effort"),
    }
    return OPENAI_CHAT.decode(fields.without_none(chat), model)


def messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``input`` as messages of a chat. Raises InvalidRequest."""
    given = body.get("input")
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise fields.refusal("input", "a string or a list of items, not empty", given)
    found: list[dict[str, Any]] = []
    for index, item in enumerate(given):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise fields.refusal(where, "an item", item)
        _add(found, item, where)
    return found


def _add(found: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    """Calls that follow one another are of one assistant's message, as chats have it."""
    match item.get("type", "message"):
        case "message":
            found.append({"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")})
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if not (found and found[-1]["role"] == "assistant"):
                found.append({"role": "assistant", "content": None})
            found[-1].setdefault("tool_calls", []).append(call)
        case "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
        case "reasoning":
            pass  # templates add thoughts, or not, only for the newest turn
        case kind:
            raise InvalidRequest(
                f'{where} is of type "{kind}"; message, function_call, function_call_output and reasoning are taken',
                param="input",
            )


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    if kind == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    raise InvalidRequest(f'{where} is of type "{kind}"; input_text and input_image are taken', param="input")


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    tools = body.get("tools")
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise fields.refusal("tools", "a list", tools)
    found = []
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise InvalidRequest(
                f'tools[{index}] is of type "{kind}": only functions of the caller\'s own are called', param="tools"
            )
        function = {key: tool[key] for key in ("name", "description", "parameters", "strict") if key in tool}
        found.append({"type": "function", "function": fields.without_none(function)})
    return found


def _tool_choice(body: Mapping[str, Any]) -> Any:
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools" and isinstance(choice.get("tools"), list):
        named = [tool if not isinstance(tool, dict) else {"function": tool} for tool in choice["tools"]]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    return choice


def _format(body: Mapping[str, Any]) -> dict[str, Any] | None:
    wanted = fields.mapping(fields.mapping(body, "text") or {}, "format")
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    schema: dict[str, Any] = {key: wanted[key] for key in ("name", "description", "schema", "strict") if key in wanted}
    return {"type": "json_schema", "json_schema": fields.without_none(schema)}


# -- the answer ------------------------------------------------------------------------------------------------


def response_id(ctx: AnswerContext) -> str:
    return f"resp_{ctx.request_id.replace('-', '')}"


def encode(completion: Completion, body: Mapping[str, Any], ctx: AnswerContext) -> dict[str, Any]:
    """The whole response."""
    (choice, *_) = completion.choices
    return finished(_items(choice, ctx), choice.finish_reason, completion.usage, body, ctx)


def finished(
    output: list[dict[str, Any]],
    finish_reason: str | None,
    usage: Usage,
    body: Mapping[str, Any],
    ctx: AnswerContext,
) -> dict[str, Any]:
    is_cut = finish_reason == "length"
    return _response(body, ctx, "incomplete" if is_cut else "completed") | {
        "output": output,
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }


def spoken(output: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Output items as messages, for the response that follows."""
    return messages({"input": output}) if output else []


def _response(body: Mapping[str, Any], ctx: AnswerContext, status: str) -> dict[str, Any]:
    reasoning = body.get("reasoning") or {}
    echoed = {key: _DEFAULTS.get(key) if body.get(key) is None else body[key] for key in _ECHOED}
    return {
        "id": response_id(ctx),
        "object": "response",
        "created_at": ctx.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": ctx.model_label,
        "output": [],
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": "default",
        "store": body.get("store") is not False,
        "text": {"format": {"type": "text"}, **(body.get("text") or {})},
        "truncation": "disabled",
        "usage": None,
        **echoed,
    }


def _items(choice: Choice, ctx: AnswerContext) -> list[dict[str, Any]]:
    writer = ResponseStream({}, ctx)
    calls = [{"index": index, **call} for index, call in enumerate(choice.tool_calls or [])]
    writer.chunk(Chunk(text=choice.text, reasoning=choice.reasoning, tool_calls=calls or None))
    writer.close()
    return writer.output


class ResponseStream:
    """Writes one response as events, piece by piece. Not to be shared between requests.

    An item is open until something of another kind comes; a whole answer is written as one piece.
    """

    def __init__(self, body: Mapping[str, Any], ctx: AnswerContext) -> None:
        self.output: list[dict[str, Any]] = []  # items that are done
        self._body = body
        self._ctx = ctx
        self._number = -1
        self._open: dict[str, Any] | None = None
        self._call: int | None = None  # the engine's index of the call that is open
        self._said: list[str] = []
        self._finish_reason: str | None = None

    def begin(self) -> list[dict[str, Any]]:
        response = _response(self._body, self._ctx, "in_progress")
        return [self._event(f"response.{name}", response=response) for name in ("created", "in_progress")]

    def chunk(self, chunk: Chunk) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        if chunk.reasoning:
            events += self._of("reasoning") + self._delta(chunk.reasoning)
        if chunk.text:
            events += self._of("message") + self._delta(chunk.text)
        for call in chunk.tool_calls or []:
            events += self._call_delta(call)
        self._finish_reason = chunk.finish_reason or self._finish_reason
        return events

    def end(self, usage: Usage) -> list[dict[str, Any]]:
        events = self.close()
        response = finished(self.output, self._finish_reason, usage, self._body, self._ctx)
        return [*events, self._event(f"response.{response['status']}", response=response)]

    def failed(self, exc: ServiceError, code: str) -> dict[str, Any]:
        response = _response(self._body, self._ctx, "failed")
        error = {"code": code, "message": exc.message}
        return self._event("response.failed", response=response | {"output": self.output, "error": error})

    def close(self) -> list[dict[str, Any]]:
        """End the item that is open."""
        item, text = self._open, "".join(self._said)
        if item is None:
            return []
        self._open, self._said, self._call = None, [], None
        events = self._done(item, text)
        item["status"] = "completed"
        self.output.append(item)
        return [*events, self._event("response.output_item.done", output_index=len(self.output) - 1, item=item)]

    def _of(self, kind: str) -> list[dict[str, Any]]:
        """Have an item of *kind* open."""
        if self._open is not None and self._open["type"] == kind:
            return []
        events = self.close()
        item: dict[str, Any] = {"type": kind, "id": self._id(kind), "status": "in_progress"}
        item |= {"role": "assistant", "content": []} if kind == "message" else {"summary": [], "content": []}
        events += self._begun(item)
        part = _part_of(kind, "")
        return [*events, self._at("response.content_part.added", item, content_index=0, part=part)]

    def _begun(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._open = item
        added = self._event("response.output_item.added", output_index=len(self.output), item=dict(item))
        return [added]

    def _delta(self, text: str) -> list[dict[str, Any]]:
        assert self._open is not None
        self._said.append(text)
        is_message = self._open["type"] == "message"
        name = "response.output_text.delta" if is_message else "response.reasoning_text.delta"
        more: dict[str, Any] = {"logprobs": []} if is_message else {}
        return [self._at(name, self._open, content_index=0, delta=text, **more)]

    def _call_delta(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        function = call.get("function") or {}
        events: list[dict[str, Any]] = []
        index = call.get("index", 0)
        if self._call != index:
            events += self.close()
            item = {
                "type": "function_call",
                "id": self._id("function_call"),
                "status": "in_progress",
                "call_id": call.get("id"),
                "name": function.get("name"),
                "arguments": "",
            }
            events += self._begun(item)
            self._call = index
        arguments = function.get("arguments")
        if arguments:
            assert self._open is not None
            self._said.append(arguments)
            events.append(self._at("response.function_call_arguments.delta", self._open, delta=arguments))
        return events

    def _done(self, item: dict[str, Any], text: str) -> list[dict[str, Any]]:
        """Fill *item* with what was said, and say that it is whole."""
        if item["type"] == "function_call":
            item["arguments"] = text
            return [
                self._at("response.function_call_arguments.done", item, name=item["name"], arguments=text),
            ]
        part = _part_of(item["type"], text)
        item["content"] = [part]
        is_message = item["type"] == "message"
        name = "response.output_text.done" if is_message else "response.reasoning_text.done"
        more: dict[str, Any] = {"logprobs": []} if is_message else {}
        return [
            self._at(name, item, content_index=0, text=text, **more),
            self._at("response.content_part.done", item, content_index=0, part=part),
        ]

    def _id(self, kind: str) -> str:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        return f"{prefix}_{self._ctx.request_id.replace('-', '')}{len(self.output):02x}"

    def _at(self, kind: str, item: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return self._event(kind, item_id=item["id"], output_index=len(self.output), **more)

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number, **more}


def _part_of(kind: str, text: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}
