"""The example's model.py: right where the model is right, through a real server; long classes in pieces."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.proxy import proxied
from tests.support.server import Server

SAMPLE = Path(__file__).parents[2] / "examples" / "apexguru"
CLASSES = 60


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"apexguru_{name}", SAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


async def test_accuracy_through_the_proxy_is_the_offline_one_but_for_findings_named_twice(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = _module("generator")
    offline = json.loads((SAMPLE / "evaluation.json").read_text())
    arn = await asyncio.to_thread(server.import_model, SAMPLE / "checkpoint", "reviewer-behind-a-proxy")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.credentials.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.credentials.secret_access_key)
    shutil.copy(SAMPLE / "model.py", tmp_path / "model.py")
    async with proxied(tmp_path, None, server.url, target=arn) as proxy:
        gate = asyncio.Semaphore(4)

        async def is_right(seed: int) -> bool:
            example = generator.sample(seed)
            async with gate:
                status, answer = await proxy.post({"code": example.source})
            expected = [{"rule": finding.rule, "line": finding.line} for finding in example.findings]
            return status == 200 and answer == {"findings": expected}

        right = await asyncio.gather(*(is_right(seed) for seed in range(CLASSES)))

    wrong = [seed for seed in range(CLASSES) if not right[seed]]
    wrong_offline = [seed for seed in offline["wrong_seeds"] if seed < CLASSES]
    mended = sorted(set(wrong_offline) - set(wrong))
    runtime = server.client("bedrock-runtime")

    def said(seed: int) -> list[str]:
        body = json.dumps({"messages": generator.messages(generator.sample(seed)), "max_tokens": 96, "temperature": 0})
        answer = json.loads(runtime.invoke_model(modelId=arn, body=body)["body"].read())
        return [json.dumps(found) for found in json.loads(answer["choices"][0]["message"]["content"])]

    answers = [await asyncio.to_thread(said, seed) for seed in mended]

    assert set(wrong) <= set(wrong_offline)
    # What the proxy puts right of a wrong text is only a finding that the model names twice.
    assert all(len(set(answer)) < len(answer) for answer in answers)


def test_a_long_class_is_cut_between_its_methods_and_every_line_is_reviewed_once() -> None:
    model = _module("model")
    lines = ["public class A {"]
    for number in range(9):
        lines += [f"    void m{number}() {{", *["        x();"] * 12, "    }"]
    lines.append("}")

    cut = model.pieces(lines)

    assert all(len(piece.lines) <= model.MOST_LINES for piece in cut)
    assert [at for piece in cut for at in piece.origins if at is not None] == list(range(1, len(lines) + 1))
    assert all(piece.lines[0] == "public class A {" for piece in cut)
    assert all("".join(piece.lines).count("{") == "".join(piece.lines).count("}") for piece in cut)


def test_a_line_in_a_loop_is_reviewed_in_its_loop_and_found_where_it_stands_in_the_file() -> None:
    model = _module("model")
    lines = ["public class A {", "    void m() {", "        for (Case c : cases) {", *["            x();"] * 60]
    lines += ["            insert c;", "        }", "    }", "}"]

    cut = model.pieces(lines)
    last = cut[-1]
    at = last.lines.index("            insert c;") + 1
    found = model.merged([last], [json.dumps([{"rule": "DmlInLoop", "line": at}, {"rule": "NestedLoop", "line": 3}])])

    assert last.lines[:3] == tuple(lines[:3])
    assert found == [{"rule": "DmlInLoop", "line": 64}]  # what is repeated around a piece is not its own


def test_an_answer_that_is_no_list_of_findings_is_not_passed_on() -> None:
    model = _module("model")

    with pytest.raises(ValueError, match="no finding"):
        model.merged(model.pieces(["x"]), ['[{"rule":"Unknown","line":1}]'])
