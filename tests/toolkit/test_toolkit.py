"""Scripts answer the same under a proxy as under the SageMaker inference toolkit itself."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.proxy import proxied
from tests.toolkit.conftest import TOOLKIT

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"

HANDLERS = """
    import json

    def model_fn(model_dir):
        return {"factor": 10, "dir": model_dir[-4:]}

    def input_fn(body, content_type):
        assert isinstance(body, str), type(body)
        return json.loads(body)["values"]

    def predict_fn(data, model):
        return [value * model["factor"] for value in data]

    def output_fn(prediction, accept):
        if accept == "text/csv":
            return ",".join(map(str, prediction)), accept
        return json.dumps({"values": prediction})
"""
DEFAULTS = """
    def model_fn(model_dir):
        return 2

    def predict_fn(data, model):
        return data * model
"""
TRANSFORM = """
    calls = []

    def pre_model_fn(model_dir):
        calls.append("pre")

    def model_fn(model_dir, context):
        calls.append("model:" + context.system_properties["model_dir"][-3:])
        return "model"

    def model_warmup_fn(model_dir, model):
        calls.append("warm:" + model)

    def transform_fn(model, body, content_type, accept):
        return f"{model}|{body}|{content_type}|{accept}|{calls}", "text/plain"
"""
FAILING = """
    def model_fn(model_dir):
        return None

    def predict_fn(data, model):
        raise RuntimeError("no luck")
"""


def npy(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


CASES: list[tuple[str, str, list[tuple[bytes, str, str]]]] = [
    (
        "handlers",
        HANDLERS,
        [(b'{"values": [1, 2]}', JSON, JSON), (b'{"values": [3]}', JSON, CSV), (b'{"values": []}', JSON, "*/*")],
    ),
    (
        "defaults",
        DEFAULTS,
        [
            (b"[1, 2.5]", JSON, JSON),
            (b"[[1, 2], [3, 4]]", JSON, CSV),
            (b"1,2\n3,4\n", CSV, JSON),
            (npy([[1, 2]]), NPY, JSON),
            (npy([1.5, 2]), NPY, NPY),
            (b"[7]", JSON, f"image/png, {JSON}"),
            (b"[7]", JSON, "*/*"),
        ],
    ),
    ("transform", TRANSFORM, [(b"a,b", CSV, JSON), (b'{"a": 1}', JSON, "*/*")]),
    ("failing", FAILING, [(b"[1]", JSON, JSON)]),
]


def plain(body: bytes, content_type: str) -> Any:
    if content_type == JSON:
        return json.loads(body)
    return np.load(io.BytesIO(body)).tolist() if content_type == NPY else body.decode().strip()


@pytest.mark.parametrize(("name", "script", "calls"), CASES, ids=[case[0] for case in CASES])
async def test_a_script_answers_as_under_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str, calls: list[tuple[bytes, str, str]]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "inference.py").write_text(textwrap.dedent(script))
    asked = [
        {"body": base64.b64encode(body).decode(), "content_type": content_type, "accept": accept}
        for body, content_type, accept in calls
    ]
    toolkit = subprocess.run(  # noqa: ASYNC221  (nothing else runs in this loop yet)
        [str(TOOLKIT / "bin" / "python"), str(Path(__file__).parent / "toolkit_calls.py"), str(tmp_path)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert toolkit.returncode == 0, toolkit.stderr
    theirs = json.loads(toolkit.stdout[toolkit.stdout.index("[{") :])

    async with proxied(tmp_path, None, "http://127.0.0.1:9", forward="when-absent") as proxy:
        for (body, content_type, accept), their in zip(calls, theirs, strict=True):
            headers = {"content-type": content_type, "accept": accept}
            async with proxy.session.post(f"{proxy.url}/invocations", data=body, headers=headers) as response:
                ours = await response.read()
                assert response.status == their["status"]
                if their["status"] == 200:
                    assert response.content_type == their["content_type"].split(",")[0].strip()
                    assert plain(ours, response.content_type) == plain(
                        base64.b64decode(their["body"]), response.content_type
                    )
