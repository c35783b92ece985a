"""From config, tokenizer files and headers to a checked description; every problem is found before a weight moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import msgspec

from outcrop.checkpoints.config import Config, closing_window, head_size, kv_head_count
from outcrop.checkpoints.engines import CPU_ONLY, LLAMA_CPP, Available, EngineVerdict, llama_cpp_obstacles, verdicts
from outcrop.checkpoints.families import FAMILIES, OPTIONAL_KEYS, REQUIRED_KEYS, Family, unlisted
from outcrop.checkpoints.pre_tokenizers import LOOSE
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.quantisation import Quantisation, quantisation
from outcrop.checkpoints.rope import rope, rope_kind, rope_problem
from outcrop.checkpoints.safetensors_header import TensorInfo, parse_header
from outcrop.checkpoints.sizing import kv_bytes_of, kv_bytes_per_token
from outcrop.checkpoints.tokenizer_files import read_tokenizer
from outcrop.checkpoints.units import model_units
from outcrop.checkpoints.vocabulary import EngineCannot, Tokenizer

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "added_tokens.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
    INDEX,
)
DTYPES = ("F32", "F16", "BF16")
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

    *config* is in our spelling (``Family.read``). *context_tokens* is what *engine* serves exactly. *notes* are for
    people: what differs from what they may expect. *quantisation* is None for floating point.
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
    engines: tuple[EngineVerdict, ...]
    notes: tuple[str, ...]
    quantisation: Quantisation | None
    kv_bytes_full_context: int

    @property
    def modality(self) -> str:
        """``text`` or ``vision-language``."""
        return self.family.modality

    @property
    def engine(self) -> str | None:
        """The engine that serves it here; None when it can only be kept until one that does is installed."""
        return next((verdict.engine for verdict in self.engines if verdict.serves and verdict.available), None)

    @property
    def model_units(self) -> int:
        """Custom model units per copy."""
        per_token = -(-self.kv_bytes_full_context // self.context_tokens)
        return model_units(self.weight_bytes, per_token, self.context_tokens)

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(shard for shard, _ in self.tensors.values())


def wanted_texts(names: Iterable[str]) -> list[str]:
    """Which of a prefix's files the check reads whole."""
    present = set(names)
    return [name for name in TEXTS if name in present]


def inspect(files: CheckpointFiles, available: Available = CPU_ONLY) -> Checkpoint:
    """The description of a checkpoint. Raises CheckpointRejected with everything that is wrong.

    *available*: the engines of this installation. What none of them could follow is refused by name, with the engines
    that could; a whole family that the CPU engine does not serve is described and may be kept.
    """
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

    checked = attempt(lambda: _checked_config(files, available))
    read = attempt(lambda: read_tokenizer(files.texts))
    tokenizer, cannot = read or (None, None)
    tensors = attempt(lambda: _tensors(files))
    eos = attempt(lambda: _eos_ids(files, tokenizer)) if checked and tokenizer else None
    bos = attempt(lambda: _bos_id(files, tokenizer)) if tokenizer else None
    template = attempt(lambda: _chat_template(files))
    engines: tuple[EngineVerdict, ...] = ()
    if checked and tokenizer:
        problems += _vocabulary_problems(checked[1], tokenizer)
    if checked and tensors is not None:
        problems += _tensor_problems(*checked, tensors, files)
    if checked:
        family, config, quantised = checked
        engines = verdicts(family, config, quantised, str(cannot) if cannot else None, available)
        problems += _unserved(family, config, quantised, cannot, engines, available)
    if problems or checked is None or tokenizer is None or tensors is None or eos is None:
        raise CheckpointRejected(list(dict.fromkeys(problems)))
    return _described(*checked, tensors, engines, tokenizer, eos, bos, template)


