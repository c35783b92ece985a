"""Scripts written for other servers run unchanged, with inference forwarded."""

from __future__ import annotations

import io
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from tests.support.proxy import proxied
from tests.support.target import Target

TOOLKIT = """
    import json

    def model_fn(model_dir):
        raise RuntimeError("these weights are not here")

    def input_fn(body, content_type):
        assert isinstance(body, str)
        found = json.loads(body)
        return {"inputs": "review: " + found["code"], "parameters": {"max_new_tokens": 7}}

    def output_fn(prediction, accept):
        return json.dumps({"review": prediction[0]["generated_text"]}), accept
"""


async def test_toolkit_handlers_run_around_the_forwarded_call(tmp_path: Path, upstream: Target) -> None:
    async with proxied(tmp_path, TOOLKIT, upstream.url, name="code/inference.py") as proxy:
        status, answer = await proxy.post({"code": "x"})

    assert (status, answer) == (200, {"review": "REVIEW: X"})
    assert upstream.bodies() == [{"prompt": "review: x", "max_tokens": 7}]


async def test_a_toolkit_script_keeps_its_own_load_and_predict_where_only_absent_ones_are_forwarded(
    tmp_path: Path, upstream: Target
) -> None:
    script = """
        def model_fn(model_dir):
            return {"factor": 3}

        def predict_fn(data, model):
            return data * model["factor"]
    """
    async with proxied(tmp_path, script, upstream.url, forward="when-absent") as proxy:
        assert await proxy.post([1, 2]) == (200, [3, 6])
        sent = io.BytesIO()
        np.save(sent, np.array([4]))
        headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
        async with proxy.session.post(f"{proxy.url}/invocations", data=sent.getvalue(), headers=headers) as response:
            assert np.load(io.BytesIO(await response.read())).tolist() == [12]
            assert response.content_type == "application/x-npy"

    assert upstream.requests == []


async def test_predict_fn_is_handed_a_model_that_is_called_as_a_hugging_face_pipeline(
    tmp_path: Path, upstream: Target
) -> None:
    script = """
        import json

        def input_fn(body, content_type, context):
            return json.loads(body)

        def predict_fn(data, model, context):
            first = model(data["inputs"], max_new_tokens=5)
            both = model(["a", "b"])
            return {"one": first, "two": both, "header": context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")}
    """
    async with proxied(tmp_path, script, upstream.url, forward="when-absent") as proxy:
        status, answer = await proxy.post({"inputs": "hi"}, **{"x-amzn-sagemaker-custom-attributes": "c=1"})

    assert status == 200
    assert answer["one"] == [{"generated_text": "HI"}]
    assert answer["two"] == [[{"generated_text": "A"}], [{"generated_text": "B"}]]
    assert answer["header"] == "c=1"


async def test_the_hugging_face_variant_answers_failures_with_400(tmp_path: Path, upstream: Target) -> None:
    script = """
        def output_fn(prediction, accept):
            return 1 / 0
    """
    async with proxied(tmp_path, script, upstream.url, name="code/inference.py", dialect="huggingface") as proxy:
        status, answer = await proxy.post({"inputs": "hi", "parameters": {"do_sample": False}})

    assert status == 400
    assert answer["message"].startswith("output_fn (code/inference.py:3): ZeroDivisionError")
    assert upstream.bodies() == [{"prompt": "hi", "temperature": 0}]


async def test_a_djl_handler_asks_the_current_context_for_inference(tmp_path: Path, upstream: Target) -> None:
    script = """
        from djl_python import Input, Output
        from outcrop.proxy import current

        started = False

        def handle(inputs: Input) -> Output:
            global started
            if inputs.is_empty():
                started = True
                return None
            asked = inputs.get_as_json()
            text = current().chat(asked["question"])
            return Output().add_as_json({"text": text, "started": started}).add_property("X-Kind", "djl")
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        assert proxy.pool.workers[0].dialect == "djl"
        async with proxy.session.post(f"{proxy.url}/invocations", json={"question": "why"}) as response:
            assert await response.json() == {"text": "WHY", "started": True}
            assert response.headers["x-kind"] == "djl"


async def test_a_multi_model_server_handler_gets_and_gives_lists_of_one(tmp_path: Path, upstream: Target) -> None:
    script = """
        import json
        from outcrop.proxy import current

        def handle(data, context):
            if data is None:
                return None
            return [{"text": current().chat(json.loads(data[0]["body"])["q"]), "dir": context.system_properties["model_dir"]}]
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        assert await proxy.post({"q": "a"}) == (200, {"text": "A", "dir": str(tmp_path)})


