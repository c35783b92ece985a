"""Which format a body of InvokeModel has: its keys decide, as at AWS, unless the model is set to one.

A model's own format matters to clients of older imports, which send ``max_tokens`` and read ``generation`` or
``outputs`` as they know the model to answer. It concerns bodies with ``prompt`` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outcrop.errors import InvalidRequest
from outcrop.inference.answer import BodyDialect
from outcrop.inference.bedrock_completion import BEDROCK_COMPLETION
from outcrop.inference.canonical import ModelFacts
from outcrop.inference.mistral import MISTRAL
from outcrop.inference.openai_chat import OPENAI_CHAT
from outcrop.inference.openai_completion import OPENAI_COMPLETION

# First match wins; a key whose value is null counts as absent. ``max_tokens`` decides even beside ``max_gen_len``.
ROUTES: tuple[tuple[frozenset[str], BodyDialect], ...] = (
    (frozenset({"messages"}), OPENAI_CHAT),
    (frozenset({"prompt", "max_tokens"}), OPENAI_COMPLETION),
    (frozenset({"prompt"}), BEDROCK_COMPLETION),
)


# What a model may be set to. "llama" is BedrockCompletion, which is Llama's native format.
DIALECTS: Mapping[str, BodyDialect] = {
    "llama": BEDROCK_COMPLETION,
    "mistral": MISTRAL,
    "openai": OPENAI_COMPLETION,
}


def refuse_to_generate(model: ModelFacts) -> None:
    """Raise InvalidRequest when *model* gives embeddings only."""
    if model.embeds:
        raise InvalidRequest(
            f'model {model.name} gives embeddings and generates no text; send "input", or use /v1/embeddings',
            param="model",
        )


def dialect_for(body: Mapping[str, Any], model: ModelFacts) -> BodyDialect:
    """The format of *body* (AWS, "Invoke your imported model"); raises InvalidRequest when it has none."""
    refuse_to_generate(model)
    own = model.dialect
    present = {key for key, value in body.items() if value is not None}
    if own is not None and "prompt" in present and "messages" not in present:
        return DIALECTS[own]
    for needed, dialect in ROUTES:
        if needed <= present:
            return dialect
    raise InvalidRequest('the body must have "messages" or "prompt"')