def _described(
    family: Family,
    config: Config,
    quantised: Quantisation | None,
    tensors: Mapping[str, tuple[str, TensorInfo]],
    engines: tuple[EngineVerdict, ...],
    tokenizer: Tokenizer,
    eos: tuple[int, ...],
    bos: int | None,
    template: str | None,
) -> Checkpoint:
    expected = family.tensors(config) if family.tensors else None
    names = tensors if expected is None or quantised else expected
    weights = Counter[str]()
    for name in names:
        weights[tensors[name][1].dtype] += prod(tensors[name][1].shape)
    # The shapes of packed weights say nothing of how many there are; those that the config implies do.
    plain = {**config, "quantization_config": None}
    counted = family.tensors(plain) if quantised and family.tensors else None
    chosen = next((verdict for verdict in engines if verdict.serves and verdict.available), None)
    context = chosen.context_tokens if chosen else config["max_position_embeddings"]
    return Checkpoint(
        family=family,
        config=config,
        model_type=family.model_type,
        dtype=weights.most_common(1)[0][0],
        parameters=sum(map(prod, counted.values())) if counted else sum(weights.values()),
        weight_bytes=sum(tensors[name][1].end - tensors[name][1].start for name in names),
        context_tokens=context,
        kv_bytes_per_token=kv_bytes_per_token(config),
        kv_bytes_full_context=kv_bytes_of(config, context),
        chat_template=template,
        eos_token_ids=eos,
        bos_token_id=bos,
        tokenizer=tokenizer,
        tensors=tensors,
        engines=engines,
        notes=tuple(_notes(family, config, engines, chosen, tokenizer)),
        quantisation=quantised,
    )


def _notes(
    family: Family,
    config: Config,
    engines: tuple[EngineVerdict, ...],
    chosen: EngineVerdict | None,
    tokenizer: Tokenizer,
) -> Iterable[str]:
    if family.model_type not in FAMILIES:
        yield (
            f"{family.architecture} is not among the families that are checked here; it is imported because "
            f"{', '.join(sorted(family.engines))} says that it serves it. Its tensors are not compared with its config."
        )
    if chosen is None:
        able = [verdict.engine for verdict in engines if verdict.serves]
        yield (
            f"no engine of this installation serves {family.label}; it is kept until one does ({', '.join(able)}), and "
            "until then calls to it answer with an error"
        )
        return
    if chosen.engine != LLAMA_CPP:
        return
    own = config["max_position_embeddings"]
    if chosen.context_tokens < own:
        yield (
            f"the context is {chosen.context_tokens} tokens of {own}: the CPU engine does not keep this family's "
            f"sliding window of {closing_window(config)} tokens, and within one window it need not"
        )
    if rope_kind(config) == "dynamic":
        yield "dynamic rope scaling begins beyond max_position_embeddings, where the context ends here"
    if rope_kind(config) == "longrope":
        yield (
            "longrope: the CPU engine takes the long factors for every text when the context is longer than "
            "original_max_position_embeddings; transformers takes them for long texts only"
        )
    if rope_kind(config) == "yarn" and rope(config).get("truncate") is False:
        yield (
            "yarn without truncation: the CPU engine rounds the ends of its ramp to whole dimensions, so that "
            "log-probabilities differ in the second decimal"
        )
    if tokenizer.nfc:
        yield "the tokenizer brings text to NFC first, the CPU engine does not: send NFC text"
    if tokenizer.pre in LOOSE:
        yield "the CPU engine begins a new word at a combining mark (Hindi, pointed Hebrew), the tokenizer does not"
    if tokenizer.swallows_space:
        yield "the CPU engine keeps the first space of a text that starts with one; the tokenizer takes it away"


