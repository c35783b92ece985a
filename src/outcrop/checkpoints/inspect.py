"""From config, tokenizer files and headers to a checked description; every problem is found before a weight moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

from outcrop.checkpoints.config import Config, closing_window
from outcrop.checkpoints.config_check import checked_config
from outcrop.checkpoints.embedding import Embedding, read_embedding, with_prefix
from outcrop.checkpoints.engines import CPU_ONLY, LLAMA_CPP, Available, EngineVerdict, llama_cpp_obstacles, verdicts
from outcrop.checkpoints.families import FAMILIES, Family
from outcrop.checkpoints.files import CheckpointFiles
from outcrop.checkpoints.pre_tokenizers import LOOSE
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.quantisation import Quantisation
from outcrop.checkpoints.rope import rope, rope_kind
from outcrop.checkpoints.safetensors_header import TensorInfo
from outcrop.checkpoints.sizing import kv_bytes_of, kv_bytes_per_token
from outcrop.checkpoints.texts import bos_id, chat_template, eos_ids
from outcrop.checkpoints.tokenizer_files import read_tokenizer
from outcrop.checkpoints.units import model_units
from outcrop.checkpoints.vocabulary import EngineCannot, Tokenizer
from outcrop.checkpoints.weights_check import read_tensors, tensor_problems

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What was found. *eos_token_ids*: every token that ends a text, the tokenizer's own first.

    *bos_token_id*: the token that the tokenizer calls bos_token, whether or not it adds it; None when it has none.

    *config* is in our spelling (``Family.read``). *context_tokens* is what *engine* serves exactly. *notes* are for
    people: what differs from what they may expect. *quantisation* is None for floating point.
    *embedding*: how it embeds; None for a model that generates.
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
    embedding: Embedding | None = None

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

    embedding = attempt(lambda: read_embedding(files))
    checked = attempt(lambda: checked_config(files, available, embeds=embedding is not None))
    read = attempt(lambda: read_tokenizer(files.texts, may_end=embedding is not None))
    tokenizer, cannot = read or (None, None)
    tensors = attempt(lambda: read_tensors(files))
    if embedding is not None and tensors is not None:
        tensors = with_prefix(tensors)
        if checked and "lm_head.weight" not in tensors:
            checked = checked[0], {**checked[1], "tie_word_embeddings": True}, checked[2]
    eos = attempt(lambda: eos_ids(files, tokenizer)) if checked and tokenizer else None
    bos = attempt(lambda: bos_id(files, tokenizer)) if tokenizer else None
    template = attempt(lambda: chat_template(files))
    engines: tuple[EngineVerdict, ...] = ()
    if checked and tokenizer:
        problems += _vocabulary_problems(checked[1], tokenizer)
    if checked and tensors is not None:
        problems += tensor_problems(*checked, tensors, files)
    if checked:
        family, config, quantised = checked
        engines = verdicts(family, config, quantised, str(cannot) if cannot else None, available)
        problems += _unserved(family, config, quantised, cannot, engines, available)
    if problems or checked is None or tokenizer is None or tensors is None or eos is None:
        raise CheckpointRejected(list(dict.fromkeys(problems)))
    return _described(*checked, tensors, engines, tokenizer, eos, bos, template, embedding)


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
    embedding: Embedding | None,
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
        embedding=embedding,
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
