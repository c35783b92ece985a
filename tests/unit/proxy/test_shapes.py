"""Shapes, content types and settings of the proxy, without processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from outcrop.errors import BadSetting
from outcrop.proxy import codecs, shapes
from outcrop.proxy.failures import Refuse
from outcrop.proxy.settings import load
from outcrop.proxy.values import Request


@pytest.mark.parametrize(
    "answer",
    [
        {"generation": "t"},
        {"outputs": [{"text": "t"}]},
        {"choices": [{"message": {"content": "t"}}]},
        {"choices": [{"delta": {"content": "t"}}]},
        {"choices": [{"text": "t"}]},
        [{"generated_text": "t"}],
        {"output_text": "t"},
    ],
)
def test_the_text_is_found_in_every_format_that_imported_models_answer_in(answer: object) -> None:
    assert shapes.text_of(answer) == "t"


def test_hugging_face_parameters_become_those_of_a_body() -> None:
    parameters = {
        "max_new_tokens": 3,
        "do_sample": False,
        "stop_sequences": ["x"],
        "return_full_text": True,
        "top_p": None,
    }

    assert shapes.native("a", parameters) == {"prompt": "a", "max_tokens": 3, "stop": ["x"], "temperature": 0}
    assert shapes.generated("a", {"generation": "b"}, parameters) == [{"generated_text": "ab"}]


def test_an_input_of_no_known_shape_is_refused() -> None:
    with pytest.raises(Refuse, match="not int"):
        shapes.native(3, {})


def test_the_first_type_that_can_be_written_is_written() -> None:
    assert codecs.encode([[1, 2], [3, 4]], "image/png, text/csv") == (b"1,2\n3,4\n", "text/csv")
    assert codecs.encode({"a": 1}, "*/*") == (b'{"a":1}', "application/json")
    with pytest.raises(Refuse, match="image/png"):
        codecs.encode(1, "image/png")


def test_a_pickle_in_an_array_is_not_run() -> None:
    import io

    import numpy as np

    out = io.BytesIO()
    np.save(out, np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(Refuse):
        codecs.decode(out.getvalue(), codecs.NPY)


@pytest.mark.parametrize(
    ("body", "accept", "wants"),
    [
        (b'{"stream": true}', "application/json", True),
        (b'{"stream": "true"}', "application/json", False),
        (b'{"text": "\\"stream\\": true"}', "application/json", False),
        (b"{}", "text/event-stream", True),
    ],
)
def test_a_stream_is_wanted_by_accept_or_by_the_body(body: bytes, accept: str, *, wants: bool) -> None:
    assert Request(body, accept=accept).wants_stream is wants


def test_sagemaker_variables_set_what_flags_and_our_own_leave_open() -> None:
    environment = {
        "SAGEMAKER_BASE_DIR": "/base",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6",
        "SAGEMAKER_BIND_TO_PORT": "9000",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT": "30",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "30",
    }
    settings = load(environment, target="m", port=1)

    assert settings.model_dir == Path("/base/model")
    assert settings.max_payload_bytes == 6 << 20
    assert settings.port == 1
    assert settings.timeout_s == 30
    assert settings.log_level == "warning"


def test_a_proxy_without_a_target_does_not_start() -> None:
    with pytest.raises(BadSetting, match="OUTCROP_PROXY_TARGET"):
        load({})


def test_json_that_is_nested_too_deeply_is_the_callers_fault() -> None:
    request = Request(b"[" * 200_000 + b"]" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        request.json()
    assert not Request(b'{"stream":' + b"[" * 200_000).wants_stream
