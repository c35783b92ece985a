"""Whether a config is one that its family can have: which family, keys, sizes, rotary parameters."""

from __future__ import annotations

from collections.abc import Iterable

from outcrop.checkpoints.config import Config, head_size, kv_head_count
from outcrop.checkpoints.engines import Available
from outcrop.checkpoints.families import FAMILIES, OPTIONAL_KEYS, REQUIRED_KEYS, Family, unlisted
from outcrop.checkpoints.files import CheckpointFiles, read_json
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.quantisation import Quantisation, quantisation
from outcrop.checkpoints.rope import rope_problem


def checked_config(
    files: CheckpointFiles, available: Available, *, embeds: bool = False
) -> tuple[Family, Config, Quantisation | None]:
    """The family, its config in our spelling, how it is quantised. Raises CheckpointRejected with every problem.

    *embeds*: the bare model, without its head, is one too.
    """
    raw = read_json(files, "config.json", "Upload the model's config.json beside the weights.")
    family = _family(raw, available, embeds=embeds)
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


def _family(config: Config, available: Available, *, embeds: bool) -> Family:
    named = config.get("model_type")
    family = FAMILIES.get(named) if isinstance(named, str) else None
    architectures = config.get("architectures") or []
    architectures = architectures if isinstance(architectures, list) else [architectures]
    known = set(family.architectures) if family else set()
    if embeds:
        known |= {name.replace("ForCausalLM", "Model") for name in known}
    if family is not None and (not architectures or known & set(map(str, architectures))):
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
