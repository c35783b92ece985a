"""Embeddings: what a request asks for and how its answer is written, in the formats that clients send.

Bedrock imports no embedding models, so InvokeModel has no format of its own for them. Bodies are told apart by their
keys: ``input`` is OpenAI's format and vLLM's (also of ``/v1/embeddings``), ``inputText`` Amazon Titan's, ``texts``
Cohere's, which are what Bedrock's clients know. Sources: OpenAI, API reference, Embeddings; AWS, "Amazon Titan Text
Embeddings" and "Cohere Embed". Pure.
"""

from __future__ import annotations

import base64
import math
from array import array
from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct

from outcrop.errors import InvalidRequest
from outcrop.inference import fields
from outcrop.inference.answer import AnswerContext

MAX_INPUTS = 2048  # OpenAI's
MAX_TEXTS = 96  # Cohere's
FORMATS = ("float", "base64")
_NOT_EMPTY = "one string, a list of strings, a list of token ids or a list of such lists, none of them empty"


class EmbedRequest(Struct, frozen=True):
    """*inputs*: texts or token ids. *dimensions*: how many of a vector's first values are wanted; None: all.

    *normalize*: to unit length; None: as the model does. *width*: how many inputs may run at a time.
    """

    inputs: list[str | list[int]]
    dimensions: int | None = None
    normalize: bool | None = None
    width: int = 1


class Embeddings(Struct, frozen=True):
    """One vector of little-endian float32 for each input, in order, and the tokens that were read."""

    vectors: list[bytes]
    prompt_tokens: int


class EmbeddingFormat(Protocol):
    def decode(self, body: Mapping[str, Any]) -> EmbedRequest:
        """Raises InvalidRequest."""

    def encode(self, found: Embeddings, body: Mapping[str, Any], ctx: AnswerContext) -> dict[str, Any]: ...


def asks_for_embeddings(body: Mapping[str, Any]) -> bool:
    """Whether *body* has a format of embeddings and none of generation."""
    present = {key for key, value in body.items() if value is not None}
    return not present & {"messages", "prompt"} and bool(present & FORMATS_BY_KEY.keys())


def format_of(body: Mapping[str, Any]) -> EmbeddingFormat:
    """The format of *body*. Raises InvalidRequest when it has none."""
    for key, chosen in FORMATS_BY_KEY.items():
        if body.get(key) is not None:
            return chosen
    raise InvalidRequest(f"the body must have one of {', '.join(FORMATS_BY_KEY)}: this model gives embeddings")


def shortened(vector: bytes, dimensions: int | None, *, normalize: bool) -> bytes:
    """The first *dimensions* values of *vector*, with *normalize* to unit length; too many are an InvalidRequest."""
    values = array("f", vector)
    if dimensions is None or dimensions == len(values):
        return vector
    if dimensions > len(values):
        raise fields.refusal("dimensions", f"at most {len(values)}, which is what this model gives", dimensions)
    values = values[:dimensions]
    length = math.sqrt(sum(value * value for value in values)) if normalize else 1.0
    return array("f", [value / length for value in values]).tobytes() if length > 0 else values.tobytes()


class OpenAIEmbeddings:
    def decode(self, body: Mapping[str, Any]) -> EmbedRequest:
        fields.one_of(body, "encoding_format", FORMATS)
        return EmbedRequest(inputs=_inputs(body.get("input")), dimensions=fields.whole(body, "dimensions", 1))

    def encode(self, found: Embeddings, body: Mapping[str, Any], ctx: AnswerContext) -> dict[str, Any]:
        write = _base64 if body.get("encoding_format") == "base64" else _floats
        data = [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
        return {"object": "list", "data": data, "model": ctx.model_label, "usage": usage}


class TitanEmbeddings:
    def decode(self, body: Mapping[str, Any]) -> EmbedRequest:
        for kind in _kinds(body, "embeddingTypes"):
            if kind != "float":
                raise fields.refusal("embeddingTypes", '["float"]', body["embeddingTypes"])
        return EmbedRequest(
            inputs=[fields.text(body, "inputText")],
            dimensions=fields.whole(body, "dimensions", 1),
            normalize=fields.flag(body, "normalize"),
        )

    def encode(self, found: Embeddings, body: Mapping[str, Any], ctx: AnswerContext) -> dict[str, Any]:
        vector = _floats(found.vectors[0])
        return {
            "embedding": vector,
            "embeddingsByType": {"float": vector},
            "inputTextTokenCount": found.prompt_tokens,
        }


class CohereEmbeddings:
    def decode(self, body: Mapping[str, Any]) -> EmbedRequest:
        texts = body.get("texts")
        if not isinstance(texts, list) or not 0 < len(texts) <= MAX_TEXTS or not all(_is_text(text) for text in texts):
            raise fields.refusal("texts", f"a list of 1 to {MAX_TEXTS} strings, none of them empty", texts)
        for kind in _kinds(body, "embedding_types"):
            if kind != "float":
                raise fields.refusal("embedding_types", '["float"]', body["embedding_types"])
        return EmbedRequest(inputs=list(texts), dimensions=fields.whole(body, "output_dimension", 1))

    def encode(self, found: Embeddings, body: Mapping[str, Any], ctx: AnswerContext) -> dict[str, Any]:
        vectors = [_floats(vector) for vector in found.vectors]
        by_type = bool(_kinds(body, "embedding_types"))
        return {
            "id": ctx.request_id,
            "texts": body["texts"],
            "embeddings": {"float": vectors} if by_type else vectors,
            "response_type": "embeddings_by_type" if by_type else "embeddings_floats",
        }


OPENAI_EMBEDDINGS = OpenAIEmbeddings()
FORMATS_BY_KEY: Mapping[str, EmbeddingFormat] = {
    "input": OPENAI_EMBEDDINGS,
    "inputText": TitanEmbeddings(),
    "texts": CohereEmbeddings(),
}


def _inputs(value: Any) -> list[str | list[int]]:
    single = _is_text(value) or _are_ids(value)
    many = [value] if single else value
    if not isinstance(many, list) or not many or not all(_is_text(one) or _are_ids(one) for one in many):
        raise fields.refusal("input", _NOT_EMPTY, value)
    if len(many) > MAX_INPUTS:
        raise fields.refusal("input", f"a list of at most {MAX_INPUTS}", f"{len(many)} inputs")
    return list(many)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _kinds(body: Mapping[str, Any], field: str) -> list[Any]:
    kinds = body.get(field) or []
    if not isinstance(kinds, list):
        raise fields.refusal(field, "a list", kinds)
    return kinds


def _floats(vector: bytes) -> list[float]:
    return array("f", vector).tolist()


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
