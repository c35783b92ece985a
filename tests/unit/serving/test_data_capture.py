"""Captured requests: SageMaker's lines and places, sampled, bounded."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from outcrop.serving import data_capture
from outcrop.serving.data_capture import DataCapture, line, wanted

CONFIG: dict[str, Any] = {
    "EnableCapture": True,
    "InitialSamplingPercentage": 30,
    "DestinationS3Uri": "s3://captures/prefix",
    "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"], "CsvContentTypes": ["text/csv"]},
}
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def made(config: dict[str, Any] = CONFIG, **event: Any) -> dict[str, Any]:
    given = {"request": ("text/csv", b"1,2"), "answer": ("application/json; charset=utf-8", b'{"a":1}'), **event}
    found: dict[str, Any] = json.loads(line(config, event_id="id", at=AT, **given))
    return found


def test_a_line_is_the_one_that_sagemaker_writes() -> None:
    assert made(inference_id="i", attributes="c=1") == {
        "captureData": {
            "endpointInput": {"observedContentType": "text/csv", "mode": "INPUT", "data": "1,2", "encoding": "CSV"},
            "endpointOutput": {
                "observedContentType": "application/json; charset=utf-8",
                "mode": "OUTPUT",
                "data": '{"a":1}',
                "encoding": "JSON",
            },
        },
        "eventMetadata": {
            "eventId": "id",
            "inferenceTime": "2026-01-02T03:04:05Z",
            "inferenceId": "i",
            "customAttributes": ["c=1"],
        },
        "eventVersion": "0",
    }


def test_types_that_no_header_names_and_bytes_that_are_no_text_are_base64() -> None:
    assert made({**CONFIG, "CaptureContentTypeHeader": {}})["captureData"]["endpointInput"]["encoding"] == "BASE64"
    assert made(request=("text/csv", b"\xff"))["captureData"]["endpointInput"]["data"] == "/w=="


def test_only_the_sides_that_are_asked_for_are_captured() -> None:
    assert list(made({**CONFIG, "CaptureOptions": [{"CaptureMode": "Output"}]})["captureData"]) == ["endpointOutput"]


def test_a_share_of_the_requests_is_captured() -> None:
    assert [wanted(CONFIG, point) for point in (0.0, 0.29, 0.3)] == [True, True, False]
    assert not wanted({**CONFIG, "EnableCapture": False}, 0.0)
    assert not wanted(None, 0.0)


async def test_lines_of_an_hour_lie_under_endpoint_variant_and_hour(tmp_path: Path) -> None:
    capture = DataCapture(lambda url: tmp_path / url.removeprefix("s3://"))
    for _ in range(3):
        capture.note(CONFIG, "e", "v", request=("a", b"1"), answer=("b", b"2"))
    await capture.close()

    (file,) = files(tmp_path)
    assert file.suffix == ".jsonl"
    assert file.parent.parent.parent.parent.parent == tmp_path / "captures/prefix/e/v"
    assert len(file.read_text().splitlines()) == 3


async def test_what_a_bucket_cannot_take_in_time_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_capture, "MOST_BYTES", 1000)
    capture = DataCapture(lambda url: tmp_path / url.removeprefix("s3://"))
    for _ in range(20):
        capture.note(CONFIG, "e", "v", request=("a", b"x" * 100), answer=None)

    dropped = capture.dropped
    await capture.close()
    (file,) = files(tmp_path)
    assert dropped > 0
    assert len(file.read_text().splitlines()) == 20 - dropped
