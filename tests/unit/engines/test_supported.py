"""What an installed engine says it serves. A small package stands in for vLLM, which needs a GPU host to be useful."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from outcrop.engines.supported import vllm_architectures
from outcrop.errors import EngineFault


def interpreter(folder: Path, package: str) -> str:
    """An interpreter whose ``vllm`` is *package*."""
    (folder / "vllm.py").write_text(package)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return str(python)


async def test_the_registry_is_read_among_what_the_engine_logs(tmp_path: Path) -> None:
    registry = (
        "print('INFO starting')\n"
        "class ModelRegistry:\n"
        "    @staticmethod\n"
        "    def get_supported_archs():\n"
        "        return {'OlmoForCausalLM', 'LlamaForCausalLM'}\n"
    )

    assert await vllm_architectures(interpreter(tmp_path, registry)) == {"OlmoForCausalLM", "LlamaForCausalLM"}


async def test_an_engine_that_cannot_say_is_named_with_its_reason(tmp_path: Path) -> None:
    broken = interpreter(tmp_path, "raise ImportError('libcudart.so.13: cannot open shared object file')")

    with pytest.raises(EngineFault, match=r"could not say what its vLLM serves: .*libcudart"):
        await vllm_architectures(broken)


async def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineFault, match="vllm_python /nowhere/python cannot be run: No such file"):
        await vllm_architectures("/nowhere/python")
