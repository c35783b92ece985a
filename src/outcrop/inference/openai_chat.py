"""OpenAIChatCompletion: ``messages`` in, ``chat.completion`` out.

Bedrock and the OpenAI API share it. Sources: AWS, "Invoke your imported model" and "Advanced API features for
imported models" (the full answer has vLLM's fields); OpenAI, API reference, Chat.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.errors import ChatTemplateMissing, InvalidRequest
from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext, Timings, openai_usage
from outcrop.inference.canonical import Chunk, Completion, GenerateRequest, ModelFacts, Usage
from outcrop.inference.openai_completion import MAX_CHOICES, MAX_LOGPROBS

MAX_IMAGES = 3  # of a request; AWS, "Advanced API features for imported models"
ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_KEPT_TEXTS = ("name", "tool_call_id", "reasoning_content")  # of a message, beside its role and content


class OpenAIChat:
    """The format of a body with ``messages``."""

    name = "OpenAIChatCompletion"

    def decode(self, body: dict[str, Any], model: ModelFacts) -> GenerateRequest:
        """Raises ChatTemplateMissing too: as at AWS, no default template is applied."""
        if not model.has_chat_template:
            raise ChatTemplateMissing(
                f'model {model.name} was imported without a chat template and cannot take "messages"; send "prompt", '
                "or import it again with chat_template.jinja or with chat_template in tokenizer_config.json"
            )
        max_tokens = fields.whole(body, "max_tokens", 1)
        wanted: dict[str, Any] = {
            "messages": _messages(body, model),
            "max_tokens": fields.whole(body, "max_completion_tokens", 1) or max_tokens,
            **fields.sampling(body),
            "n": fields.whole(body, "n", 1, MAX_CHOICES),
            "logprobs": fields.flag(body, "logprobs"),
            "top_logprobs": fields.whole(body, "top_logprobs", 0, MAX_LOGPROBS),
            "prompt_logprobs": fields.whole(body, "prompt_logprobs", 0, MAX_LOGPROBS),
            "response_format": fields.response_format(body, schema_may_be_bare=False),
            "structured_outputs": fields.structured_outputs(body),
            **_tools_and_choice(body),
            "parallel_tool_calls": fields.flag(body, "parallel_tool_calls"),
            "reasoning_effort": fields.one_of(body, "reasoning_effort", REASONING_EFFORTS),
            "chat_template_kwargs": fields.mapping(body, "chat_template_kwargs"),
        }
        return GenerateRequest(kind="chat", body=fields.without_none(wanted))

    def encode(self, completion: Completion, ctx: AnswerContext) -> dict[str, Any]:
        choices = [
            {
                "index": choice.index,
                "message": {
                    "role": "assistant",
                    "content": None if choice.tool_calls and not choice.text else choice.text,
                    "refusal": None,
                    "annotations": None,
                    "audio": None,
                    "function_call": None,
                    "tool_calls": choice.tool_calls or [],
                    "reasoning_content": choice.reasoning,
                },
                "logprobs": choice.logprobs,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_sequence,
                "token_ids": None,
            }
            for choice in completion.choices
        ]
        return {
            **_head(ctx, "chat.completion"),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": None,
            "usage": openai_usage(completion.usage),
            "prompt_logprobs": completion.prompt_logprobs,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }

    def stream(self, ctx: AnswerContext) -> OpenAIChatStream:
        return OpenAIChatStream(ctx)


class OpenAIChatStream:
    """With several choices each has a finishing piece; only the last of them is held back."""

    def __init__(self, ctx: AnswerContext) -> None:
        self._ctx = ctx
        self._head = _head(ctx, "chat.completion.chunk")
        self._tail = {"usage": None} if ctx.include_usage else {}
        self._begun: set[int] = set()  # choices whose role was sent
        self._held: dict[str, Any] | None = None

    def chunk(self, chunk: Chunk) -> dict[str, Any] | None:
        delta: dict[str, Any] = {}
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.tool_calls:
            delta["tool_calls"] = chunk.tool_calls
        if not delta and chunk.finish_reason is None and not chunk.logprobs:
            return None
        if chunk.index not in self._begun:
            self._begun.add(chunk.index)
            delta = {"role": "assistant", "content": "", **delta}
        piece = self._piece(
            {
                "index": chunk.index,
                "delta": delta,
                "logprobs": chunk.logprobs,
                "finish_reason": chunk.finish_reason,
            }
        )
        if chunk.finish_reason is None:
            return piece
        released, self._held = self._held, piece
        return released

    def last(self, usage: Usage, timings: Timings) -> dict[str, Any] | None:
        return self._held

    def usage_chunk(self, usage: Usage) -> dict[str, Any] | None:
        if not self._ctx.include_usage:
            return None
        return {**self._head, "choices": [], "usage": openai_usage(usage)}

    def _piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice], **self._tail}


def _head(ctx: AnswerContext, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{ctx.request_id}", "object": kind, "created": ctx.created, "model": ctx.model_label}


def _messages(body: Mapping[str, Any], model: ModelFacts) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.refusal("messages", "a list of at least one message", messages)
    read = [_message(message, f"messages[{index}]", model) for index, message in enumerate(messages)]
    images = image_count(read)
    if images > MAX_IMAGES:
        raise InvalidRequest(f"messages hold {images} images; at most {MAX_IMAGES} are taken", param="messages")
    return read


def image_count(messages: list[dict[str, Any]]) -> int:
    """Images in canonical messages."""
    contents = [message["content"] for message in messages if isinstance(message["content"], list)]
    return sum(part["type"] == "image_url" for parts in contents for part in parts)


def joined_text(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """*parts* as one string, as templates differ in whether they take a list of parts; with images, as they are."""
    if any(part["type"] == "image_url" for part in parts):
        return parts
    return "\n".join(part["text"] for part in parts)


def _message(message: Any, where: str, model: ModelFacts) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise fields.refusal(where, 'an object with "role" and "content"', message)
    role = message.get("role")
    if role not in ROLES:
        raise fields.refusal(f"{where}.role", f"one of {', '.join(ROLES)}", role)
    kept: dict[str, Any] = {
        key: fields.text(message, key, called=f"{where}.{key}") for key in _KEPT_TEXTS if message.get(key)
    }
    if message.get("tool_calls"):
        kept["tool_calls"] = _tool_calls(message["tool_calls"], f"{where}.tool_calls")
    content = message.get("content")
    if content is None and role == "assistant" and message.get("refusal"):
        content = fields.text(message, "refusal", called=f"{where}.refusal")
    # An assistant that only called tools has said nothing.
    if content is not None or not (role == "assistant" and "tool_calls" in kept):
        content = _content(content, f"{where}.content", model)
    # Chat templates know "system"; "developer" is OpenAI's newer name of it.
    return {"role": "system" if role == "developer" else role, "content": content, **kept}


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls that an assistant message repeats, with the arguments as JSON text."""
    if not isinstance(calls, list):
        raise fields.refusal(where, "a list", calls)
    read = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise fields.refusal(f"{where}[{index}]", 'a call such as {"id": "…", "function": {"name": "…"}}', call)
        arguments = function.get("arguments") or "{}"
        try:
            document = msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
        except msgspec.DecodeError:
            document = None
        if not isinstance(document, dict):
            raise fields.refusal(f"{where}[{index}].function.arguments", "a JSON object as a string", arguments)
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        written = {"name": function["name"], "arguments": text}
        read.append({"id": str(call.get("id") or index), "type": "function", "function": written})
    return read


