"""SGLang, on GPUs. Flags are those of SGLang 0.5.23; they are checked against its own parser, it was not run.

It listens on ports only, and its key leaves out ``/health_generate`` and ``/metrics``: a copy runs in a network of its
own (``guard``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import structs

from outcrop.engines.base import CopySpec
from outcrop.engines.gpu_fit import MOST_SLOTS, fit
from outcrop.engines.hardware import Hardware
from outcrop.engines.llama_cpp_request import Plan
from outcrop.engines.on_gpus import (
    GPU_START_S,
    HOST_BYTES,
    SERVED_NAME,
    DerivedServer,
    Options,
    Served,
    checkpoint_of,
)
from outcrop.errors import EngineMissing, InvalidRequest
from outcrop.inference.canonical import GenerateRequest

NAME = "sglang"
_TOOLS = {
    "hermes": "hermes",
    "mistral": "mistral",
    "llama3_json": "llama3",
    "deepseek_v3": "deepseekv3",
    "qwen3_coder": "qwen3_coder",
    "openai": "gpt-oss",
}
_THOUGHTS = {"qwen3": "qwen3", "deepseek_r1": "deepseek-r1", "openai_gptoss": "gpt-oss"}


def served(spec: CopySpec, hardware: Hardware, options: Options) -> Served:
    """Raises EngineMissing without a GPU, or where the model does not fit."""
    if not hardware.gpus:
        raise EngineMissing("SGLang needs a GPU, and this machine has none. Put the model on another engine.")
    fitted, model = fit(spec, hardware, memory_share=options.memory_share), spec.model
    argv = [
        *(
            options.command,
            "serve",
            "--model-path",
            str(checkpoint_of(options, spec)),
            "--served-model-name",
            SERVED_NAME,
        ),
        *("--host", "127.0.0.1", "--port", "{port}", "--tp-size", str(fitted.tensor_parallel)),
        *("--context-length", str(fitted.context_tokens)),
        *("--max-running-requests", str(min(fitted.slots, spec.slots_limit or MOST_SLOTS))),
        *("--mem-fraction-static", f"{options.memory_share:g}", "--load-format", options.load_format),
        *("--sampling-defaults", "openai", "--enable-metrics", "--log-level-http", "warning"),
    ]
    if style := _TOOLS.get(model.tool_style or ""):
        argv += ["--tool-call-parser", style]
    if style := _THOUGHTS.get(model.thought_style or ""):
        argv += ["--reasoning-parser", style]
    return Served(
        argv=(*argv, *options.extra),
        environment={"HF_HUB_OFFLINE": "1"},
        context_tokens=fitted.context_tokens,
        slots=min(fitted.slots, spec.slots_limit or MOST_SLOTS),
        gpus=fitted.tensor_parallel,
        host_bytes=HOST_BYTES,
        start_s=GPU_START_S,
        reasons=(f"{fitted.tensor_parallel} of {len(hardware.gpus)} GPU(s), {fitted.kv_tokens} tokens of cache",),
    )


class SGLang(DerivedServer):
    """Client and command of SGLang copies."""

    name = NAME

    def __init__(self, options: Options, hardware: Hardware, *, request_timeout_s: float) -> None:
        super().__init__(served, options, hardware, request_timeout_s=request_timeout_s)

    def planned(self, request: GenerateRequest) -> Plan:
        """OpenAI's field names; constraints in SGLang's own. Raises InvalidRequest for what it cannot do."""
        if request.body.get("prompt_logprobs") is not None:
            raise InvalidRequest(
                "prompt_logprobs is not supported by this model's engine (SGLang); leave it out",
                param="prompt_logprobs",
            )
        plan = super().planned(request)
        body = {key: value for key, value in plan.body.items() if key != "structured_outputs"}
        body |= {"model": SERVED_NAME, **constrained(request.body.get("structured_outputs") or {})}
        return structs.replace(plan, body=body)


def constrained(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's ``structured_outputs`` in SGLang's words."""
    for kind, value in outputs.items():
        match kind:
            case "regex":
                return {"regex": value}
            case "choice":
                return {"regex": "(" + "|".join(re.escape(choice) for choice in value) + ")"}
            case "grammar":
                return {"ebnf": value}
            case "json":
                schema = msgspec.json.decode(value) if isinstance(value, str) else value
                wrapped = {"name": "answer", "schema": schema}
                return {"response_format": {"type": "json_schema", "json_schema": wrapped}}
            case _:
                raise InvalidRequest(
                    f"structured_outputs.{kind} is not supported by this model's engine (SGLang)",
                    param="structured_outputs",
                )
    return {}
