"""The SageMaker Python SDK: Model.deploy, Predictor, update_endpoint, delete_endpoint."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.clients.conftest import Scenarios, value


@pytest.fixture(scope="module")
def found(run_sagemaker: Callable[[str], Scenarios]) -> Scenarios:
    return run_sagemaker("sagemaker_calls.py")


def test_a_deployed_model_answers_its_predictor_in_every_shape(found: Scenarios) -> None:
    assert value(found, "version").startswith("2.")
    assert value(found, "deploy") == "sdk-endpoint"
    text = value(found, "predict")
    assert text
    assert value(found, "predict_hugging_face_shape").endswith(text)
    assert value(found, "predict_variant") is True


def test_a_predictor_streams_what_it_answers_whole(found: Scenarios) -> None:
    assert value(found, "predict_stream") == value(found, "predict")


def test_a_refusal_is_a_model_error(found: Scenarios) -> None:
    assert found["refused"]["error"]["name"] == "ModelError"
    assert "Received client error (400) from primary" in found["refused"]["error"]["message"]


def test_an_endpoint_is_updated_and_deleted(found: Scenarios) -> None:
    assert value(found, "update") == [2, True]
    assert found["delete"]["error"]["name"] == "ValidationError"
