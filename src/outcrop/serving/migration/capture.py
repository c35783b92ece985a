"""Compared pairs on disk, as SageMaker's Data Capture writes invocations: one JSON line per answer, a file an hour.

``FOLDER/NAME/SIDE/yyyy/mm/dd/hh/pairs.jsonl``; the two lines of a pair have one ``inferenceId``. They hold what callers
and models said, so folder and files are the operator's alone. Source: SageMaker Developer Guide, "Capture data".
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

MOST_BYTES = 256 << 20  # of one migration; then nothing more is kept


class Pairs:
    """The files of one migration. Its methods do file I/O: call them on a thread, one at a time."""

    def __init__(self, folder: Path, name: str, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder / quote(name, safe="")
        self._name = name
        self._left = most_bytes - sum(path.stat().st_size for path in self.folder.rglob("*.jsonl"))

    def write(self, at: float, body: bytes, answers: Mapping[str, bytes], content_type: str) -> bool:
        """Keep one request and the answers of the sides; whether there was room."""
        inference_id = str(uuid.uuid4())
        moment = datetime.fromtimestamp(at, UTC)
        lines = {
            side: self._line(moment, inference_id, side, body, said, content_type) for side, said in answers.items()
        }
        size = sum(map(len, lines.values()))
        if size > self._left:
            return False
        self._left -= size
        for side, line in lines.items():
            folder = self.folder / side / moment.strftime("%Y/%m/%d/%H")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # One write a line: what a kill leaves is whole lines and at most one that is cut.
            descriptor = os.open(folder / "pairs.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        return True

    def _line(
        self, moment: datetime, inference_id: str, side: str, body: bytes, said: bytes, content_type: str
    ) -> bytes:
        found = {
            "captureData": {
                "endpointInput": _part("INPUT", body, content_type),
                "endpointOutput": _part("OUTPUT", said, content_type),
            },
            "eventMetadata": {
                "eventId": str(uuid.uuid4()),
                "inferenceId": inference_id,
                "customAttributes": [f"migration={self._name};side={side}"],
                "inferenceTime": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "eventVersion": "0",
        }
        return json.dumps(found, ensure_ascii=False).encode() + b"\n"


def _part(mode: str, data: bytes, content_type: str) -> dict[str, str]:
    text = data.decode(errors="replace")
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": "JSON"}
