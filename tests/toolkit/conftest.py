"""The SageMaker inference toolkit lives in an environment of its own, which ``make test-toolkit`` installs."""

from __future__ import annotations

import os
from pathlib import Path

TOOLKIT = Path(os.environ.get("OUTCROP_FOREIGN", Path(__file__).parents[2] / ".foreign")) / "toolkit"

collect_ignore_glob = [] if (TOOLKIT / ".installed").exists() else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if (TOOLKIT / ".installed").exists() else "tests/toolkit: not installed (make test-toolkit)"
