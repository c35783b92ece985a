"""The main job, for real: import the sample checkpoint with boto3, ask it through every API, print what it took.

Starts a server of its own on a free port with a temporary home, and stops everything that it started.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3
from rich.console import Console
from rich.table import Table

SAMPLE = Path(__file__).parent / "apexguru"
out = Console(highlight=False)


def main() -> int:
    """Run the demo; 0 when everything answered."""
    home = Path(tempfile.mkdtemp(prefix="outcrop-demo-"))
    server = subprocess.Popen(
        [sys.executable, "-m", "outcrop.cli.main", "serve"],
        env={**os.environ, "OUTCROP_HOME": str(home), "OUTCROP_PORT": "0", "OUTCROP_KEEP_ALIVE_S": "1"},
        stderr=(home / "server.log").open("wb"),
    )
    try:
        run(home, server)
    except Exception:
        out.print("The demo failed. The end of the server's log:")
        out.print((home / "server.log").read_text(errors="replace")[-3000:], markup=False)
        raise
    finally:
        server.terminate()
        status = server.wait(30)
        shutil.rmtree(home)
    out.print(f"Server stopped (status {status}), temporary home removed.")
    return status


def run(home: Path, server: subprocess.Popen[bytes]) -> None:
    begun = time.perf_counter()
    address = home / "run" / "server.json"
    while not address.exists():
        if server.poll() is not None or time.perf_counter() - begun > 30:
            raise RuntimeError("the server did not start")
        time.sleep(0.02)
    url = json.loads(address.read_text())["url"]
    keys = json.loads((home / "credentials.json").read_text())
    out.print(f"[bold]1. Server[/] at {url}, started in {time.perf_counter() - begun:.2f} s")

    shutil.copytree(SAMPLE / "checkpoint", home / "buckets" / "models" / "apexguru")
    aws = {
        "endpoint_url": url,
        "region_name": keys["region"],
        "aws_access_key_id": keys["access_key_id"],
        "aws_secret_access_key": keys["secret_access_key"],
    }
    bedrock, runtime = boto3.client("bedrock", **aws), boto3.client("bedrock-runtime", **aws)
    arn, import_s = import_model(bedrock, keys["import_role_arn"])
    phases = get(f"{url}/outcrop/v1/import-jobs/apexguru-1", keys["bearer_key"])["timings"]
    out.print(f"[bold]2. Imported[/] s3://models/apexguru/ as {arn} in {import_s:.2f} s")

    generator = load(SAMPLE / "generator.py")
    example = next(example for example in map(generator.sample, range(100)) if len(example.findings) >= 2)
    messages = generator.messages(example)
    out.print("[bold]3. The question:[/] which lines of this class are slow?")
    out.print(example.numbered, markup=False)
    timings, answers = ask(runtime, url, keys["bearer_key"], arn, messages)
    out.print("[bold]4. The answers[/]")
    for name, answer in answers.items():
        out.print(f"   {name:32} {answer}", markup=False)
    out.print(f"   {'expected':32} {example.answer}", markup=False)
    if len(set(answers.values())) != 1:
        raise RuntimeError("the APIs gave different answers to one question")
    out.print("   as expected" if set(answers.values()) == {example.answer} else "   the model is wrong on this one")

    table = Table("timing", "value", title="5. What it took", title_justify="left", box=None)
    table.add_row("import, whole", f"{import_s:.2f} s")
    for phase, seconds in phases.items():
        table.add_row(f"  {phase}", f"{seconds:.2f} s")
    for label, value in timings.items():
        table.add_row(label, value)
    out.print(table)


def import_model(bedrock: Any, role: str) -> tuple[str, float]:
    """Import with the call that AWS has for it; the model's ARN and the seconds until it could be asked."""
    begun = time.perf_counter()
    job = bedrock.create_model_import_job(
        jobName="apexguru-1",
        importedModelName="apexguru",
        roleArn=role,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://models/apexguru/"}},
    )
    while True:
        found = bedrock.get_model_import_job(jobIdentifier=job["jobArn"])
        if found["status"] == "Failed":
            raise RuntimeError(found["failureMessage"])
        if found["status"] == "Completed":
            return found["importedModelArn"], time.perf_counter() - begun
        time.sleep(0.05)


def ask(
    runtime: Any, url: str, key: str, arn: str, messages: list[dict[str, str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Timings and answers of one question through each API. The first finds no copy running."""
    body = {"messages": messages, "max_tokens": 256, "temperature": 0}
    converse = {
        "modelId": arn,
        "messages": [{"role": m["role"], "content": [{"text": m["content"]}]} for m in messages],
        "inferenceConfig": {"maxTokens": 256, "temperature": 0},
    }
    answers: dict[str, str] = {}
    begun = time.perf_counter()
    first = runtime.invoke_model(modelId=arn, body=json.dumps(body))
    cold_s = time.perf_counter() - begun
    answers["InvokeModel"] = json.loads(first["body"].read())["choices"][0]["message"]["content"]
    begun = time.perf_counter()
    warm = runtime.invoke_model(modelId=arn, body=json.dumps(body))
    warm_s = time.perf_counter() - begun
    gateway_ms = warm["ResponseMetadata"]["HTTPHeaders"]["x-outcrop-gateway-ms"]

    begun = time.perf_counter()
    pieces: list[str] = []
    first_s, metrics = 0.0, dict[str, int]()
    for event in runtime.invoke_model_with_response_stream(modelId=arn, body=json.dumps(body))["body"]:
        first_s = first_s or time.perf_counter() - begun
        chunk = json.loads(event["chunk"]["bytes"])
        pieces += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
        metrics = chunk.get("amazon-bedrock-invocationMetrics", metrics)
    stream_s = time.perf_counter() - begun
    answers["InvokeModelWithResponseStream"] = "".join(pieces)
    answers["Converse"] = runtime.converse(**converse)["output"]["message"]["content"][0]["text"]
    events = runtime.converse_stream(**converse)["stream"]
    answers["ConverseStream"] = "".join(
        event["contentBlockDelta"]["delta"]["text"] for event in events if "contentBlockDelta" in event
    )
    answers["OpenAI chat completions, streamed"] = "".join(openai_stream(url, key, body))
    tokens = metrics["outputTokenCount"]
    timings = {
        "cold start: first answer from zero copies": f"{cold_s:.2f} s",
        "the same answer, warm": f"{warm_s * 1000:.0f} ms",
        "time to first token": f"{first_s * 1000:.0f} ms",
        "tokens": f"{metrics['inputTokenCount']} in, {tokens} out",
        "tokens/s after the first": f"{(tokens - 1) / max(1e-9, stream_s - first_s):.0f}",
        "what the gateway added": f"{float(gateway_ms):.2f} ms",
    }
    return timings, answers


def openai_stream(url: str, key: str, body: dict[str, Any]) -> Iterator[str]:
    """Pieces of a streamed chat completion, over the standard library alone."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps({**body, "model": "apexguru", "stream": True}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        for line in response:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    yield choice["delta"].get("content") or ""


def get(url: str, key: str) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def load(path: Path) -> ModuleType:
    """The module in *path*, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
