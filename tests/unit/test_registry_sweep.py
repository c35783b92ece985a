"""What a model leaves in the registry goes with it, also when a server was killed in between."""

from __future__ import annotations

from pathlib import Path

from outcrop.registry.serving_records import ServingRecords
from outcrop.registry.store import Registry


def test_starts_scaling_and_aliases_of_models_that_are_gone_are_swept(tmp_path: Path) -> None:
    registry = Registry.open(tmp_path / "db")
    records = ServingRecords(registry)
    records.add_start("gone", "cached", 1.0)
    records.set_scaling("gone", b"{}")
    records.set_alias("000000000000", "live", "gone")

    assert registry.sweep() == 3
    assert (records.starts(), records.scaling(), records.aliases()) == ({}, {}, [])
    registry.close()
