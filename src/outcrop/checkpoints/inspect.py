"""From config, tokenizer files and headers to a checked description; every problem is found before a weight moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import msgspec

from outcrop.checkpoints.families import (
    FAMILIES,
    OPTIONAL_KEYS,
    REFUSED_VALUES,
    REQUIRED_KEYS,
    Family,
    head_size,
    kv_head_count,
    rope_problem,
)
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.safetensors_header import TensorInfo, parse_header
from outcrop.checkpoints.tokenizer import Tokenizer, parse_tokenizer

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
    INDEX,
)
DTYPES = ("F32", "F16", "BF16")
_KV_ITEM_BYTES = 2
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What the check reads: *sizes* of all files, *texts* by name, *headers* (length field and JSON) by shard."""

    sizes: Mapping[str, int]
    texts: Mapping[str, bytes]
    headers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was found. *eos_token_ids*: every token that ends a text, the tokenizer's own first.

    *bos_token_id*: the token that the tokenizer calls bos_token, whether or not it adds it; None when it has none.
    """

    family: Family
    config: Mapping[str, Any]
    model_type: str
    dtype: str
    parameters: int
    weight_bytes: int
    context_tokens: int
    kv_bytes_per_token: int
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    tokenizer: Tokenizer
    tensors: Mapping[str, tuple[str, TensorInfo]]  # HF name -> (shard, where)

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(shard for shard, _ in self.tensors.values())


def wanted_texts(names: Iterable[str]) -> list[str]:
    """Which of a prefix's files the check reads whole."""
    present = set(names)
    return [name for name in TEXTS if name in present]


def inspect(files: CheckpointFiles) -> Checkpoint:
    """The description of a checkpoint. Raises CheckpointRejected with everything that is wrong."""
    if "adapter_config.json" in files.texts:
        raise CheckpointRejected.of(
            "adapter_config.json shows an unmerged LoRA adapter. Merge it into the base model (PEFT: "
            "merge_and_unload, then save_pretrained) and import the result.",
            "adapter_config.json",
        )
    problems: list[Problem] = []

    def attempt(check: Callable[[], _T]) -> _T | None:
        try:
            return check()
        except CheckpointRejected as exc:
            problems.extend(exc.problems)
            return None

    checked = attempt(lambda: _checked_config(files))
    tokenizer = attempt(lambda: _tokenizer(files))
    tensors = attempt(lambda: _tensors(files))
    eos = attempt(lambda: _eos_ids(files, tokenizer)) if checked and tokenizer else None
    bos = attempt(lambda: _bos_id(files, tokenizer)) if tokenizer else None
    template = attempt(lambda: _chat_template(files))
    if checked and tokenizer:
        problems += _vocabulary_problems(checked[1], tokenizer)
    if checked and tensors is not None:
        problems += _tensor_problems(*checked, tensors, files)
    if problems or checked is None or tokenizer is None or tensors is None or eos is None:
        raise CheckpointRejected(list(dict.fromkeys(problems)))
    family, config = checked
    infos = [tensors[name][1] for name in family.tensors(config)]
    weights = Counter[str]()
    for info in infos:
        weights[info.dtype] += prod(info.shape)
    return Checkpoint(
        family=family,
        config=config,
        model_type=family.model_type,
        dtype=weights.most_common(1)[0][0],
        parameters=sum(weights.values()),
        weight_bytes=sum(info.end - info.start for info in infos),
        context_tokens=config["max_position_embeddings"],
        kv_bytes_per_token=2 * config["num_hidden_layers"] * kv_head_count(config) * head_size(config) * _KV_ITEM_BYTES,
        chat_template=template,
        eos_token_ids=eos,
        bos_token_id=bos,
        tokenizer=tokenizer,
        tensors=tensors,
    )


