"""What the small files say of a text: the chat template, and the tokens that begin and end one."""

from __future__ import annotations

from outcrop.checkpoints.files import CheckpointFiles, optional_json
from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.checkpoints.vocabulary import Tokenizer


def chat_template(files: CheckpointFiles) -> str | None:
    """AWS's precedence: ``chat_template.jinja`` or ``.json`` over ``tokenizer_config.json``; no default."""
    if "chat_template.jinja" in files.texts:
        try:
            return files.texts["chat_template.jinja"].decode()
        except UnicodeDecodeError as exc:
            raise CheckpointRejected.of(
                f"chat_template.jinja is not UTF-8 ({exc}). Save it as UTF-8.", "chat_template.jinja"
            ) from exc
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = optional_json(files, name).get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str) and template:
            return template
    return None


def eos_ids(files: CheckpointFiles, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token that ends a text, as vLLM takes them: the tokenizer's and those of both configs."""
    found = [tokenizer.id_of(tokenizer.eos)] if tokenizer.eos else []
    found.append(_named_token(files, tokenizer, "eos_token"))
    for name in ("generation_config.json", "config.json"):
        value = optional_json(files, name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    ids = dict.fromkeys(index for index in found if isinstance(index, int) and index in tokenizer.tokens)
    if not ids:
        raise CheckpointRejected.of(
            "No end-of-text token is named: an answer would never end. Set eos_token_id in generation_config.json or "
            "eos_token in tokenizer_config.json to a token of the tokenizer.",
            "generation_config.json",
        )
    return tuple(ids)


def bos_id(files: CheckpointFiles, tokenizer: Tokenizer) -> int | None:
    if tokenizer.bos is None:
        return _named_token(files, tokenizer, "bos_token")
    index = tokenizer.id_of(tokenizer.bos)
    if index is None:
        raise CheckpointRejected.of(
            f"tokenizer.json puts {tokenizer.bos!r} before every text, but has no such token. Save it again.",
            "tokenizer.json",
        )
    return index


def _named_token(files: CheckpointFiles, tokenizer: Tokenizer, key: str) -> int | None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = optional_json(files, name).get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            return tokenizer.id_of(token)
    return None
