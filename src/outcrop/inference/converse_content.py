"""The content blocks of Converse's messages, as messages of the canonical chat.

Cache points are hints and leave no trace. Text documents are put into the prompt, under their names; others, and
images to a model that takes none, are refused in AWS's words.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from outcrop.errors import InvalidRequest
from outcrop.inference import fields
from outcrop.inference.canonical import ModelFacts
from outcrop.inference.openai_chat import MAX_IMAGES, image_count, joined_text
from outcrop.inference.tool_calls import ToolCalls, kind_of

NO_IMAGES = "This model doesn't support the image field. Remove image and try again."
NO_DOCUMENTS = "This model doesn't support documents of this format. Send csv, html, md or txt, or the text itself."
TEXT_FORMATS = ("csv", "html", "md", "txt")


def system(blocks: list[Any]) -> list[dict[str, Any]]:
    """The system message of *blocks*, or nothing."""
    texts = [_text(block, f"system.{i}") for i, block in enumerate(blocks) if kind_of(block) != "cachePoint"]
    return [{"role": "system", "content": "\n".join(texts)}] if texts else []


def conversation(messages: list[Any], model: ModelFacts) -> list[dict[str, Any]]:
    """The canonical messages of *messages*; raises InvalidRequest."""
    if not messages or messages[0].get("role") != "user":
        raise InvalidRequest(
            "A conversation must start with a user message. Try again with a conversation that starts with a user "
            "message."
        )
    canonical: list[dict[str, Any]] = []
    calls = ToolCalls()
    for index, message in enumerate(messages):
        role = message.get("role")
        content = message.get("content")
        if not content:
            raise InvalidRequest(
                f"The content field in the Message object at messages.{index} is empty. Add a ContentBlock object to "
                "the content field and try again."
            )
        where = f"messages.{index}.content"
        calls.check(role, content, where)
        if role == "user":
            canonical += _user(content, where, model)
        elif role == "assistant":
            canonical.append(_assistant(content, where))
        else:
            raise fields.refusal(f"messages.{index}.role", "user or assistant", role)
    images = image_count(canonical)
    if images > MAX_IMAGES:
        raise InvalidRequest(f"The messages hold {images} images; at most {MAX_IMAGES} are taken.", param="messages")
    return canonical


def _user(blocks: list[Any], where: str, model: ModelFacts) -> list[dict[str, Any]]:
    """The results of tools, each a message of its own, then the rest; with images, as parts in their order."""
    results: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        place = f"{where}.{index}"
        match kind_of(block):
            case "toolResult":
                result = block["toolResult"]
                content, images = _tool_result(result.get("content") or [], f"{place}.toolResult.content", model)
                results.append({"role": "tool", "tool_call_id": result.get("toolUseId"), "content": content})
                parts += images  # OpenAI's messages of tools hold text only
            case "image":
                parts.append(_image(block["image"], f"{place}.image", model))
            case "document":
                parts.append({"type": "text", "text": _document(block["document"])})
            case "cachePoint":
                pass
            case _:
                parts.append({"type": "text", "text": _text(block, place)})
    return results + ([{"role": "user", "content": joined_text(parts)}] if parts else [])


def _image(image: Mapping[str, Any], where: str, model: ModelFacts) -> dict[str, Any]:
    if not model.takes_images:
        raise InvalidRequest(NO_IMAGES, param=where)
    data = (image.get("source") or {}).get("bytes")
    if not data:
        raise InvalidRequest(f"{where}.source must hold bytes; images in S3 are not read", param=where)
    url = f"data:image/{image['format']};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _document(document: Mapping[str, Any]) -> str:
    """A document as text, below its name."""
    source = document.get("source") or {}
    if source.get("text") is not None:
        text = source["text"]
    elif source.get("content"):
        text = "\n".join(part.get("text") or "" for part in source["content"])
    elif source.get("bytes") is not None and document.get("format", "txt") in TEXT_FORMATS:
        try:
            text = source["bytes"].decode()
        except UnicodeDecodeError as exc:
            raise InvalidRequest(f"The document {document.get('name')!r} is not UTF-8 text: {exc.reason}.") from exc
    else:
        raise InvalidRequest(NO_DOCUMENTS)
    return f"Document {document.get('name')}:\n{text}"


def _assistant(blocks: list[Any], where: str) -> dict[str, Any]:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = kind_of(block)
        if kind == "toolUse":
            use = block["toolUse"]
            arguments = msgspec.json.encode(use.get("input") or {}).decode()
            function = {"name": use.get("name"), "arguments": arguments}
            calls.append({"id": use.get("toolUseId"), "type": "function", "function": function})
        elif kind not in ("reasoningContent", "cachePoint"):
            texts.append(_text(block, f"{where}.{index}"))
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts) if texts or not calls else None}
    return message | ({"tool_calls": calls} if calls else {})


def _tool_result(blocks: list[Any], where: str, model: ModelFacts) -> tuple[str, list[dict[str, Any]]]:
    """The text of a result, and its images."""
    texts: list[str] = []
    images: list[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        kind = kind_of(block)
        if kind == "text":
            texts.append(block["text"])
        elif kind == "document":
            texts.append(_document(block["document"]))
        elif kind == "image":
            images.append(_image(block["image"], f"{where}.{index}.image", model))
        elif kind == "json":
            texts.append(msgspec.json.encode(block["json"]).decode())
        else:
            raise _unsupported(kind, f"{where}.{index}")
    return "\n".join(texts), images


def _text(block: Any, where: str) -> str:
    kind = kind_of(block)
    if kind == "guardContent" and kind_of(block["guardContent"]) == "text":
        block = block["guardContent"]["text"]
    elif kind != "text":
        raise _unsupported(kind, where)
    text = block["text"]
    if not isinstance(text, str) or not text.strip():
        raise InvalidRequest(
            f"The text field in the ContentBlock object at {where} is blank. Add text to the text field, and try again."
        )
    return text


def _unsupported(kind: str, where: str) -> InvalidRequest:
    return InvalidRequest(f'{where} is a block of type "{kind}", which this model does not take; send "text" blocks')
