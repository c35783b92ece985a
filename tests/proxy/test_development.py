"""Writing a model.py: the files to begin with, rehearsals, reloading."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import aiohttp
from tests.support.proxy import ARN
from tests.support.server import free_port
from tests.support.target import Target


def _command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outcrop.cli.main", "proxy", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


async def test_a_new_bundle_passes_its_own_tests_and_its_recorded_payload(tmp_path: Path, upstream: Target) -> None:
    options = ["--model-dir", ".", "--target", ARN, "--endpoint-url", upstream.url, "--region", "us-east-1"]

    made = _command("init", folder=tmp_path)
    assert made.returncode == 0, made.stderr
    assert _command("init", folder=tmp_path).returncode == 2  # nothing is ever replaced
    own = [sys.executable, "-m", "pytest", "-q", "test_model.py"]
    ran = await asyncio.to_thread(subprocess.run, own, cwd=tmp_path, timeout=60, check=False)
    assert ran.returncode == 0
    unrecorded = await asyncio.to_thread(_command, *options, "test", folder=tmp_path)
    assert unrecorded.returncode == 1
    recorded = await asyncio.to_thread(_command, *options, "test", "--record", folder=tmp_path)
    assert recorded.returncode == 0, recorded.stdout + recorded.stderr
    payload = json.loads((tmp_path / "payloads" / "question.json").read_text())
    assert payload["answer"] == {"status": 200, "json": {"answer": "WHAT IS A PROXY?"}}
    asked = len(upstream.requests)

    replayed = await asyncio.to_thread(_command, "--model-dir", ".", "test", "--json", folder=tmp_path)
    assert replayed.returncode == 0, replayed.stdout
    assert json.loads(replayed.stdout)[0]["problem"] == ""
    assert len(upstream.requests) == asked  # a replay asks nobody

    script = tmp_path / "model.py"
    script.write_text(script.read_text().replace('"max_tokens": 200', '"max_tokens": 100'))
    changed = await asyncio.to_thread(_command, "--model-dir", ".", "test", folder=tmp_path)
    assert changed.returncode == 1
    assert '"max_tokens": 100' in changed.stdout
    live = await asyncio.to_thread(_command, *options, "test", "--live", folder=tmp_path)
    assert live.returncode == 0, live.stdout


async def test_a_changed_script_is_loaded_anew_and_a_broken_one_says_so_until_it_is_mended(
    tmp_path: Path, upstream: Target
) -> None:
    script = tmp_path / "model.py"
    script.write_text("def postprocess(response, ctx):\n    return 'one'\n")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "outcrop.cli.main", "proxy", "--model-dir", str(tmp_path), "--target", ARN],
        *["--endpoint-url", upstream.url, "--region", "us-east-1", "--port", str(port), "serve", "--reload"],
        env={**os.environ},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session:

            async def answers(said: str) -> None:
                async with asyncio.timeout(30):
                    while True:
                        try:
                            async with session.post(
                                f"http://127.0.0.1:{port}/invocations", json={"prompt": "x"}
                            ) as response:
                                if said in await response.text():
                                    return
                        except aiohttp.ClientError:
                            pass
                        await asyncio.sleep(0.1)

            await answers("one")
            script.write_text("def postprocess(response, ctx):\n    return 'two' +\n")
            async with asyncio.timeout(30):
                while True:
                    async with session.get(f"http://127.0.0.1:{port}/ping") as response:
                        if response.status == 503 and "SyntaxError" in await response.text():
                            break
                    await asyncio.sleep(0.1)
            script.write_text("def postprocess(response, ctx):\n    return 'three'\n")
            await answers("three")
    finally:
        process.terminate()
        await process.wait()
