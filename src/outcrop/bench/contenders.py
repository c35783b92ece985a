"""The servers that the gateway benchmark measures beside each other, all in front of one upstream process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import aiohttp
import boto3
import typer
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SigningCredentials

from outcrop.access.credentials_file import Credentials, read
from outcrop.bench.gateway import SAMPLE

SERVICE = "bedrock"
MODEL = "bench"
START_S = 120.0
MOST_IN_FLIGHT = 256
SERVE = (sys.executable, "-m", "outcrop.cli.main", "serve")


@dataclass(frozen=True, slots=True)
class Contender:
    """One server: where it listens and how a request to it is written; *pid* where its processor time is measured."""

    name: str
    host: str
    port: int
    key: str = ""
    arn: str = ""
    credentials: Credentials | None = None
    pid: int = 0

    def request(self, prompt: str, pieces: int) -> bytes:
        """The bytes of a whole HTTP/1.1 request, signed now; *pieces* over 0 asks for a stream of so many tokens."""
        if self.credentials is not None:
            return self._signed(prompt, pieces)
        body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": pieces or 64}
        if pieces:
            body["stream"] = True
        head = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return _http(self, "/v1/chat/completions", head, json.dumps(body).encode())

    def _signed(self, prompt: str, pieces: int) -> bytes:
        assert self.credentials is not None
        operation = "invoke-with-response-stream" if pieces else "invoke"
        path = f"/model/{quote(self.arn, safe='')}/{operation}"
        messages = [{"role": "user", "content": prompt}]
        body = json.dumps({"messages": messages, "max_tokens": pieces or 64}).encode()
        request = AWSRequest(
            "POST", f"http://{self.host}:{self.port}{path}", data=body, headers={"Content-Type": "application/json"}
        )
        keys = SigningCredentials(self.credentials.access_key_id, self.credentials.secret_access_key)
        SigV4Auth(keys, SERVICE, self.credentials.region).add_auth(request)
        return _http(self, path, dict(request.headers.items()), body)


def _http(to: Contender, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {to.host}:{to.port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in {"Content-Type": "application/json", **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@contextlib.asynccontextmanager
async def outcrop(
    home: Path, *, command: Sequence[str] = SERVE, settings: Mapping[str, str] | None = None
) -> AsyncIterator[list[Contender]]:
    """A server whose one model runs on the benchmark's upstream as a custom engine; the upstream itself comes first."""
    await asyncio.to_thread(home.mkdir, mode=0o700)
    port_file = home / "upstream.port"
    engine = [sys.executable, "-m", "outcrop.bench.upstream", "--port", "{port}", "--port-file", str(port_file)]
    variables = {
        "OUTCROP_HOME": str(home),
        "OUTCROP_PORT": "0",
        "OUTCROP_LOG_LEVEL": "warning",
        "OUTCROP_SLOTS": str(MOST_IN_FLIGHT),
        "OUTCROP_KEEP_ALIVE_S": "3600",
        "OUTCROP_CUSTOM_ENGINE": shlex.join(engine),
        "OUTCROP_CUSTOM_ENGINE_MODELS": json.dumps([MODEL]),
        **(settings or {}),
    }
    async with _process(list(command), variables, home / "outcrop.log"):
        address = home / "run" / "server.json"
        await _until(address.exists, "outcrop", home / "outcrop.log")
        served = json.loads(address.read_text())
        url, pid = served["url"], served["pid"]
        keys = read(home)
        arn = await asyncio.to_thread(_import, url, keys, home)
        host, _, port = url.removeprefix("http://").rpartition(":")
        bedrock = Contender("outcrop, SigV4 InvokeModel", host, int(port), arn=arn, credentials=keys, pid=pid)
        openai = Contender("outcrop, OpenAI", host, int(port), key=keys.bearer_key, pid=pid)
        await ask(openai)  # starts the copy, whose port is known from then on
        yield [Contender("direct", "127.0.0.1", int(port_file.read_text())), bedrock, openai]