def _unserved(
    family: Family,
    config: Config,
    quantised: Quantisation | None,
    cannot: EngineCannot | None,
    engines: tuple[EngineVerdict, ...],
    available: Available,
) -> Iterable[Problem]:
    """Why no engine here serves the checkpoint, unless it may be kept for one that does."""
    if any(verdict.serves and verdict.available for verdict in engines):
        return
    able = [f"{verdict.engine} ({verdict.hardware})" for verdict in engines if verdict.serves]
    remedy = f" It can be served by {' or '.join(able)}, not installed here." if able else ""
    if quantised is not None and not quantised.engines & available.names:
        message = (
            f"config.json has quantization_config ({quantised.method}): no engine here reads such weights.{remedy} "
            "Import the checkpoint in bfloat16, float16 or float32."
        )
        yield Problem(file="config.json", found=quantised.method, message=message)
        return
    if family.gguf is None or LLAMA_CPP not in available.names:
        if not able:
            yield Problem(file="config.json", message=f"config.json: no engine serves this {family.label} checkpoint.")
        return
    for obstacle in llama_cpp_obstacles(family, config):
        yield Problem(file="config.json", message=f"config.json: {obstacle}.{remedy}")
    if cannot is not None:
        yield from (Problem(file=problem.file, message=problem.message + remedy) for problem in cannot.problems)


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


def _checked_config(files: CheckpointFiles, available: Available) -> tuple[Family, Config, Quantisation | None]:
    raw = _json(files, "config.json", "Upload the model's config.json beside the weights.")
    family = _family(raw, available)
    config = family.read(raw)
    problems = list(_config_problems(family, config))
    quantised = None
    try:
        quantised = quantisation(config)
    except CheckpointRejected as exc:
        problems += exc.problems
    if problems:
        raise CheckpointRejected(problems)
    return family, config, quantised


def _vocabulary_problems(config: Config, tokenizer: Tokenizer) -> Iterable[Problem]:
    largest = max(tokenizer.tokens)
    if largest >= config["vocab_size"]:
        message = (
            f"tokenizer.json has token id {largest}, config.json a vocab_size of {config['vocab_size']}: the tokenizer "
            "belongs to another model. Upload the one that the model was trained with."
        )
        yield Problem(
            file="tokenizer.json", found=str(largest), expected=f"below {config['vocab_size']}", message=message
        )


def _family(config: Config, available: Available) -> Family:
    named = config.get("model_type")
    family = FAMILIES.get(named) if isinstance(named, str) else None
    architectures = config.get("architectures") or []
    architectures = architectures if isinstance(architectures, list) else [architectures]
    if family is not None and (not architectures or set(family.architectures) & set(map(str, architectures))):
        return family
    for architecture in map(str, architectures):
        if engines := available.supporting(architecture):
            return unlisted(str(named), architecture, engines)
    label = named if family is None else ", ".join(map(str, architectures))
    raise CheckpointRejected.of(
        f"Amazon bedrock does not support the architecture ({label}) of the model that you are importing. Try "
        f"again with one of the following supported architectures: [{', '.join(FAMILIES)}]. "
        f"(config.json: architectures {architectures})",
        "config.json",
    )


def _config_problems(family: Family, config: Config) -> Iterable[Problem]:
    unsound = False
    for key, largest in {**REQUIRED_KEYS, **OPTIONAL_KEYS, **family.required}.items():
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
    if reason := rope_problem(config):
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
    elif head_size(config) % 2 and family.gguf != "starcoder":
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
    config: Config,
    quantised: Quantisation | None,
    tensors: Mapping[str, tuple[str, TensorInfo]],
    files: CheckpointFiles,
) -> Iterable[Problem]:
    if family.tensors is None or (quantised is not None and "llama.cpp" not in quantised.engines):
        return  # packed weights and towers for images come under names that their tools choose
    expected = family.tensors(config)
    packed = quantised is not None
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
        if info.dtype not in DTYPES and not (packed and info.dtype == "U8"):
            message = f"{shard}: tensor {name} is {info.dtype}; F32, F16 or BF16 is needed."
            yield Problem(file=shard, tensor=name, found=info.dtype, message=message)
    for name, (shard, info) in tensors.items():
        if name not in shapes and not name.endswith(family.also):
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
