"""Ceph's gateway in place of moto: ``make test-ceph`` unpacks Debian's packages into a folder and runs these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.ceph import CephServer

UNPACKED = Path(__file__).parents[2] / ".foreign" / "ceph" / "root"
_IS_THERE = (UNPACKED / "usr" / "bin" / "radosgw").exists()

collect_ignore_glob = [] if _IS_THERE else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if _IS_THERE else f"tests/ceph left out: no Ceph in {UNPACKED} (make test-ceph)"


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephServer]:
    server = CephServer(UNPACKED, tmp_path_factory.mktemp("ceph"))
    try:
        yield server.start()
    finally:
        server.stop()
