"""What can be known of a checkpoint before a weight moves: config, tokenizer, index and the safetensors headers.

The first step of every job, and ``outcrop check``. Everything is read concurrently, headers by one ranged read that
is long enough for most; a store with 20 ms of latency costs a few of them, however many shards there are.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from outcrop.checkpoints.engines import CPU_ONLY, Available
from outcrop.checkpoints.files import INDEX, CheckpointFiles, wanted_texts
from outcrop.checkpoints.inspect import Checkpoint, inspect
from outcrop.checkpoints.problems import CheckpointRejected, Problem
from outcrop.checkpoints.safetensors_header import MAX_HEADER_BYTES, parse_header
from outcrop.checkpoints.shard_index import index_problems
from outcrop.importing.chat_probe import Render, chat_probe
from outcrop.importing.sources.base import Source, SourceFile
from outcrop.importing.tasks import tasks

READS_AT_A_TIME = 32
TEXT_PART_BYTES = 2 << 20
PARTS_AT_A_TIME = 3  # of one text
LARGEST_TEXT_BYTES = 256_000_000  # tokenizer.json of the largest vocabularies is about 35 MB
HEAD_BYTES = 64 << 10  # holds the header of a shard of some 500 tensors
_TEMPLATE_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found: the *checkpoint*, or the *problems* that keep it from being one. *sources*: all files listed.

    *place*: see Source.
    """

    uri: str
    place: str
    sources: Mapping[str, SourceFile]
    names: Sequence[str]  # the files that an import brings, sorted
    checkpoint: Checkpoint | None
    problems: Sequence[Problem]
    warnings: Sequence[str]

    @property
    def total_bytes(self) -> int:
        return sum(self.sources[name].size_bytes for name in self.names)

    def accepted(self) -> Checkpoint:
        """The checkpoint. Raises CheckpointRejected with every problem."""
        if self.checkpoint is None or self.problems:
            raise CheckpointRejected(self.problems)
        return self.checkpoint


async def preflight(source: Source, available: Available = CPU_ONLY, *, pooling: str | None = None) -> Preflight:
    """Read what is needed from *source* and check it for the engines *available*. Raises the source's errors only.

    *pooling*: what the importer says of a model that is to give embeddings.
    """
    async with chat_probe() as render:
        return await _preflight(source, render, available, pooling)


async def _preflight(source: Source, render: Render, available: Available, pooling: str | None) -> Preflight:
    sources = await source.files()
    gate = asyncio.Semaphore(READS_AT_A_TIME)

    async def text(name: str) -> tuple[str, bytes]:
        return name, await read_text(source, sources[name], gate)

    async def header(name: str) -> tuple[str, bytes]:
        async with gate:
            return name, await read_header(source, sources[name])

    texts = [name for name in wanted_texts(list(sources)) if sources[name].size_bytes <= LARGEST_TEXT_BYTES]
    shards = [name for name in sources if name.endswith(".safetensors")]
    async with tasks() as group:
        read_texts = [group.create_task(text(name)) for name in texts]
        read_heads = [group.create_task(header(name)) for name in shards]
    files = CheckpointFiles(
        sizes={name: file.size_bytes for name, file in sources.items()},
        texts=dict(task.result() for task in read_texts),
        headers=dict(task.result() for task in read_heads),
        pooling=pooling,
    )
    return await _judged(source, sources, files, render, available)


async def read_text(source: Source, file: SourceFile, gate: asyncio.Semaphore) -> bytes:
    """A whole *file*, in parts side by side: a large one is never in memory twice."""
    found = io.BytesIO()
    few = asyncio.Semaphore(PARTS_AT_A_TIME)

    async def part(start: int) -> None:
        async with few, gate:
            body = await source.read(file, start, min(start + TEXT_PART_BYTES, file.size_bytes))
        found.seek(start)
        found.write(body)

    async with tasks() as group:
        for start in range(0, file.size_bytes, TEXT_PART_BYTES):
            group.create_task(part(start))
    return found.getvalue()


async def read_header(source: Source, file: SourceFile) -> bytes:
    """The length field and the JSON header of a safetensors file; what is there when it is cut off."""
    head = bytes(await source.read(file, 0, min(HEAD_BYTES, file.size_bytes)))
    length = int.from_bytes(head[:8], "little") if len(head) >= 8 else 0
    end = min(8 + min(length, MAX_HEADER_BYTES), file.size_bytes)
    if end > len(head):
        head += bytes(await source.read(file, len(head), end))
    return head[: max(end, min(8, len(head)))]


async def _judged(
    source: Source, sources: Mapping[str, SourceFile], files: CheckpointFiles, render: Render, available: Available
) -> Preflight:
    checkpoint, problems = None, []
    try:
        checkpoint = await asyncio.to_thread(inspect, files, available)
    except CheckpointRejected as exc:
        problems = list(exc.problems)
    more, warnings = await asyncio.to_thread(_index_against_shards, files)
    problems += more
    if checkpoint is not None and checkpoint.chat_template is not None:
        broken, warning = await render(checkpoint.chat_template, _template_tokens(files))
        warnings += [warning] if warning else []
        if broken:
            message = (
                f"The chat template does not render a test conversation: {broken}. Repair it (chat_template.jinja or "
                "tokenizer_config.json), or remove it to import a model without chat."
            )
            problems.append(Problem(file="tokenizer_config.json", message=message, found=broken))
    names = [] if checkpoint is None else sorted({*files.texts, *checkpoint.shards})
    return Preflight(
        uri=source.uri,
        place=source.place,
        sources=sources,
        names=names,
        checkpoint=checkpoint,
        problems=problems,
        warnings=warnings,
    )


def _index_against_shards(files: CheckpointFiles) -> tuple[list[Problem], list[str]]:
    shards = {}
    for name, head in files.headers.items():
        try:
            shards[name] = parse_header(name, head, files.sizes[name])
        except CheckpointRejected:
            return [], []  # inspect has said so
    return index_problems(INDEX, files.texts.get(INDEX), shards)


def _template_tokens(files: CheckpointFiles) -> dict[str, str]:
    """The named tokens that templates use, as transformers passes them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            document: Any = msgspec.json.decode(files.texts.get(name, b"{}"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        for key in _TEMPLATE_TOKENS:
            token = document.get(key) if isinstance(document, dict) else None
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[key] = token
    return found
