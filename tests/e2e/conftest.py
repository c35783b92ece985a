"""Checkpoints for tests with processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose context holds answers of many seconds, so that what happens mid-stream does."""
    return make_checkpoint(tmp_path_factory.mktemp("talkative") / "checkpoint", max_position_embeddings=16_384)
