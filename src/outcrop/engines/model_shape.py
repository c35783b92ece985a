"""What engines must know of a model beyond its size, found at import. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

_MARKS: tuple[tuple[str, str], ...] = (
    # What a chat template says of how calls are written -> the field's name for that way; the first that fits.
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<|tool_call|>", "phi4_mini_json"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary', "llama3_json"),
)
_THOUGHTS = {"gpt_oss": "openai_gptoss", "qwen3": "qwen3", "qwen3_moe": "qwen3", "deepseek_v3": "deepseek_r1"}


class ModelShape(msgspec.Struct, frozen=True):
    """*dtype*: of the checkpoint's weights. *tool_style*: how its chat template has calls written; None: not at all.

    *thought_style*: how thoughts are told from answers; None when the template knows none.
    """

    architecture: str = ""
    model_type: str = ""
    dtype: str = "BF16"
    quantisation: str | None = None
    modality: str = "text"
    attention_heads: int = 1
    kv_heads: int = 1
    kv_bytes_per_token: int = 0
    weight_bytes: int = 0
    tool_style: str | None = None
    thought_style: str | None = None
    has_tekken_only: bool = False  # its tokenizer is Mistral's own file and nothing else


def tool_style(model_type: str, template: str | None) -> str | None:
    if template is None:
        return None
    if "tools" in template:
        for mark, style in _MARKS:
            if mark in template:
                return style
    return "openai" if model_type == "gpt_oss" else None


def thought_style(model_type: str, template: str | None) -> str | None:
    if template is None:
        return None
    if model_type == "gpt_oss":
        return _THOUGHTS[model_type]
    is_thinking = "<think>" in template or "</think>" in template
    return _THOUGHTS.get(model_type, "deepseek_r1") if is_thinking else None


def shape_of(facts: Mapping[str, Any]) -> ModelShape:
    """The shape that an import kept among the model's *facts*; of an older record, what those say."""
    kept = dict(facts.get("shape") or {})
    kept |= {"weight_bytes": facts["weight_bytes"], "kv_bytes_per_token": facts["kv_bytes_per_token"]}
    kept |= {"quantisation": facts.get("quantisation"), "modality": facts.get("modality", "text")}
    return msgspec.convert(kept, ModelShape)
