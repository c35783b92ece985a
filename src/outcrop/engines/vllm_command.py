"""vLLM's command line and environment for one model on this hardware: everything derived, all of it to be seen. Pure.

One path for GPUs and for the processor; what differs is memory (a share of the GPU, or bytes of RAM), precision and
whether graphs are compiled. Flags are those of vLLM 0.32.
"""

from __future__ import annotations

import math

from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.engines.gpu_fit import MOST_SLOTS, fit, slots_for
from outcrop.engines.hardware import Hardware
from outcrop.engines.on_gpus import GPU_START_S, HOST_BYTES, SERVED_NAME, Options, Served, checkpoint_of

CPU_HOST_BYTES = 2_500_000_000  # of a copy on the processor, beside weights and cache
CPU_START_S = 60.0
_GIB = 1 << 30
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_BF16_COMPUTE = 8.0  # first compute capability with bfloat16


def served(spec: CopySpec, hardware: Hardware, options: Options) -> Served:
    """Raises EngineMissing when the model does not fit."""
    work = options.work / spec.model_id
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The proof run compiles, and every start of a copy after it finds that done.
        "VLLM_CACHE_ROOT": str(work / "cache"),
        "TRITON_CACHE_DIR": str(work / "cache" / "triton"),
    }
    on = _on_gpus if hardware.gpus else _on_cpu
    placed = on(spec, hardware, options)
    argv = [
        *(options.command, "serve", str(checkpoint_of(options, spec))),
        *("--served-model-name", SERVED_NAME, "--uds", "{socket}"),
        *("--max-model-len", str(placed.context_tokens), "--max-num-seqs", str(placed.slots)),
        # Sampling that the caller leaves open is neutral here, whatever generation_config.json says.
        *("--generation-config", "vllm"),
        *("--uvicorn-log-level", "warning", "--disable-uvicorn-access-log"),
        *placed.argv,
        *_reading(spec),
        *options.extra,
    ]
    return structs.replace(placed, argv=tuple(argv), environment={**environment, **placed.environment})


def _reading(spec: CopySpec) -> list[str]:
    """How answers and prompts are read: tool calls, thoughts, tokenizer."""
    if spec.pooling:
        return ["--runner", "pooling"]
    model = spec.model
    # Without a parser it refuses tools, also the choices that it enforces by itself, whatever the template knows.
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", model.tool_style or "hermes"]
    if model.thought_style:
        flags += ["--reasoning-parser", model.thought_style]
    if model.has_tekken_only:
        flags += ["--tokenizer-mode", "mistral"]
    return flags


def _on_gpus(spec: CopySpec, hardware: Hardware, options: Options) -> Served:
    fitted = fit(spec, hardware, memory_share=options.memory_share)
    used = hardware.gpus[: fitted.tensor_parallel]
    has_bf16 = all(gpu.vendor == "amd" or gpu.compute >= _BF16_COMPUTE for gpu in used)
    dtype = "auto" if has_bf16 or spec.model.dtype != "BF16" else "half"
    is_nvidia = all(gpu.vendor == "nvidia" for gpu in used)
    argv = [
        *("--tensor-parallel-size", str(fitted.tensor_parallel)),
        *("--gpu-memory-utilization", f"{options.memory_share:g}", "--dtype", dtype),
        *("--load-format", options.load_format),
    ]
    environment = {}
    levels, why = _sleep_levels(spec, options.sleep, is_nvidia=is_nvidia)
    if levels:
        argv.append("--enable-sleep-mode")
        environment["VLLM_SERVER_DEV_MODE"] = "1"  # where /sleep and /wake_up are
    held = f"{spec.model.weight_bytes / 1e9:.1f} GB of weights and {fitted.kv_tokens} tokens of cache"
    reasons = [f"{fitted.tensor_parallel} of {len(hardware.gpus)} GPU(s): the fewest that hold {held}"]
    if fitted.context_tokens < spec.context_tokens:
        reasons.append(
            f"context cut from {spec.context_tokens} to {fitted.context_tokens} tokens, which the cache holds"
        )
    if dtype == "half":
        reasons.append(f"float16, because {used[0].name} has no bfloat16")
    return Served(
        argv=tuple(argv),
        environment=environment,
        context_tokens=fitted.context_tokens,
        slots=min(fitted.slots, spec.slots_limit or MOST_SLOTS),
        gpus=fitted.tensor_parallel,
        host_bytes=HOST_BYTES,
        start_s=GPU_START_S,
        sleep_levels=levels,
        reasons=(*reasons, f"sleep levels {', '.join(map(str, levels)) or 'none'}: {why}"),
    )


def _sleep_levels(spec: CopySpec, wanted: str, *, is_nvidia: bool) -> tuple[tuple[int, ...], str]:
    """Levels at which a copy may sleep, the soonest to wake first, and why these."""
    if not is_nvidia:
        return (), "vLLM's allocator that sleeps is CUDA's"
    if wanted == "off":
        return (), "switched off by the setting"
    if spec.model.quantisation and wanted != "1":
        # Loading packs quantised weights anew for the kernels; reading them in place a second time skips that.
        return (1,), "level 2 reads weights in place, which quantised ones do not survive"
    if wanted != "auto":
        return (int(wanted),), "named by the setting"
    return (1, 2), "1 where the node's memory holds the weights, else 2"


def _on_cpu(spec: CopySpec, hardware: Hardware, options: Options) -> Served:
    """Float32 where the processor has no bfloat16 and the memory allows: faster there, and exact."""
    model = spec.model
    as_f32 = model.weight_bytes if model.dtype == "F32" else 2 * model.weight_bytes
    is_f32 = model.dtype == "F32" or (not _BF16_FLAGS & hardware.cpu_flags and as_f32 <= hardware.memory_bytes // 4)
    per_token = max(1, model.kv_bytes_per_token) * (2 if is_f32 else 1)  # counted at two bytes a value
    share = hardware.memory_bytes // 4
    wanted = per_token * spec.context_tokens * (spec.slots_limit or 32)
    kv_gib = max(1, math.ceil(min(share, wanted) / _GIB))
    kv_tokens = kv_gib * _GIB // per_token
    slots = slots_for(kv_tokens, spec.context_tokens)
    weights = as_f32 if is_f32 else model.weight_bytes
    return Served(
        argv=("--dtype", "float32" if is_f32 else "bfloat16", "--enforce-eager"),
        environment={
            "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # fixed cores would be the same ones for every copy
            "OMP_NUM_THREADS": str(max(1, spec.threads)),
        },
        context_tokens=min(spec.context_tokens, kv_tokens),
        slots=min(slots, spec.slots_limit or 32),
        gpus=0,
        host_bytes=CPU_HOST_BYTES + weights + kv_gib * _GIB,
        start_s=CPU_START_S,
        reasons=(
            f"no GPU: on the processor in {'float32' if is_f32 else 'bfloat16'}, {kv_gib} GiB of key-value cache",
        ),
    )
