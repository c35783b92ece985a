"""Tool calls as text: for choices that an engine must be held to, and for chat templates that know no tools.

A call is written ``{"name": "f", "arguments": {...}}``, as Hermes and Qwen models do. A choice of the caller's
(``required`` or one function) becomes a grammar of exactly such calls; without one the model may write a call between
``<tool_call>`` tags, or answer in words. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from outcrop.engines.answer_text import Piece, start_of
from outcrop.engines.gbnf import literal
from outcrop.engines.gbnf_schema import SchemaGrammar
from outcrop.errors import InvalidRequest

MOST_CALLS = 16  # of one answer
OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"
_ARGUMENTS = ', "arguments": '

Message = dict[str, Any]


def describe(tools: Sequence[Mapping[str, Any]]) -> str:
    """What a model is told of *tools* when its chat template says nothing of them."""
    listed = "\n".join(msgspec.json.encode(tool["function"]).decode() for tool in tools)
    return (
        f"You may call these functions:\n{listed}\nTo call one, answer with nothing but its name and arguments:\n"
        f'{OPEN_TAG}{{"name": "<name>", "arguments": {{...}}}}{CLOSE_TAG}'
    )


def as_text(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """*messages* for a template without tools: calls and results in words, *tools* in the system message."""
    written: list[Message] = [{"role": "system", "content": describe(tools)}]
    for message in messages:
        if message["role"] == "system" and len(written) == 1:
            written[0] = {"role": "system", "content": f"{message['content']}\n\n{written[0]['content']}"}
        elif message["role"] == "tool":
            result = f"<tool_response>{message.get('content') or ''}</tool_response>"
            written.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            calls = [_written(call["function"]) for call in message["tool_calls"]]
            text = "\n".join([message["content"], *calls] if message.get("content") else calls)
            written.append({"role": message["role"], "content": text})
        else:
            written.append(message)
    return written


def _written(function: Mapping[str, Any]) -> str:
    name = msgspec.json.encode(function["name"]).decode()
    return f'{OPEN_TAG}{{"name": {name}{_ARGUMENTS}{function.get("arguments") or "{}"}}}{CLOSE_TAG}'


def forced_grammar(tools: Sequence[Mapping[str, Any]], choice: str | Mapping[str, Any], *, may_repeat: bool) -> str:
    """A grammar of one call of the tool that *choice* names, or of one or more of any; raises InvalidRequest."""
    allowed = list(tools)
    if isinstance(choice, Mapping):
        name = choice["function"]["name"]
        allowed = [tool for tool in tools if tool["function"]["name"] == name]
        if not allowed:
            raise InvalidRequest(f"tool_choice names {name!r}, which is not among tools", param="tool_choice")
    calls, rules = [], []
    for index, tool in enumerate(allowed):
        function = tool["function"]
        schema = function.get("parameters") or {"type": "object"}
        grammar = SchemaGrammar(schema, prefix=f"t{index}x")
        head = literal('{"name": ' + msgspec.json.encode(function["name"]).decode() + _ARGUMENTS)
        calls.append(f'{head} {grammar.value(schema, f"tools.{index}.function.parameters")} "}}"')
        rules += grammar.rules()
    more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if may_repeat and not isinstance(choice, Mapping) else ""
    return "\n".join([f"root ::= call{more}", f"call ::= {' | '.join(calls)}", *rules, SchemaGrammar.COMMON])


class ForcedCalls:
    """Reads the text that ``forced_grammar`` lets through, piece by piece; arguments go out as they come."""

    def __init__(self) -> None:
        self._head = ""
        self._index = -1
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._in_arguments = False

    def feed(self, text: str) -> Piece:
        calls: list[dict[str, Any]] = []
        while text:
            if not self._in_arguments:
                text = self._read_head(text, calls)
                continue
            end = self._end_of_arguments(text)
            calls.append({"index": self._index, "function": {"arguments": text[:end]}})
            text = text[end:]
        return Piece(calls=calls)

    def finish(self) -> Piece:
        return Piece()

    def _read_head(self, text: str, calls: list[dict[str, Any]]) -> str:
        head, found, rest = (self._head + text).partition(_ARGUMENTS)
        if not found:
            self._head += text
            return ""
        self._head = ""
        self._index += 1
        self._in_arguments, self._depth = True, 0
        name = msgspec.json.decode(head[head.index("{") :] + "}")["name"]
        calls.append({"index": self._index, "type": "function", "function": {"name": name, "arguments": ""}})
        return rest

    def _end_of_arguments(self, text: str) -> int:
        """How many characters of *text* belong to the arguments, which are one JSON object."""
        for position, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._in_arguments = False
                    return position + 1
        return len(text)


class TaggedCalls:
    """Reads an answer in words that may hold calls between tags; what is no call goes out as the text that it is."""

    def __init__(self) -> None:
        self._held = ""
        self._index = -1

    def feed(self, text: str) -> Piece:
        self._held += text
        said: list[str] = []
        calls: list[dict[str, Any]] = []
        while True:
            before, tag, after = self._held.partition(OPEN_TAG)
            if not tag:
                kept = start_of(OPEN_TAG, before)
                said.append(before[: len(before) - kept])
                self._held = before[len(before) - kept :]
                break
            call, close, rest = after.partition(CLOSE_TAG)
            said.append(before)
            if not close:
                self._held = tag + after
                break
            said.append(self._take(call, calls))
            self._held = rest
        return Piece("".join(said), calls)

    def finish(self) -> Piece:
        """What was held back for the rest of a tag or a call that never came."""
        held, self._held = self._held, ""
        return Piece(held)

    def _take(self, written: str, calls: list[dict[str, Any]]) -> str:
        try:
            call = msgspec.json.decode(written)
            name, arguments = call["name"], msgspec.json.encode(call.get("arguments") or {}).decode()
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
            return OPEN_TAG + written + CLOSE_TAG
        self._index += 1
        function = {"name": str(name), "arguments": arguments}
        calls.append({"index": self._index, "type": "function", "function": function})
        return ""


def joined(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The whole calls that deltas *calls* are parts of; arguments that are split come together."""
    whole: dict[int, dict[str, Any]] = {}
    for call in calls:
        function = call["function"]
        if call["index"] not in whole:
            whole[call["index"]] = {"id": call["id"], "type": "function", "function": {"arguments": "", **function}}
        else:
            whole[call["index"]]["function"]["arguments"] += function["arguments"]
    return list(whole.values())
