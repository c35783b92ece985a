"""Which engines a server has."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from outcrop.engines.base import Engine
from outcrop.engines.custom import Custom
from outcrop.engines.hardware import Hardware
from outcrop.engines.installed import SGLANG, TENSORRT_LLM, VLLM, Installed
from outcrop.engines.llama_cpp import LlamaCpp
from outcrop.engines.on_gpus import Options
from outcrop.engines.sglang import SGLang
from outcrop.engines.simulated import Simulated
from outcrop.engines.tensorrt_llm import TensorRTLLM
from outcrop.engines.vllm import Vllm
from outcrop.errors import BadSetting
from outcrop.settings import Settings


def engines_of(settings: Settings, hardware: Hardware, found: Sequence[Installed]) -> list[Engine]:
    """The engines of *found* that can be used. Raises BadSetting for a model on one that cannot."""
    timeout_s = settings.request_timeout_s
    usable = {engine.engine: engine for engine in found if engine.is_usable}
    engines: list[Engine] = [
        LlamaCpp(request_timeout_s=timeout_s),
        Simulated(settings.simulated, request_timeout_s=timeout_s),
    ]
    if settings.custom_engine:
        engines.append(Custom(settings.custom_engine, request_timeout_s=timeout_s))
    on_gpus: list[tuple[Callable[..., Engine], str, list[str]]] = [
        (Vllm, VLLM, settings.vllm_args),
        (SGLang, SGLANG, settings.sglang_args),
        (TensorRTLLM, TENSORRT_LLM, settings.tensorrt_llm_args),
    ]
    for engine, name, arguments in on_gpus:
        if name in usable:
            options = Options(
                command=usable[name].command or name,
                work=settings.engine_work,
                memory_share=settings.gpu_memory_share,
                load_format=settings.load_format,
                sleep=settings.vllm_sleep,
                extra=tuple(arguments),
            )
            engines.append(engine(options, hardware, request_timeout_s=timeout_s))
    for model, name in settings.engine_by_model.items():
        if name not in usable:
            raise BadSetting(
                f"engine_by_model puts {model!r} on {name!r}; the engines here are {', '.join(usable)} "
                "(OUTCROP_ENGINE_BY_MODEL; outcrop engines says why not others)"
            )
    return engines