def _import(url: str, keys: Credentials, home: Path) -> str:
    """Import the sample, whose weights nobody will run; its ARN."""
    shutil.copytree(SAMPLE, home / "buckets" / "bench" / "sample")
    bedrock = boto3.client(
        SERVICE,
        endpoint_url=url,
        region_name=keys.region,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
    )
    job = bedrock.create_model_import_job(
        jobName=MODEL,
        importedModelName=MODEL,
        roleArn=keys.import_role_arn,
        modelDataSource={"s3DataSource": {"s3Uri": "s3://bench/sample/"}},
    )
    while (found := bedrock.get_model_import_job(jobIdentifier=job["jobArn"]))["status"] == "InProgress":
        time.sleep(0.2)
    if found["status"] != "Completed":
        raise RuntimeError(f"the import failed: {found.get('failureMessage')}")
    return str(found["importedModelArn"])


@contextlib.asynccontextmanager
async def litellm(python: Path, upstream: Contender, folder: Path, port: int) -> AsyncIterator[Contender]:
    """LiteLLM's proxy, one worker, no database, logging off."""
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"http://{upstream.host}:{upstream.port}/v1",
                    "api_key": "none",
                },
            }
        ],
        "general_settings": {"master_key": "sk-bench"},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    path = folder / "litellm.json"  # JSON is YAML
    path.write_text(json.dumps(config))
    command = [str(python.parent / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    contender = Contender("litellm proxy", "127.0.0.1", port, key="sk-bench")
    async with _process(command, environment, folder / "litellm.log"):
        await _until_answers(contender, folder / "litellm.log")
        yield contender


@contextlib.asynccontextmanager
async def ray_serve(python: Path, upstream: Contender, folder: Path, port: int) -> AsyncIterator[Contender]:
    """A Ray Serve deployment that only forwards, one replica."""
    hop = Path(__file__).parents[3] / "benchmarks" / "ray_serve_hop.py"
    command = [str(python), str(hop), str(port), f"http://{upstream.host}:{upstream.port}"]
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    contender = Contender("ray serve", "127.0.0.1", port)
    async with _process(command, environment, folder / "ray.log"):
        await _until_answers(contender, folder / "ray.log")
        yield contender


@contextlib.asynccontextmanager
async def _process(command: list[str], environment: Mapping[str, str], log: Path) -> AsyncIterator[None]:
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment}, stdout=file, stderr=file, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 20)
        except TimeoutError:
            process.kill()
            await process.wait()


async def ask(contender: Contender) -> None:
    """One whole answer. Raises when there is none."""
    reader, writer = await asyncio.open_connection(contender.host, contender.port)
    try:
        writer.write(contender.request("Hello", 0))
        line = await asyncio.wait_for(reader.readline(), 60)
        if b" 200 " not in line:
            rest = await asyncio.wait_for(reader.read(2000), 5)
            raise RuntimeError(f"{contender.name} answered {line!r}: {rest[-500:]!r}")
    finally:
        writer.close()


async def pace(upstream: Contender, delay_ms: float, token_ms: float) -> None:
    """Set the upstream's delay and interval."""
    url = f"http://{upstream.host}:{upstream.port}/pace?delay_ms={delay_ms}&token_ms={token_ms}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()


async def _until_answers(contender: Contender, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            await ask(contender)
        except (OSError, RuntimeError, TimeoutError) as exc:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{contender.name} did not start: {exc}; its log is {log}") from exc
            await asyncio.sleep(0.5)
        else:
            return


async def _until(is_true: object, name: str, log: Path) -> None:
    assert callable(is_true)
    deadline = time.monotonic() + START_S
    while not is_true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{name} did not start; its log is {log}")
        await asyncio.sleep(0.05)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="outcrop-bench-", ignore_cleanup_errors=True)


def note(text: str) -> None:
    typer.echo(text, err=True)
