"""OpenStack Swift in place of moto: ``make test-s3`` installs it in an environment of its own and runs these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.swift import SwiftServer

BIN = Path(__file__).parents[2] / ".foreign" / "swift" / "bin"
_IS_THERE = (BIN / "swift-proxy-server").exists()

collect_ignore_glob = [] if _IS_THERE else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if _IS_THERE else f"tests/swift left out: no Swift in {BIN} (make test-s3)"


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    server = SwiftServer(BIN, tmp_path_factory.mktemp("swift"))
    try:
        yield server.start()
    finally:
        server.stop()
