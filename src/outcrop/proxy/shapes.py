"""Between the shapes that inference code is written for and what a Bedrock imported model takes and gives. Pure.

Hugging Face's text generation takes ``inputs`` and ``parameters`` and gives ``[{"generated_text": ...}]``. Imported
models answer in a format of their own (docs/reference/compatibility.md), so text is looked for wherever one has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.proxy.failures import Refuse

# Hugging Face's parameter -> the key of a body for InvokeModel.
_RENAMED = {"max_new_tokens": "max_tokens", "stop_sequences": "stop", "repetition_penalty": "repetition_penalty"}
_OWN = frozenset({"return_full_text", "do_sample", "details", "return_text", "return_tensors", "num_return_sequences"})


def native(inputs: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body of InvokeModel for one input: a prompt, or a list of messages. Raises Refuse."""
    body: dict[str, Any]
    if isinstance(inputs, str):
        body = {"prompt": inputs}
    elif isinstance(inputs, list) and inputs and all(isinstance(part, dict) and "role" in part for part in inputs):
        body = {"messages": inputs}
    else:
        raise Refuse(
            f"'inputs' must be a text, a list of texts or a list of messages with a role, not {type(inputs).__name__}."
        )
    for name, value in parameters.items():
        if value is not None and name not in _OWN:
            body[_RENAMED.get(name, name)] = value
    if parameters.get("do_sample") is False:
        body["temperature"] = 0
    return body


def is_native(data: Any) -> bool:
    return isinstance(data, Mapping) and ("messages" in data or "prompt" in data)


def batch(inputs: Any) -> list[Any] | None:
    """The single inputs of a list of texts, else None."""
    return inputs if isinstance(inputs, list) and inputs and all(isinstance(part, str) for part in inputs) else None


def text_of(answer: Any) -> str:
    """The generated text of a whole answer, or of one part of a stream; empty where there is none."""
    if isinstance(answer, list):
        answer = answer[0] if answer else {}
    if not isinstance(answer, Mapping):
        return ""
    for entry in (*_entries(answer, "choices"), *_entries(answer, "outputs"), answer):
        for key in ("message", "delta"):
            inner = entry.get(key)
            if isinstance(inner, Mapping) and isinstance(inner.get("content"), str):
                return str(inner["content"])
        for key in ("text", "generation", "generated_text", "output_text"):
            if isinstance(entry.get(key), str):
                return str(entry[key])
    return ""


def _entries(answer: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    found = answer.get(key)
    return [found[0]] if isinstance(found, list) and found and isinstance(found[0], Mapping) else []


def generated(inputs: Any, answer: Any, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """*answer* as Hugging Face's pipeline gives it; the prompt is in front only where ``return_full_text`` is true."""
    text = text_of(answer)
    if parameters.get("return_full_text") is True and isinstance(inputs, str):
        text = inputs + text
    return [{"generated_text": text}]
