"""What is expected of an import: assumed at first, then what imports took here."""

from __future__ import annotations

from pathlib import Path

import pytest

from outcrop.importing.rates import FILE, KEPT, Rates, learn

STORE = "https://s3.storage.example.com"


def test_before_any_import_the_assumed_rates_hold(tmp_path: Path) -> None:
    expected = Rates(tmp_path).expected({"linked": 8_000_000_000, "convert": 2_500_000_000})

    assert (expected.seconds, expected.jobs) == (22.0, 0)


def test_large_imports_decide_and_small_ones_hardly_count(tmp_path: Path) -> None:
    learn(tmp_path, {STORE: (3_000_000, 3.0)})  # three megabytes in three seconds: the time to get going
    after_small = Rates(tmp_path).expected({STORE: 10_000_000_000})
    learn(tmp_path, {STORE: (99_000_000_000, 99.0)})
    after_large = Rates(tmp_path).expected({STORE: 10_000_000_000})

    assert after_small.seconds < 75  # 42 s as assumed
    assert after_large.seconds == pytest.approx(2 + 10.6, abs=0.2)
    assert (after_small.jobs, after_large.jobs) == (1, 2)


def test_one_place_says_nothing_of_another(tmp_path: Path) -> None:
    learn(tmp_path, {STORE: (50_000_000_000, 10.0)})

    assert Rates(tmp_path).expected({"https://other.example.com": 1_000_000_000}).seconds == 6.0


def test_a_store_that_became_slower_is_believed_after_a_few_imports(tmp_path: Path) -> None:
    learn(tmp_path, {STORE: (50_000_000_000, 50.0)})
    for _ in range(KEPT):
        learn(tmp_path, {STORE: (50_000_000_000, 500.0)})

    assert Rates(tmp_path).expected({STORE: 10_000_000_000}).seconds == pytest.approx(102, abs=1)


def test_a_damaged_file_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")

    assert Rates(tmp_path).expected({"copied": 250_000_000}).seconds == 3.0
