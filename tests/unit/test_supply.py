"""What ``make audit`` says of a report: nothing is passed off as audited that was not."""

from __future__ import annotations

from typing import Any

import pytest
from tests.supply.audit import FOUND, NOT_AUDITED, judge

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (2)"}
VULNERABLE = {"name": "c", "version": "3", "vulns": [{"id": "CVE-2026-1", "fix_versions": ["3.1"]}]}


@pytest.mark.parametrize(
    ("dependencies", "status", "told"),
    [
        ([CLEAN], 0, "1 packages, no known vulnerability."),
        ([CLEAN, VULNERABLE], FOUND, "c 3: CVE-2026-1, fixed in 3.1"),
        ([CLEAN, SKIPPED], NOT_AUDITED, "1 of 2 packages could not be audited (b): no source of advisories"),
        ([SKIPPED] * 12, NOT_AUDITED, "and 4 more"),
        ([VULNERABLE, SKIPPED], FOUND, "could not be audited (b)"),
        ([], NOT_AUDITED, "nothing to audit"),
    ],
)
def test_only_what_was_looked_up_counts(dependencies: list[dict[str, Any]], status: int, told: str) -> None:
    found, lines = judge({"dependencies": dependencies})

    assert found == status
    assert told in "\n".join(lines)
