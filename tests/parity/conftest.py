"""These tests compare with transformers, which only the ``parity`` extra installs: ``make test-parity``."""

from __future__ import annotations

from importlib.util import find_spec

_MISSING = [name for name in ("torch", "transformers") if find_spec(name) is None]

collect_ignore_glob = ["test_*.py"] if _MISSING else []


def pytest_report_header() -> str | None:
    return f"tests/parity left out: {', '.join(_MISSING)} not installed (make test-parity)" if _MISSING else None
