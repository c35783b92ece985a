"""TensorRT-LLM by ``trtllm-serve``, on NVIDIA GPUs. Flags follow its documented command line (1.x); it was not run.

Its server takes no key and listens on ports only, so a copy runs in a network of its own, whose only door asks for one
(``guard``).
"""

from __future__ import annotations

from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.engines.gpu_fit import MOST_SLOTS, fit
from outcrop.engines.hardware import Hardware
from outcrop.engines.llama_cpp_request import Plan
from outcrop.engines.on_gpus import GPU_START_S, HOST_BYTES, DerivedServer, Options, Served, checkpoint_of
from outcrop.errors import EngineMissing, InvalidRequest
from outcrop.inference.canonical import GenerateRequest

NAME = "tensorrt-llm"
PREFILL_TOKENS = 8192  # of one batch
_THOUGHTS = {"qwen3": "qwen3", "deepseek_r1": "deepseek-r1"}
_REFUSED = ("prompt_logprobs", "structured_outputs", "tools")


def served(spec: CopySpec, hardware: Hardware, options: Options) -> Served:
    """Raises EngineMissing without an NVIDIA GPU, or where the model does not fit."""
    if not hardware.gpus or any(gpu.vendor != "nvidia" for gpu in hardware.gpus):
        raise EngineMissing("TensorRT-LLM needs NVIDIA GPUs. Put the model on another engine.")
    fitted = fit(spec, hardware, memory_share=options.memory_share)
    slots = min(fitted.slots, spec.slots_limit or MOST_SLOTS)
    argv = [
        *(options.command, "serve", str(checkpoint_of(options, spec)), "--backend", "pytorch"),
        *("--host", "127.0.0.1", "--port", "{port}", "--tp_size", str(fitted.tensor_parallel)),
        *("--max_seq_len", str(fitted.context_tokens), "--max_batch_size", str(slots)),
        *("--max_num_tokens", str(max(PREFILL_TOKENS, slots))),
        # A share of what weights leave free, not of the whole GPU.
        *("--kv_cache_free_gpu_memory_fraction", f"{options.memory_share:g}"),
    ]
    if style := _THOUGHTS.get(spec.model.thought_style or ""):
        argv += ["--reasoning_parser", style]
    return Served(
        argv=(*argv, *options.extra),
        environment={"HF_HUB_OFFLINE": "1", "TRTLLM_NO_USAGE_STATS": "1"},
        context_tokens=fitted.context_tokens,
        slots=slots,
        gpus=fitted.tensor_parallel,
        host_bytes=HOST_BYTES,
        start_s=GPU_START_S,
        reasons=(f"{fitted.tensor_parallel} of {len(hardware.gpus)} GPU(s), {fitted.kv_tokens} tokens of cache",),
    )


class TensorRTLLM(DerivedServer):
    """Client and command of TensorRT-LLM copies. It calls its model by the folder's name."""

    name = NAME

    def __init__(self, options: Options, hardware: Hardware, *, request_timeout_s: float) -> None:
        super().__init__(served, options, hardware, request_timeout_s=request_timeout_s)

    def planned(self, request: GenerateRequest) -> Plan:
        """OpenAI's field names. Raises InvalidRequest for what was not seen to work with it."""
        refused = [key for key in _REFUSED if request.body.get(key)]
        if refused:
            raise InvalidRequest(
                f"{refused[0]} is not supported by this model's engine (TensorRT-LLM); leave it out", param=refused[0]
            )
        plan = super().planned(request)
        return structs.replace(plan, body={**plan.body, "model": "checkpoint"})
