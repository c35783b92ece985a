"""One llama.cpp copy in a child process, asked through its native routes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from outcrop.engines import copy_socket
from outcrop.engines.llama_cpp_child import PREFIX
from outcrop.launchers import sockets

_SECRET = "parity"


@dataclass(frozen=True, slots=True)
class Engine:
    """*url*: where its copy listens, as our own client takes it."""

    client: httpx.Client
    url: str

    def log_probabilities(self, prefix: list[int], vocab: int) -> dict[int, float]:
        """Of every token that may follow *prefix*, unchanged by any sampler.

        The bias forces a harmless choice: after half a character or an end-of-text token nothing is reported. The
        reported values come from before it.
        """
        body = {
            "prompt": prefix,
            "n_predict": 1,
            "n_probs": vocab,
            "temperature": 1.0,
            "samplers": [],
            "logit_bias": [[self.tokenize("a")[0], 1e6]],
            "post_sampling_probs": False,
            "cache_prompt": True,
        }
        answer = self._post("/completion", body)
        return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return list(self._post("/tokenize", body)["tokens"])

    def complete(self, **body: Any) -> dict[str, Any]:
        return self._post("/completion", body)

    def apply_template(self, messages: list[dict[str, str]]) -> str:
        return str(self._post("/apply-template", {"messages": messages})["prompt"])

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.post(path, json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


def convert(checkpoint: Path, out: Path, dtype: str = "auto") -> dict[str, Any]:
    """The converter's last event."""
    argv = [sys.executable, "-m", "outcrop.engines.gguf_convert", "--checkpoint", checkpoint, "--out", out]
    ended = subprocess.run([*argv, "--dtype", dtype], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return last


@contextmanager
def serving(artifact: Path, context_tokens: int) -> Iterator[Engine]:
    config = {
        "model": str(artifact),
        "secret": _SECRET,
        "context_tokens": context_tokens,
        "slots": 1,
        "threads": 1,
        "kv_f32": True,
    }
    folder = sockets.Sockets()
    address, _ = folder.fresh()
    child = subprocess.Popen(
        [sys.executable, "-m", "outcrop.engines.llama_cpp_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, copy_socket.VARIABLE: address},
        pass_fds=() if folder.handle is None else (folder.handle,),
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(config).encode() + b"\n")
        child.stdin.flush()
        announced = json.loads(child.stdout.readline())
        assert "url" in announced, announced
        headers = {"Authorization": f"Bearer {_SECRET}"}
        with httpx.Client(
            base_url=f"http://localhost{PREFIX}",
            transport=httpx.HTTPTransport(uds=address),
            headers=headers,
            timeout=30,
        ) as client:
            yield Engine(client, announced["url"])
    finally:
        child.kill()
        child.communicate()
        folder.close()
