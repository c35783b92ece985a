"""Data capture: sampled requests and answers of endpoints as JSON lines, in SageMaker's layout, without anyone waiting.

Layout and fields: Amazon SageMaker developer guide, "Capture data from real-time endpoint"
(``{prefix}/{endpoint}/{variant}/yyyy/mm/dd/hh/*.jsonl``; captureData, eventMetadata, eventVersion); what is encoded
how: botocore ``sagemaker/2017-07-24``, CaptureContentTypeHeader.
"""

from __future__ import annotations

import asyncio
import base64
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import structlog

log = structlog.get_logger(__name__)

MOST_BYTES = 64 << 20  # of captures that are not written yet; more are dropped and counted
_FLUSH_S = 2.0
_MODES = {"Input": ("Input",), "Output": ("Output",), "InputAndOutput": ("Input", "Output")}


@dataclass(slots=True)
class _Buffer:
    """Events of one place, not encoded yet: that is for the thread that writes."""

    prefix: str
    events: list[tuple[Mapping[str, Any], dict[str, Any]]] = field(default_factory=list)


def wanted(config: Mapping[str, Any] | None, point: float) -> bool:
    """Whether a request at *point*, in [0, 1), is captured."""
    if not config or not config.get("EnableCapture", False):
        return False
    return point * 100 < float(config["InitialSamplingPercentage"])


def line(
    config: Mapping[str, Any],
    *,
    event_id: str,
    at: datetime,
    request: tuple[str, bytes],
    answer: tuple[str, bytes] | None,
    inference_id: str = "",
    attributes: str = "",
) -> bytes:
    """One captured request as a line of JSON; *request* and *answer* are a content type and bytes."""
    modes = {mode for option in config["CaptureOptions"] for mode in _MODES[option["CaptureMode"]]}
    header = config.get("CaptureContentTypeHeader", {})
    data: dict[str, Any] = {}
    if "Input" in modes:
        data["endpointInput"] = _side("INPUT", *request, header)
    if "Output" in modes and answer is not None:
        data["endpointOutput"] = _side("OUTPUT", *answer, header)
    metadata: dict[str, Any] = {"eventId": event_id, "inferenceTime": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
    if inference_id:
        metadata["inferenceId"] = inference_id
    if attributes:
        metadata["customAttributes"] = [attributes]
    return msgspec.json.encode({"captureData": data, "eventMetadata": metadata, "eventVersion": "0"}) + b"\n"


def _side(mode: str, content_type: str, content: bytes, header: Mapping[str, Any]) -> dict[str, str]:
    plain = content_type.partition(";")[0].strip().lower()
    encoding = "BASE64"
    for name, found in (("CsvContentTypes", "CSV"), ("JsonContentTypes", "JSON")):
        if plain in (value.lower() for value in header.get(name, ())):
            encoding = found
    try:
        text = base64.b64encode(content).decode() if encoding == "BASE64" else content.decode()
    except UnicodeDecodeError:  # it is not what it says it is
        encoding, text = "BASE64", base64.b64encode(content).decode()
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}


class DataCapture:
    """Lines on their way to their buckets. *object_path*: the file of an ``s3://`` URL."""

    def __init__(self, object_path: Callable[[str], Path]) -> None:
        self._object_path = object_path
        self._buffers: dict[str, _Buffer] = {}
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self.dropped = 0

    def wants(self, config: Mapping[str, Any] | None) -> bool:
        return wanted(config, random.random())  # noqa: S311  (a sample, nothing secret)

    def note(
        self,
        config: Mapping[str, Any],
        endpoint: str,
        variant: str,
        *,
        request: tuple[str, bytes],
        answer: tuple[str, bytes] | None,
        **more: str,
    ) -> None:
        """Keep one request, see ``line``. Never waits and encodes nothing; over MOST_BYTES the newest is dropped."""
        at = datetime.now(UTC)
        size = len(request[1]) + (len(answer[1]) if answer is not None else 0)
        if self._bytes + size > MOST_BYTES:
            self.dropped += 1
            return
        event = {"event_id": str(uuid.uuid4()), "at": at, "request": request, "answer": answer, **more}
        prefix = f"{config['DestinationS3Uri'].rstrip('/')}/{endpoint}/{variant}/{at:%Y/%m/%d/%H}"
        buffer = self._buffers.setdefault(prefix, _Buffer(prefix))
        buffer.events.append((config, event))
        self._bytes += size
        if self._task is None:
            self._task = asyncio.create_task(self._flush_soon(), name="data capture")

    async def _flush_soon(self) -> None:
        try:
            await asyncio.sleep(_FLUSH_S)
        finally:
            self._task = None
        await self._flush()

    async def _flush(self) -> None:
        buffers, self._buffers, self._bytes = list(self._buffers.values()), {}, 0
        dropped, self.dropped = self.dropped, 0
        if dropped:
            log.warning("captures were dropped: the bucket is behind", dropped=dropped)
        await asyncio.to_thread(self._write, buffers)

    def _write(self, buffers: list[_Buffer]) -> None:
        for buffer in buffers:
            name = f"{datetime.now(UTC):%M-%S-%f}-{uuid.uuid4()}.jsonl"
            try:
                path = self._object_path(f"{buffer.prefix}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f".{path.name}.part")
                with part.open("wb") as file:
                    for config, event in buffer.events:
                        file.write(line(config, **event))
                part.replace(path)
            except OSError as exc:
                log.error("captures could not be written", place=buffer.prefix, events=len(buffer.events), why=str(exc))

    async def close(self) -> None:
        """Write what is left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._flush()