def _content(content: Any, where: str, model: ModelFacts) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise fields.refusal(where, "a string or a list of text parts", content)
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind is None:
            raise fields.refusal(f"{where}[{index}]", 'a part such as {"type": "text", "text": "…"}', part)
        if kind == "image_url" and model.takes_images:
            parts.append(_image(part, f"{where}[{index}]"))
            continue
        if kind == "refusal":  # what an assistant said instead of an answer
            parts.append({"type": "text", "text": fields.text(part, "refusal", called=f"{where}[{index}].refusal")})
            continue
        if kind != "text":
            accepted = "text and images" if model.takes_images else "text only"
            raise InvalidRequest(f'{where}[{index}] is of type "{kind}": this model accepts {accepted}', param=where)
        if not isinstance(part.get("text"), str):
            raise fields.refusal(f"{where}[{index}].text", "a string", part.get("text"))
        parts.append({"type": "text", "text": part["text"]})
    return joined_text(parts)


def _image(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An image within the request; one that would have to be fetched is refused, as AWS does."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise fields.refusal(f"{where}.image_url.url", 'a "data:image/…;base64,…" URL', url)
    head, _, data = url.partition(",")
    if not head.endswith(";base64") or not data:
        raise fields.refusal(f"{where}.image_url.url", 'a "data:image/…;base64,…" URL', url)
    try:
        base64.b64decode(data, validate=True)
    except ValueError:
        raise fields.refusal(f"{where}.image_url.url", "base64", data) from None
    return {"type": "image_url", "image_url": {"url": url}}


def _tools_and_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    """``tools`` and ``tool_choice``; of tools that are merely allowed the others are left out."""
    tools, choice = _tools(body), body.get("tool_choice")
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return {"tools": tools, "tool_choice": _tool_choice(body)}
    where = "tool_choice.allowed_tools"
    allowed = fields.mapping(choice, "allowed_tools", called=where) or {}
    mode, named = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise fields.refusal(f"{where}.mode", '"auto" or "required"', mode)
    functions = [tool.get("function") for tool in named if isinstance(tool, dict)] if isinstance(named, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    if not names or not isinstance(named, list) or len(names) != len(named):
        raise fields.refusal(
            f"{where}.tools", 'a list of tools such as {"type": "function", "function": {"name": "…"}}', named
        )
    kept = [tool for tool in tools or [] if tool["function"]["name"] in names]
    if missing := set(names) - {tool["function"]["name"] for tool in kept}:
        raise InvalidRequest(
            f"{where}.tools names tools that are not among tools: {sorted(map(str, missing))}", param=where
        )
    return {"tools": kept, "tool_choice": mode}


def _tools(body: Mapping[str, Any]) -> list[Any] | None:
    tools = body.get("tools")
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list):
        raise fields.refusal("tools", "a list", tools)
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        given = function if isinstance(function, dict) else {}
        name, parameters = given.get("name"), given.get("parameters") or {}
        if not (isinstance(name, str) and name and isinstance(parameters, dict)):
            rule = 'a function such as {"type": "function", "function": {"name": "…", "parameters": {…}}}'
            raise fields.refusal(f"tools[{index}]", rule, tool)
    return [{"type": "function", **tool} for tool in tools]


def _tool_choice(body: Mapping[str, Any]) -> str | dict[str, Any] | None:
    choice: str | dict[str, Any] | None = body.get("tool_choice")
    if choice is None or choice in ("none", "auto"):
        return choice
    if not body.get("tools"):
        raise InvalidRequest("tool_choice asks for a call, but there are no tools; send tools", param="tool_choice")
    if choice == "required":
        return choice
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise fields.refusal("tool_choice", '"none", "auto", "required" or a named function', choice)
    return choice


OPENAI_CHAT = OpenAIChat()
