"""The engine's artefact, made by a child process: its memory and its crashes stay outside the server.

The child writes ``model.gguf`` under its final name only when it is whole; ``model.json`` beside it keeps what the
child said (dtype, probes), so that a repeated job neither converts again nor skips the tokeniser probe. Both are kept
by what they were made from: models with the same weights share one file on disk and in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any

from outcrop.checkpoints.problems import CheckpointRejected
from outcrop.errors import ServiceFault, StorageFull
from outcrop.importing.weights import ARTIFACT, RECORD, write_atomically
from outcrop.launchers.local import inherited

REJECTED, NO_STORAGE = 3, 4  # exit codes of the converter


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What the converter made. *probes*: texts and the token ids that the checkpoint's own tokenizer gives.

    *key*: see ``artifact_key``.
    """

    artifact_bytes: int
    dtype: str
    probes: tuple[tuple[str, list[int]], ...]
    notes: tuple[str, ...]
    key: str = ""

    @classmethod
    def from_event(cls, event: dict[str, Any]) -> Converted:
        return cls(
            artifact_bytes=event["bytes"],
            dtype=event["dtype"],
            probes=tuple((probe["text"], probe["ids"]) for probe in event["probes"]),
            notes=tuple(event.get("notes", ())),
        )


def artifact_key(digests: Mapping[str, str], quantise: str | None, pooling: str | None) -> str:
    """What an artefact is kept by: a digest of all that decides its bytes. *digests*: SHA-256 of the files by name."""
    decided = json.dumps([sorted(digests.items()), quantise, pooling, _converter()])
    return hashlib.sha256(decided.encode()).hexdigest()


@cache
def _converter() -> str:
    """A digest of the converter as it is installed: another version may write other bytes."""
    digest = hashlib.sha256(version("gguf").encode())
    for room in ("outcrop.checkpoints", "outcrop.engines"):
        for module in sorted(files_of(room).iterdir(), key=lambda entry: entry.name):
            if module.name.endswith(".py") and (room == "outcrop.checkpoints" or module.name.startswith("gguf_")):
                digest.update(module.name.encode() + module.read_bytes())
    return digest.hexdigest()


async def convert(
    folder: Path, *, heard: Callable[[float], None], quantise: str | None = None, pooling: str | None = None
) -> Converted:
    """Make ``model.gguf`` from *folder*/checkpoint unless an earlier run did; *heard* gets the share done (0..1).

    *quantise*: the type that matrices are packed to (``q8_0``, ``q4_0``); None keeps the checkpoint's precision.
    *pooling*: what the importer says of a model that embeds.

    Raises CheckpointRejected for weights that cannot be used, StorageFull when the disk is, ServiceFault else.
    """
    artifact, record = folder / ARTIFACT, folder / RECORD
    if artifact.exists() and record.exists():
        return Converted.from_event(json.loads(record.read_bytes()))
    argv = ["-m", "outcrop.engines.gguf_convert", "--checkpoint", str(folder / "checkpoint"), "--out", str(artifact)]
    argv.append("--scanned")
    argv += ["--quantize", quantise] if quantise else []
    argv += ["--embedding", pooling] if pooling else []
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited(),
        limit=16 << 20,
    )
    try:
        last, errors = await asyncio.gather(_follow(process, heard), _tail(process))
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code == 0 and last.get("event") == "done":
        write_atomically(record, json.dumps(last).encode())
        return Converted.from_event(last)
    message = last.get("message") or errors or f"the converter ended with status {code}"
    if code == REJECTED:
        raise CheckpointRejected.of(message)
    if code == NO_STORAGE:
        raise StorageFull(message)
    raise ServiceFault(f"Converting the checkpoint for the engine failed: {message}")


async def _follow(process: asyncio.subprocess.Process, heard: Callable[[float], None]) -> dict[str, Any]:
    assert process.stdout is not None
    last: dict[str, Any] = {}
    async for line in process.stdout:
        if not line.startswith(b"{"):
            continue
        last = json.loads(line)
        if last.get("event") == "progress":
            heard(last["done_bytes"] / max(1, last["total_bytes"]))
    return last


async def _tail(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(1 << 16):
        kept = (kept + chunk)[-2000:]
    return kept.decode(errors="replace").strip()
