"""What ``outcrop status`` and ``outcrop top`` say of a copy."""

from __future__ import annotations

from typing import Any

import pytest

from outcrop.cli.status import state_of


@pytest.mark.parametrize(
    ("copy", "told"),
    [
        ({"state": "ready", "stage": None, "share": None, "remaining_s": None}, "ready"),
        ({"stage": "loading", "share": 0.42, "remaining_s": 3.26}, "loading 42%, 3.3 s left"),
        ({"stage": "graphs captured", "share": 0.99, "remaining_s": 0.0}, "graphs captured, longer than usual"),
        ({"stage": "queued", "share": None, "remaining_s": None}, "queued (no start was measured yet)"),
    ],
)
def test_a_copy_that_starts_is_told_by_its_stage_and_what_is_left(copy: dict[str, Any], told: str) -> None:
    assert state_of(copy) == told
