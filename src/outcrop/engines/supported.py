"""Which architectures an installed engine serves, asked of the engine itself in a process of its own.

An engine's environment is apart from ours (their dependencies exclude each other), and importing one takes seconds and
gigabytes; so its interpreter is run once and says what its registry holds.
"""

from __future__ import annotations

import asyncio
import json

from outcrop.errors import EngineFault

ASK_TIMEOUT_S = 180.0  # importing vLLM from a cold disk was seen to take more than a minute
_MARK = "outcrop-architectures "
_ASK_VLLM = (
    "import json; from vllm import ModelRegistry; "
    f"print({_MARK!r} + json.dumps(sorted(ModelRegistry.get_supported_archs())))"
)


async def vllm_architectures(python: str) -> frozenset[str]:
    """What the vLLM of the interpreter *python* serves, as its ModelRegistry says. Raises EngineFault."""
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            "-c",
            _ASK_VLLM,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as exc:
        raise EngineFault(
            f"vllm_python {python} cannot be run: {exc.strerror}. Give the interpreter of vLLM's own "
            "environment, or leave the setting empty."
        ) from exc
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            out, errors = await process.communicate()
    except TimeoutError as exc:
        raise EngineFault(f"vllm_python {python} did not say within {ASK_TIMEOUT_S:g} s what its vLLM serves.") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    for line in out.decode(errors="replace").splitlines():
        if line.startswith(_MARK):  # vLLM logs to standard output as well
            return frozenset(json.loads(line.removeprefix(_MARK)))
    last = errors.decode(errors="replace").strip().splitlines()[-1:] or [f"status {process.returncode}"]
    raise EngineFault(f"vllm_python {python} could not say what its vLLM serves: {last[0][:300]}")