@pytest.mark.parametrize("base", ["", "(kserve.Model)"])
async def test_a_class_runs_around_the_forwarded_call(tmp_path: Path, upstream: Target, base: str) -> None:
    script = f"""
        import kserve

        class Model{base}:
            def __init__(self, name="model", **kwargs):
                pass

            def load(self):
                raise RuntimeError("these weights are not here")

            async def preprocess(self, payload, headers=None):
                return {{"messages": [{{"role": "user", "content": payload["q"]}}]}}

            async def predict(self, payload, headers=None):
                raise RuntimeError("there is no model here")

            def postprocess(self, result, headers=None):
                return {{"text": result["choices"][0]["message"]["content"]}}
    """
    async with proxied(tmp_path, script, upstream.url, name="model/model.py") as proxy:
        assert await proxy.post({"q": "yes"}) == (200, {"text": "YES"})


async def test_our_functions_may_call_the_target_in_any_shape(tmp_path: Path, upstream: Target) -> None:
    script = """
        import asyncio

        async def predict(request, ctx):
            ctx.custom_attributes = "seen"
            one, two, three = await asyncio.gather(
                ctx.invoke({"prompt": "a"}), ctx.converse("b"), ctx("c", max_new_tokens=1)
            )
            pieces = [piece["generation"] async for piece in ctx.stream("d")]
            return {"one": one["generation"], "two": two["output"]["message"]["content"][0]["text"],
                    "three": three[0]["generated_text"], "pieces": pieces}
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        async with proxy.session.post(f"{proxy.url}/invocations", json={}) as response:
            answer = await response.json()
            assert response.headers["x-amzn-sagemaker-custom-attributes"] == "seen"

    assert answer == {"one": "A", "two": "B", "three": "C", "pieces": ["D0", "D1", "D2"]}


async def test_a_plain_function_calls_the_target_without_await(tmp_path: Path, upstream: Target) -> None:
    script = """
        def predict(request, ctx):
            pieces = [piece["generation"] for piece in ctx.stream({"prompt": request.json()["q"]})]
            return {"whole": ctx.invoke("x")["generation"], "pieces": pieces}
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        assert await proxy.post({"q": "y"}) == (200, {"whole": "X", "pieces": ["Y0", "Y1", "Y2"]})


async def test_without_a_script_bodies_pass_through_untouched(tmp_path: Path, upstream: Target) -> None:
    async with proxied(tmp_path, None, upstream.url) as proxy:
        assert await proxy.post(b'{"prompt":  "as it is"}') == (200, {"generation": "AS IT IS", "stop_reason": "stop"})
        assert await proxy.post({"inputs": "hf"}) == (200, [{"generated_text": "HF"}])

    assert upstream.requests[0][2] == b'{"prompt":  "as it is"}'


async def test_a_form_and_lines_of_json_reach_a_script_as_values(tmp_path: Path, upstream: Target) -> None:
    script = """
        class Model:
            def preprocess(self, data):
                return data["prompt"] if isinstance(data, dict) else data[1]["prompt"]
    """
    async with proxied(tmp_path, script, upstream.url) as proxy:
        form = aiohttp.FormData()
        form.add_field("prompt", "from a form")
        form.add_field("file", b"\\x00", filename="f.bin", content_type="application/octet-stream")
        async with proxy.session.post(f"{proxy.url}/invocations", data=form) as response:
            assert await response.text() == "FROM A FORM"
        lines = b'{"prompt": "one"}\n{"prompt": "two"}\n'
        assert (await proxy.post(lines, **{"content-type": "application/jsonlines"}))[1] == "TWO"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("class TritonPythonModel:\n    def execute(self, requests): ...\n", "Triton Python backend"),
        ("import model_hosting_container_standards as custom_invocation_handler\n", "does not load"),
        ("custom_invocation_handler = 1\n", "model-hosting-container-standards"),
        ("x = 1\n", "defines none of the interfaces"),
        ("def transform_fn(*a): ...\ndef input_fn(b, c): ...\n", "transform_fn cannot stand beside"),
        ("import nonsense_that_is_not_there\n", "does not load: import (model.py:1)"),
        ("def broken(:\n", "does not load"),
    ],
)
async def test_a_script_that_cannot_run_here_is_refused_by_name(
    tmp_path: Path, upstream: Target, script: str, said: str
) -> None:
    async with proxied(tmp_path, script, upstream.url) as proxy:
        assert said in proxy.pool.failure
        status, body = await proxy.get("/ping")
        assert status == 503
        assert said in body
