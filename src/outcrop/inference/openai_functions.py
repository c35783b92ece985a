"""OpenAI's functions, which tools have replaced: a chat of theirs becomes one of tools, and the answer goes back. Pure.

Source: OpenAI, API reference, Chat: the deprecated ``functions``, ``function_call`` and role ``function``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.inference import fields


def as_tools(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """*body* in terms of tools; None where it has no functions and needs none of this. Raises InvalidRequest."""
    functions = body.get("functions")
    given = body.get("messages")
    messages = given if isinstance(given, list) else []
    has_old_messages = any(map(_is_old, messages))
    if not functions and not has_old_messages:
        return None
    changed = {key: value for key, value in body.items() if key not in ("functions", "function_call")}
    if has_old_messages:
        changed["messages"] = _messages(messages)
    if functions:
        if body.get("tools"):
            raise fields.refusal("functions", "left out where tools are sent", functions)
        if not isinstance(functions, list):
            raise fields.refusal("functions", "a list", functions)
        changed["tools"] = [{"type": "function", "function": function} for function in functions]
        changed["parallel_tool_calls"] = False  # an answer has room for one call
        if (choice := body.get("function_call")) is not None:
            changed["tool_choice"] = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
    return changed


def in_functions(answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer or a piece of one, its tool call as a function's."""
    return answer | {"choices": [_choice(choice) for choice in answer["choices"]]}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    where = "message" if "message" in choice else "delta"
    said: dict[str, Any] = {key: value for key, value in choice[where].items() if key != "tool_calls"}
    if calls := choice[where].get("tool_calls"):
        functions = [call.get("function") or {} for call in calls]
        named = [function["name"] for function in functions if function.get("name")]
        arguments = "".join(function.get("arguments") or "" for function in functions)  # pieces may come together
        said["function_call"] = {**({"name": named[0]} if named else {}), "arguments": arguments}
    reason = choice["finish_reason"]
    return choice | {where: said, "finish_reason": "function_call" if reason == "tool_calls" else reason}


def _is_old(message: Any) -> bool:
    return isinstance(message, dict) and bool(message.get("role") == "function" or message.get("function_call"))


def _messages(messages: list[Any]) -> list[Any]:
    """A function's result belongs to the call before it, which had no id."""
    found: list[Any] = []
    for number, message in enumerate(messages):
        if not _is_old(message):
            found.append(message)
        elif message.get("role") == "function":
            found.append({**message, "role": "tool", "tool_call_id": f"call_{number - 1}"})
        else:
            kept = {key: value for key, value in message.items() if key != "function_call"}
            call = {"id": f"call_{number}", "type": "function", "function": message["function_call"]}
            found.append({**kept, "tool_calls": [call]})
    return found
