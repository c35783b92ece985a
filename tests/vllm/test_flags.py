"""Derived command lines, read by the engines' own argument parsers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.unit.engines.test_gpu_engines import H100S, spec

from outcrop.engines import sglang, vllm_command
from outcrop.engines.hardware import Hardware
from outcrop.engines.on_gpus import Options

OPTIONS = Options("serve", Path("/copies"))
STYLES = [
    ("hermes", "qwen3"), ("mistral", None), ("llama3_json", None), ("deepseek_v3", "deepseek_r1"),
    ("qwen3_coder", None), ("openai", "openai_gptoss"), ("phi4_mini_json", None), (None, None),
]  # fmt: skip
_VLLM = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.tool_parsers import ToolParserManager
from vllm.reasoning import ReasoningParserManager
parser = make_arg_parser(FlexibleArgumentParser())
for argv in json.load(sys.stdin):
    read = parser.parse_args(argv)
    ToolParserManager.get_tool_parser(read.tool_call_parser)
    if read.reasoning_parser:
        ReasoningParserManager.get_reasoning_parser(read.reasoning_parser)
    print("read", read.tensor_parallel_size, read.max_model_len)
"""
_SGLANG = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for argv in json.load(sys.stdin):
    read = parser.parse_args(argv)
    print("read", read.tp_size, read.context_length)
"""


def read_by(python: str, program: str, lines: list[list[str]]) -> list[str]:
    done = subprocess.run(
        [python, "-c", program], input=json.dumps(lines), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("read ")]


@pytest.mark.parametrize("hardware", [H100S, Hardware(8, 64 << 30)], ids=["GPUs", "CPU"])
def test_vllm_reads_every_command_line(hardware: Hardware) -> None:
    lines = [
        list(vllm_command.served(spec(70, tools=tools, thoughts=thoughts), hardware, OPTIONS).argv)
        for tools, thoughts in STYLES
    ]
    python = str(Path(os.environ["OUTCROP_TEST_VLLM"]).parent / "python")

    # The command and its subcommand are not the parser's.
    read = read_by(python, _VLLM, [line[2:] for line in lines])

    assert len(read) == len(STYLES)
    assert all(line.split()[1] == ("4" if hardware.gpus else "1") for line in read)


def test_sglang_reads_every_command_line() -> None:
    lines = [
        list(sglang.served(spec(70, tools=tools, thoughts=thoughts), H100S, OPTIONS).argv) for tools, thoughts in STYLES
    ]

    read = read_by(
        os.environ["OUTCROP_TEST_SGLANG"],
        _SGLANG,
        [[word.replace("{port}", "1") for word in line[2:]] for line in lines],
    )

    assert read == ["read 4 8192"] * len(STYLES)
