"""A target for every test of the proxy, and keys in the environment, as a container has them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tests.support.target import Target, target


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
async def upstream() -> AsyncIterator[Target]:
    async with target() as found:
        yield found
