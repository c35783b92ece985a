"""The model that ships with the project gives, through the whole stack, the answers it gave when it was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.server import Server

SAMPLE = Path(__file__).parents[2] / "examples" / "apexguru"
CLASSES = 200


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generator", SAMPLE / "generator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generator"] = module
    spec.loader.exec_module(module)
    return module


def test_the_sample_errs_on_the_classes_on_which_it_erred_offline_and_on_no_other(
    server: Server, generator: ModuleType
) -> None:
    offline = json.loads((SAMPLE / "evaluation.json").read_text())
    arn = server.import_model(SAMPLE / "checkpoint", "reviewer")
    runtime = server.client("bedrock-runtime")

    def is_right(seed: int) -> bool:
        example = generator.sample(seed)
        body = json.dumps({"messages": generator.messages(example), "max_tokens": 96, "temperature": 0})
        answer = json.loads(runtime.invoke_model(modelId=arn, body=body)["body"].read())
        return bool(answer["choices"][0]["message"]["content"] == example.answer)

    with ThreadPoolExecutor(4) as callers:
        right = list(callers.map(is_right, range(CLASSES)))

    assert [seed for seed in range(CLASSES) if not right[seed]] == [s for s in offline["wrong_seeds"] if s < CLASSES]
    assert offline["n"] >= 1000
