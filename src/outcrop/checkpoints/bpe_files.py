"""``vocab.json`` and ``merges.txt``, as GPT-2's and Qwen2's tokenizers are saved without ``tokenizer.json``.

The two files say what merges; how text is split before, and which tokens are special, is in the code of the tokenizer's
class (transformers: ``models/gpt2``, ``models/qwen2``, ``convert_slow_tokenizer``). What that code does is written down
here as the ``tokenizer.json`` that it would be saved as, so that all else is one path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from outcrop.checkpoints.pre_tokenizers import QWEN2_PATTERN
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.vocabulary import EngineCannot, Tokenizer

FILE, MERGES = "vocab.json", "merges.txt"
_GPT2, _QWEN2 = "GPT2Tokenizer", "Qwen2Tokenizer"
_AS_GPT2 = frozenset({_GPT2, "CodeGenTokenizer"})
# Where no tokenizer_class is named: what transformers takes for a model_type.
_BY_MODEL = {"gpt2": _GPT2, "gpt_bigcode": _GPT2, "phi": _GPT2, "qwen2": _QWEN2, "qwen3": _QWEN2, "qwen3_moe": _QWEN2}
_END = "<|endoftext|>"
_ROLES = ("unk_token", "bos_token", "eos_token", "pad_token", "sep_token", "cls_token", "mask_token")
_DEFAULTS: Mapping[str, Mapping[str, str | None]] = {
    _GPT2: {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None},
    _QWEN2: {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END},
}
_REMEDY = "Save the tokenizer as tokenizer.json (transformers: AutoTokenizer.from_pretrained, then save_pretrained)."


def tokenizer_json(texts: Mapping[str, bytes]) -> bytes:
    """The ``tokenizer.json`` of the files. Raises EngineCannot when their class is not known, CheckpointRejected."""
    if MERGES not in texts:
        raise CheckpointRejected.of(f"{FILE} is there, {MERGES} is not. Upload both. {_REMEDY}", MERGES)
    config = _json(texts, "tokenizer_config.json")
    kind = _kind(config, _json(texts, "config.json"))
    vocab = _vocab(texts)
    named = _named(_DEFAULTS[kind], config, _json(texts, "special_tokens_map.json"))
    added = _added(texts, config, vocab, named)
    first = None
    if kind == _GPT2 and config.get("add_bos_token"):
        first = next((token for token in added if token["content"] == named.get("bos_token")), None)
    try:
        merges = list(_merges(texts[MERGES].decode()))
    except UnicodeDecodeError as exc:
        raise CheckpointRejected.of(f"{MERGES} is not UTF-8 ({exc}). {_REMEDY}", MERGES) from exc
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}, "behavior": "Isolated", "invert": False}
    prefix = bool(config.get("add_prefix_space"))
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if kind == _QWEN2 else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {**byte_level, "add_prefix_space": prefix}]}
        if kind == _QWEN2
        else {**byte_level, "add_prefix_space": prefix, "use_regex": True},
        "post_processor": _processor(first) if first else {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    return msgspec.json.encode(document)


def parse_plainly(texts: Mapping[str, bytes]) -> Tokenizer:
    """Ids, texts and which are special: enough for an engine that runs the class itself."""
    vocab, config = _vocab(texts), _json(texts, "tokenizer_config.json")
    named = _named({}, config, _json(texts, "special_tokens_map.json"))
    added = _added(texts, config, vocab, {role: text for role, text in named.items() if text in vocab})
    tokens = {index: text for text, index in vocab.items()} | {token["id"]: token["content"] for token in added}
    special = frozenset(token["id"] for token in added if token["special"])
    return Tokenizer(kind="other", tokens=tokens, special=special, added=frozenset(token["id"] for token in added))


def _vocab(texts: Mapping[str, bytes]) -> dict[str, int]:
    vocab = _json(texts, FILE)
    if not vocab or not all(isinstance(index, int) for index in vocab.values()):
        raise CheckpointRejected.of(f"{FILE} is not a JSON object of texts and their ids. {_REMEDY}", FILE)
    return vocab


def _kind(config: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    said = config.get("tokenizer_class")
    name = str(said).removesuffix("Fast") if said else _BY_MODEL.get(str(model.get("model_type")), "")
    if name in _AS_GPT2:
        return _GPT2
    if name == _QWEN2:
        return _QWEN2
    what = f"tokenizer_class {said!r} splits text by code of its own" if said else "no tokenizer_class is named"
    message = f"{FILE} and {MERGES} do not say how text is split, and {what}. {_REMEDY}"
    raise EngineCannot([Problem(file=FILE, message=message)])


def _named(defaults: Mapping[str, str | None], *configs: Mapping[str, Any]) -> dict[str, str]:
    """The tokens with a role, by its name; those of the class where the files name none."""
    found: dict[str, Any] = dict(defaults)
    for config in reversed(configs):
        for role in _ROLES:
            if role in config:
                token = config[role]
                found[role] = token.get("content") if isinstance(token, dict) else token
    return {role: token for role, token in found.items() if isinstance(token, str) and token}


def _added(
    texts: Mapping[str, bytes], config: Mapping[str, Any], vocab: Mapping[str, int], named: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Tokens that are found whole in a text, by id: those added, and those with a role."""
    found: dict[int, dict[str, Any]] = {}
    ids = dict(vocab)
    for text, index in _json(texts, "added_tokens.json").items():
        if isinstance(index, int):
            ids[text] = index
            found[index] = _token(index, text)
    decoder = config.get("added_tokens_decoder")
    for index, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if str(index).isdigit() and isinstance(entry, dict) and isinstance(entry.get("content"), str):
            ids[entry["content"]] = int(index)
            found[int(index)] = _token(int(index), entry["content"]) | {
                flag: bool(entry[flag]) for flag in _FLAGS if flag in entry
            }
    more = config.get("additional_special_tokens") or config.get("extra_special_tokens")
    listed = [token.get("content") if isinstance(token, dict) else token for token in _list(more)]
    for role, text in [*named.items(), *(("additional_special_tokens", str(text)) for text in listed)]:
        index = ids.get(text)
        if index is None:
            raise CheckpointRejected.of(f"{role} is {text!r}, which has no id in {FILE}. {_REMEDY}", FILE)
        found[index] = found.get(index, _token(index, text)) | {"special": True, "normalized": False}
    return [found[index] for index in sorted(found)]


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _token(index: int, text: str) -> dict[str, Any]:
    return {"id": index, "content": text, **dict.fromkeys(_FLAGS, False), "normalized": True}


def _processor(first: Mapping[str, Any]) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    token = {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {first["content"]: token}}


def _merges(text: str) -> Iterator[list[str]]:
    for number, line in enumerate(text.split("\n")):
        line = line.rstrip("\r")
        if not line or (number == 0 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not all(parts):
            raise CheckpointRejected.of(
                f"{MERGES} has {line[:80]!r} in line {number + 1}; two tokens are needed. {_REMEDY}", MERGES
            )
        yield parts


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(texts: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(texts.get(name, b"{}"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointRejected.of(f"{name} is not valid JSON ({exc}). Save the tokenizer again.", name) from exc
    return document if isinstance(document, dict) else {}