def _json(files: CheckpointFiles, name: str, remedy: str) -> dict[str, Any]:
    if name not in files.texts:
        raise CheckpointRejected.of(f"{name} is missing. {remedy}", name)
    try:
        document = msgspec.json.decode(files.texts[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CheckpointRejected.of(f"{name} is not valid JSON: {exc}. {remedy}", name) from exc
    if not isinstance(document, dict):
        raise CheckpointRejected.of(f"{name} must hold a JSON object. {remedy}", name)
    return document


def _optional_json(files: CheckpointFiles, name: str) -> dict[str, Any]:
    return _json(files, name, "Save it again or leave it out.") if name in files.texts else {}


def _checked_config(files: CheckpointFiles) -> tuple[Family, Mapping[str, Any]]:
    config = _json(files, "config.json", "Upload the model's config.json beside the weights.")
    family = _family(config)
    if problems := list(_config_problems(family, config)):
        raise CheckpointRejected(problems)
    return family, config


def _tokenizer(files: CheckpointFiles) -> Tokenizer:
    if "tokenizer.json" not in files.texts:
        raise CheckpointRejected.of(
            "tokenizer.json is missing. Save the tokenizer with the model (tokenizer.save_pretrained) and upload it.",
            "tokenizer.json",
        )
    return parse_tokenizer(files.texts["tokenizer.json"])


def _vocabulary_problems(config: Mapping[str, Any], tokenizer: Tokenizer) -> Iterable[Problem]:
    largest = max(tokenizer.tokens)
    if largest >= config["vocab_size"]:
        message = (
            f"tokenizer.json has token id {largest}, config.json a vocab_size of {config['vocab_size']}: the tokenizer "
            "belongs to another model. Upload the one that the model was trained with."
        )
        yield Problem(
            file="tokenizer.json", found=str(largest), expected=f"below {config['vocab_size']}", message=message
        )


def _family(config: Mapping[str, Any]) -> Family:
    named = config.get("model_type")
    family = FAMILIES.get(named) if isinstance(named, str) else None
    architectures = config.get("architectures") or []
    architectures = architectures if isinstance(architectures, list) else [architectures]
    if family is None or (architectures and family.architecture not in architectures):
        label = named if family is None else ", ".join(map(str, architectures))
        raise CheckpointRejected.of(
            f"Amazon bedrock does not support the architecture ({label}) of the model that you are importing. Try "
            f"again with one of the following supported architectures: [{', '.join(FAMILIES)}]. "
            f"(config.json: architectures {architectures})",
            "config.json",
        )
    if config.get("quantization_config"):
        settings = config["quantization_config"]
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else settings
        raise CheckpointRejected.of(
            f"config.json has quantization_config ({method}): quantised weights are not served yet. Import the "
            "checkpoint in bfloat16, float16 or float32.",
            "config.json",
        )
    return family


def _config_problems(family: Family, config: Mapping[str, Any]) -> Iterable[Problem]:
    unsound = False
    for key, largest in {**REQUIRED_KEYS, **OPTIONAL_KEYS}.items():
        value = config.get(key)
        if value is None and key in OPTIONAL_KEYS:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            unsound = True
            wanted = f"an integer from 1 to {largest}"
            message = f"config.json: {key} is {value!r}, {wanted} is needed."
            yield Problem(file="config.json", found=repr(value), expected=wanted, message=message)
    for key in family.explicit:
        if key not in config:
            unsound = True
            message = (
                f"config.json: {key} is missing, and {family.model_type} has no common value for it. Save the model "
                "again with save_pretrained."
            )
            yield Problem(file="config.json", expected=key, message=message)
    if unsound:
        return
    for key, is_refused in REFUSED_VALUES.items():
        if key in config and is_refused(config):
            message = f"config.json: {key} {config[key]!r} is not supported by the CPU engine."
            yield Problem(file="config.json", found=repr(config[key]), message=message)
    if reason := rope_problem(family, config):
        yield Problem(file="config.json", message=f"config.json: {reason}.")
    epsilon = config.get("rms_norm_eps", 1e-6)
    if not isinstance(epsilon, float | int) or not 0 <= epsilon < 1:
        message = f"config.json: rms_norm_eps is {epsilon!r}, a number from 0 to 1 is needed."
        yield Problem(file="config.json", found=repr(epsilon), message=message)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    if heads % kv_head_count(config):
        found = f"{heads} heads over {kv_head_count(config)} key-value heads"
        yield Problem(file="config.json", found=found, message=f"config.json: {found} do not divide.")
    if not config.get("head_dim") and hidden % heads:
        found = f"hidden_size {hidden} over {heads} heads"
        yield Problem(file="config.json", found=found, message=f"config.json: {found} does not divide; set head_dim.")
    elif head_size(config) % 2:
        message = (
            f"config.json: heads of {head_size(config)} values cannot be rotated in pairs; an even size is needed."
        )
        yield Problem(file="config.json", found=str(head_size(config)), expected="an even number", message=message)


def _tensors(files: CheckpointFiles) -> dict[str, tuple[str, TensorInfo]]:
    """Every tensor of the shards that transformers would read: the index's, else ``model.safetensors``, else all."""
    if not files.headers:
        old = " (*.bin files are not read)" if any(name.endswith(".bin") for name in files.sizes) else ""
        raise CheckpointRejected.of(f"No *.safetensors file was found{old}. Upload the weights as safetensors.", "")
    shards = [WHOLE] if WHOLE in files.headers else sorted(files.headers)
    if INDEX in files.texts:
        weight_map = _json(files, INDEX, "Write the checkpoint again.").get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointRejected.of(f"{INDEX} has no weight_map. Write the checkpoint again.", INDEX)
        named = set(map(str, weight_map.values()))
        if missing := sorted(named - set(files.headers)):
            raise CheckpointRejected.of(
                f"{INDEX} names {', '.join(missing)}, which was not uploaded. Upload every shard.", missing[0]
            )
        shards = sorted(named)
    tensors: dict[str, tuple[str, TensorInfo]] = {}
    problems: list[Problem] = []
    for shard in shards:
        try:
            found = parse_header(shard, files.headers[shard], files.sizes[shard])
        except CheckpointRejected as exc:
            problems += exc.problems
            continue
        for name, info in found.items():
            if name in tensors:
                message = f"Tensor {name} is in both {tensors[name][0]} and {shard}. Write the checkpoint again."
                problems.append(Problem(file=shard, tensor=name, message=message))
            tensors[name] = (shard, info)
    if problems:
        raise CheckpointRejected(problems)
    return tensors


def _tensor_problems(
    family: Family,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, TensorInfo]],
    files: CheckpointFiles,
) -> Iterable[Problem]:
    expected = family.tensors(config)
    shapes = {"lm_head.weight": (config["vocab_size"], config["hidden_size"]), **expected}
    where = INDEX if INDEX in files.texts else next(iter(files.headers))
    for name, shape in shapes.items():
        if name not in tensors:
            if name not in expected:
                continue
            message = (
                f"Tensor {name} {list(shape)} is missing from the checkpoint ({where}). Save the whole model again."
            )
            yield Problem(file=where, tensor=name, expected=str(list(shape)), message=message)
            continue
        shard, info = tensors[name]
        if info.shape != shape:
            message = f"{shard}: tensor {name} has shape {list(info.shape)}, config.json implies {list(shape)}."
            found, wanted = str(list(info.shape)), str(list(shape))
            yield Problem(file=shard, tensor=name, found=found, expected=wanted, message=message)
        if info.dtype not in DTYPES:
            message = f"{shard}: tensor {name} is {info.dtype}; F32, F16 or BF16 is needed."
            yield Problem(file=shard, tensor=name, found=info.dtype, message=message)
    for name, (shard, info) in tensors.items():
        if name not in shapes and not name.endswith("rotary_emb.inv_freq"):
            message = f"{shard}: tensor {name} {list(info.shape)} does not belong to a {family.model_type} model."
            yield Problem(file=shard, tensor=name, message=message)


