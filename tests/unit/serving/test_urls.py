"""Addresses of other services: what can be called, and what is refused before anything is."""

from __future__ import annotations

import pytest

from outcrop.errors import InvalidRequest
from outcrop.serving.forwards import destination
from outcrop.serving.migration.plan import read_side
from outcrop.serving.urls import http_url

BROKEN = (
    "",
    "ftp://h",
    "https://",
    "http://[::1",
    "http://h:99999",
    "http://h:port",
    "http://h:0",
    "http://me:secret@h",
    "http://a b",
    "http://h/x y",
)


@pytest.mark.parametrize("url", ["http://h", "https://h:8443/v1", "http://[::1]:80/p"])
def test_a_url_of_a_host_is_taken(url: str) -> None:
    assert http_url(url) is not None


@pytest.mark.parametrize("url", BROKEN)
def test_what_cannot_be_called_is_refused_wherever_it_is_written(url: str) -> None:
    assert http_url(url) is None
    if url:
        with pytest.raises(InvalidRequest, match="is no http or https URL"):
            read_side(f"bedrock:m@{url}?region=us-east-1")
    with pytest.raises(InvalidRequest, match="is no http"):
        destination({"OUTCROP_FORWARD_TO": "openai:m", "OUTCROP_FORWARD_URL": url}, "us-east-1")
