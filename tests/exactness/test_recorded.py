"""The CPU engine computes what transformers was recorded to compute, for every family that the converter writes.

A fast slice of ``tests/parity`` that needs no torch. ``tests/parity/record.py`` made the record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.parity.engine import serving
from tests.support.checkpoints import VOCAB
from tests.support.zoo import ZOO, write_weights

from outcrop.checkpoints.families import FAMILIES
from outcrop.engines.gguf_convert import convert

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "recorded.json").read_text())


def test_every_family_that_the_converter_writes_is_recorded() -> None:
    assert {ZOO[name][0] for name in RECORDED} == {row.model_type for row in FAMILIES.values() if row.gguf}
    assert list(RECORDED) == list(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_the_log_probabilities_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    recorded = RECORDED[name]
    write_weights(tmp_path / "model", recorded["config"])
    convert(tmp_path / "model", tmp_path / "model.gguf", "auto")

    with serving(tmp_path / "model.gguf", 512) as engine:
        for row in recorded["rows"]:
            found = engine.log_probabilities(recorded["prompt"][: row["position"] + 1], VOCAB)
            assert max(found, key=lambda index: found[index]) == row["best"]
            assert [found[index] for index in recorded["ids"]] == pytest.approx(row["logprobs"], abs=1e-2)
