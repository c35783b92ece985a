"""What an answer says, in whichever form it came: text, tokens, and whether a stream broke. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from outcrop.api.migration.calls import OPENAI_DOORS, Door
from outcrop.awswire.eventstream import BrokenFrame, Decoder, Message

_RESPONSE_ID = re.compile(rb'"id"\s*:\s*"(resp[\w-]{1,200})"')
# How an event of a Responses stream begins that says that it failed; what a model says stands in its strings, escaped.
_FAILED = re.compile(rb'(?<!\\)"type"\s*:\s*"(response\.failed|error)"')


@dataclass(frozen=True, slots=True)
class Heard:
    """*text*: what the model said, or the whole answer where no known form says it. *error*: of a broken stream."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    error: str = ""


class StreamFailed(Exception):
    """The stream holds an error event: its name and message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Pieces:
    """The JSON documents of a stream, from bytes that arrive in parts of any size."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._decoder = Decoder()
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The documents that *data* completes. Raises StreamFailed, and BrokenFrame for what is no event stream."""
        if self._door in OPENAI_DOORS:
            return list(self._lines(data))
        found: list[bytes] = []
        for message in self._decoder.feed(data):
            if message.headers.get(":message-type") in ("exception", "error"):
                raise _failed(message)
            match message.headers.get(":event-type", ""):
                case "chunk":
                    found.append(base64.b64decode(msgspec.json.decode(message.payload)["bytes"]))
                case "PayloadPart":
                    found += self._lines(message.payload)
                case "heartbeat":
                    continue
                case event:
                    found.append(msgspec.json.encode({event: msgspec.json.decode(message.payload)}))
        return found

    def end(self) -> list[bytes]:
        """What is left without a line's end."""
        return list(self._lines(b"\n")) if self._rest else []

    def _lines(self, data: bytes) -> Iterator[bytes]:
        """Server-sent events and JSON lines alike; a container may stream anything, so other lines are kept too."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            line = line.strip()
            if line.startswith(b"data:"):
                line = line[5:].strip()
            elif line.startswith((b":", b"event:", b"id:", b"retry:")):
                continue
            if not line or line == b"[DONE]":
                continue
            if line.startswith(b'{"error"') or (self._door == "responses" and _FAILED.search(line)):
                raise _told(line)
            yield line


def response_id(data: bytes) -> str:
    """The id of the response that *data*, the whole of it or its first events, is of; empty where it has none."""
    found = _RESPONSE_ID.search(data)
    return found[1].decode() if found else ""


def read(door: Door, data: bytes, *, is_stream: bool) -> Heard:
    """What a complete answer says. Never raises."""
    if not is_stream:
        return _document(data)
    pieces, documents, error = Pieces(door), list[bytes](), ""
    try:
        documents += pieces.feed(data)
        documents += pieces.end()
    except StreamFailed as exc:
        error = exc.name
    except (BrokenFrame, ValueError, KeyError) as exc:
        error = type(exc).__name__
    parts = [_document(document, is_piece=True) for document in documents]
    return Heard(
        "".join(part.text for part in parts),
        max((part.tokens_in for part in parts), default=0),
        max((part.tokens_out for part in parts), default=0),
        error,
    )


def _document(raw: bytes, *, is_piece: bool = False) -> Heard:
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return Heard(raw.decode(errors="replace"))
    texts = [text for text in _texts(found) if isinstance(text, str)]
    if not texts and not is_piece:
        texts = [raw.decode(errors="replace")]
    tokens_in, tokens_out = _tokens(found)
    return Heard("".join(texts), tokens_in, tokens_out)


def _texts(said: Any) -> Iterator[Any]:
    """The generated texts in a document of any known form."""
    if isinstance(said, list):
        yield from (entry.get("generated_text") for entry in said if isinstance(entry, Mapping))
        return
    if not isinstance(said, Mapping):
        return
    yield said.get("generation")
    yield said.get("generated_text")
    for output in _mappings(said.get("outputs")):
        yield output.get("text")
    for choice in _mappings(said.get("choices")):
        yield choice.get("text")
        for place in ("message", "delta"):
            if isinstance(message := choice.get(place), Mapping):
                yield message.get("content")
                if calls := message.get("tool_calls"):
                    yield msgspec.json.encode([call.get("function") for call in _mappings(calls)]).decode()
    if str(said.get("type", "")) in ("response.output_text.delta", "response.function_call_arguments.delta"):
        yield said.get("delta")
    answer = said.get("output")
    for item in _mappings(answer):  # of a response
        yield item.get("arguments")
        for part in _mappings(item.get("content")):
            yield part.get("text") if part.get("type") == "output_text" else None
    if isinstance(answer, Mapping):
        yield answer.get("text")
    if isinstance(answer, Mapping) and isinstance(turn := answer.get("message"), Mapping):
        for block in _mappings(turn.get("content")):
            yield block.get("text")
            if "toolUse" in block:
                yield msgspec.json.encode(block["toolUse"].get("input")).decode()
    if isinstance(delta := said.get("contentBlockDelta"), Mapping):
        inner = delta.get("delta") or {}
        yield inner.get("text")
        yield (inner.get("toolUse") or {}).get("input")


def _tokens(said: Any) -> tuple[int, int]:
    if not isinstance(said, Mapping):
        return 0, 0
    usage: Any = next(
        (found for place in (said, *map(said.get, ("metadata", "response"))) if (found := _usage(place))), {}
    )
    metrics = said.get("amazon-bedrock-invocationMetrics") or {}
    places = (
        (usage, "prompt_tokens", "completion_tokens"),
        (usage, "inputTokens", "outputTokens"),
        (usage, "input_tokens", "output_tokens"),
        (metrics, "inputTokenCount", "outputTokenCount"),
        (said, "prompt_token_count", "generation_token_count"),
    )
    for place, tokens_in, tokens_out in places:
        if isinstance(place, Mapping) and isinstance(place.get(tokens_in), int):
            out = place.get(tokens_out)
            return place[tokens_in], out if isinstance(out, int) else 0
    return 0, 0


def _usage(said: Any) -> Any:
    return said.get("usage") if isinstance(said, Mapping) else None


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in value if isinstance(entry, Mapping)) if isinstance(value, list) else iter(())


def _failed(message: Message) -> StreamFailed:
    name = message.headers.get(":exception-type") or message.headers.get(":error-code") or "error"
    try:
        said = msgspec.json.decode(message.payload)
        text = str(said.get("message") or said.get("Message") or "")
    except (msgspec.DecodeError, AttributeError):
        text = message.payload.decode(errors="replace")
    return StreamFailed(name, text)


def _told(line: bytes) -> StreamFailed:
    try:
        said = msgspec.json.decode(line)
        error = (said.get("response") or said).get("error") or said
        return StreamFailed(str(error.get("code") or error.get("type") or "error"), str(error.get("message") or ""))
    except (msgspec.DecodeError, AttributeError):
        return StreamFailed("error", line.decode(errors="replace"))