def _chat_template(files: CheckpointFiles) -> str | None:
    """AWS's precedence: ``chat_template.jinja`` or ``.json`` over ``tokenizer_config.json``; no default."""
    if "chat_template.jinja" in files.texts:
        try:
            return files.texts["chat_template.jinja"].decode()
        except UnicodeDecodeError as exc:
            raise CheckpointRejected.of(
                f"chat_template.jinja is not UTF-8 ({exc}). Save it as UTF-8.", "chat_template.jinja"
            ) from exc
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = _optional_json(files, name).get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if isinstance(template, str) and template:
            return template
    return None


def _eos_ids(files: CheckpointFiles, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Every token that ends a text, as vLLM takes them: the tokenizer's and those of both configs."""
    found = [_named_token(files, tokenizer, "eos_token")]
    for name in ("generation_config.json", "config.json"):
        value = _optional_json(files, name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    ids = dict.fromkeys(index for index in found if isinstance(index, int) and index in tokenizer.tokens)
    if not ids:
        raise CheckpointRejected.of(
            "No end-of-text token is named: an answer would never end. Set eos_token_id in generation_config.json or "
            "eos_token in tokenizer_config.json to a token of the tokenizer.",
            "generation_config.json",
        )
    return tuple(ids)


def _bos_id(files: CheckpointFiles, tokenizer: Tokenizer) -> int | None:
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
        token = _optional_json(files, name).get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and token:
            return tokenizer.id_of(token)
    return None
