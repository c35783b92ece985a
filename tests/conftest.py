"""Fixtures that several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.checkpoints import make_checkpoint
from tests.support.s3 import MotoServer
from tests.support.server import Server

# The same examples in every run, so that a change is judged by what it changes; the long targets look for new ones.
settings.register_profile("repeatable", derandomize=True)
if "OUTCROP_TEST_EXAMPLES" not in os.environ:
    settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 checkpoint with a chat template. Copy it before breaking it."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """A real S3 server that checks signatures and policies."""
    moto = MotoServer()
    yield moto
    moto.stop()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as it was."""
    server = Server(tmp_path_factory.mktemp("home"), cpu_threads=1, imports_in_parallel=4).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def model(server: Server, tiny: Path) -> str:
    """ARN of an imported chat model named ``tiny``."""
    return server.import_model(tiny, "tiny")
