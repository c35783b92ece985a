"""Whether the shards hold the tensors that the config implies, each once, in a dtype that can be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outcrop.checkpoints.config import Config
from outcrop.checkpoints.engines import LLAMA_CPP
from outcrop.checkpoints.families import Family
from outcrop.checkpoints.files import INDEX, WHOLE, CheckpointFiles, read_json
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.quantisation import Quantisation
from outcrop.checkpoints.safetensors_header import TensorInfo, parse_header

DTYPES = ("F32", "F16", "BF16")


def read_tensors(files: CheckpointFiles) -> dict[str, tuple[str, TensorInfo]]:
    """Every tensor of the shards that transformers would read: the index's, else ``model.safetensors``, else all."""
    if not files.headers:
        raise CheckpointRejected.of(
            f"No *.safetensors file was found{_instead(files.sizes)}. Upload the weights as safetensors.", ""
        )
    shards = [WHOLE] if WHOLE in files.headers else sorted(files.headers)
    if INDEX in files.texts:
        weight_map = read_json(files, INDEX, "Write the checkpoint again.").get("weight_map")
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


def _instead(names: Iterable[str]) -> str:
    """What was uploaded that is not read, and why."""
    found = list(names)
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in found):
        return " (*.bin, *.pt and other pickles are not read: loading one can run code)"
    archives = [name for name in found if name.endswith((".tar", ".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2", ".7z"))]
    return f" (archives such as {archives[0]} are not unpacked)" if archives else ""


def tensor_problems(
    family: Family,
    config: Config,
    quantised: Quantisation | None,
    tensors: Mapping[str, tuple[str, TensorInfo]],
    files: CheckpointFiles,
) -> Iterable[Problem]:
    if family.tensors is None or (quantised is not None and LLAMA_CPP not in quantised.engines):
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
    # Layers beyond the last predict further tokens while training (DeepSeek-V3); they are no part of the model.
    layers = config["num_hidden_layers"]
    beyond = tuple(f"model.layers.{layers + n}." for n in range(min(8, config.get("num_nextn_predict_layers") or 0)))
    for name, (shard, info) in tensors.items():
        if beyond and name.startswith(beyond):
            continue
        if name not in shapes and not name.endswith(family.also):
            message = f"{shard}: tensor {name} {list(info.shape)} does not belong to a {family.model_type} model."
            yield Problem(file=shard, tensor=name, message=message)
