"""What the documents promise is proven by tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_NAMED = re.compile(r"`(tests/[\w/.*-]+)(?:::(\w+))?`")


def rows(document: str) -> list[str]:
    """Rows of the tables of a document, headings left out."""
    lines = (ROOT / "docs" / document).read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and not line.startswith(("| ---", "| promise", "| threat"))]


@pytest.mark.parametrize("document", ["guarantees.md", "security.md"])
def test_every_row_names_tests_that_exist(document: str) -> None:
    for row in rows(document):
        named = _NAMED.findall(row)
        assert named, f"{document}: no test is named in: {row}"
        for path, function in named:
            assert (ROOT / path).exists(), f"{document}: {path} does not exist"
            if function:
                assert f"def {function}(" in (ROOT / path).read_text(), f"{document}: {path} has no {function}"


def test_there_is_a_threat_model() -> None:
    assert len(rows("security.md")) > 20


def test_the_service_unit_takes_every_privilege_away() -> None:
    unit = (ROOT / "deploy" / "outcrop.service").read_text().splitlines()
    for line in (
        "User=outcrop",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "LimitCORE=0",
        "MemorySwapMax=0",
        "UMask=0077",
        "SystemCallFilter=@system-service",
    ):
        assert line in unit


def test_the_container_does_not_run_as_root_and_holds_no_secret() -> None:
    text = (ROOT / "deploy" / "Containerfile").read_text()

    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)
    assert text.index("USER 10001") < text.index("ENTRYPOINT")
    assert not re.search(r"SECRET|PASSWORD|_KEY=", text)
