"""The SageMaker Python SDK: a model deployed, asked by its Predictor, updated and deleted."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# Before the import: no word of this to anybody, and no configuration of the person who runs it.
_settings = Path(tempfile.mkdtemp()) / "config.yaml"
_settings.write_text("SchemaVersion: '1.0'\nSageMaker:\n  PythonSDK:\n    Modules:\n      TelemetryOptOut: true\n")
os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = str(_settings)
os.environ["SAGEMAKER_SUPPRESS_V2_WARNING"] = "1"

import sagemaker  # noqa: E402
from report import MODEL, report  # noqa: E402
from sagemaker.base_deserializers import BytesDeserializer  # noqa: E402
from sagemaker.deserializers import JSONDeserializer  # noqa: E402
from sagemaker.iterators import ByteIterator  # noqa: E402
from sagemaker.model import Model  # noqa: E402
from sagemaker.predictor import Predictor  # noqa: E402
from sagemaker.serializers import JSONSerializer  # noqa: E402

NAME = "sdk-endpoint"
ASKED = {"prompt": "Hello", "max_tokens": 5, "temperature": 0}
session = sagemaker.Session()


def predictor(**more: Any) -> Predictor:
    given = {"serializer": JSONSerializer(), "deserializer": JSONDeserializer(), **more}
    return Predictor(NAME, sagemaker_session=session, **given)


def version() -> Any:
    return sagemaker.__version__


def deploy() -> Any:
    model = Model(
        image_uri="outcrop/proxy",
        env={"OUTCROP_PROXY_TARGET": MODEL},
        role=os.environ["OUTCROP_ROLE_ARN"],
        name="sdk-model",
        sagemaker_session=session,
        predictor_cls=Predictor,
    )
    with contextlib.redirect_stdout(sys.stderr):  # it tells of its waiting there
        made = model.deploy(initial_instance_count=1, instance_type="ml.m5.large", endpoint_name=NAME)
    return made.endpoint_name


def predict() -> Any:
    return predictor().predict(ASKED)["choices"][0]["text"]


def predict_hugging_face_shape() -> Any:
    asked = {"inputs": "Hello", "parameters": {"max_new_tokens": 5, "do_sample": False}}
    return predictor().predict(asked)[0]["generated_text"]


def predict_variant() -> Any:
    return bool(predictor().predict(ASKED, target_variant="AllTraffic", inference_id="i", custom_attributes="a=1"))


def predict_stream() -> Any:
    parts = predictor(deserializer=BytesDeserializer()).predict_stream({**ASKED, "stream": True}, iterator=ByteIterator)
    pieces = [json.loads(line[6:]) for line in b"".join(parts).decode().splitlines() if line.startswith("data: {")]
    return "".join(piece["choices"][0]["text"] for piece in pieces if piece.get("choices"))


def refused() -> Any:
    return predictor().predict({"prompt": 7})


def update() -> Any:
    with contextlib.redirect_stdout(sys.stderr):
        predictor().update_endpoint(initial_instance_count=2, instance_type="ml.m5.large", model_name="sdk-model")
    variant = session.sagemaker_client.describe_endpoint(EndpointName=NAME)["ProductionVariants"][0]
    return [variant["DesiredInstanceCount"], bool(predict())]


def delete() -> Any:
    predictor().delete_endpoint(delete_endpoint_config=True)
    session.sagemaker_client.get_waiter("endpoint_deleted").wait(
        EndpointName=NAME, WaiterConfig={"Delay": 1, "MaxAttempts": 60}
    )
    return predictor().predict(ASKED)


report(version, deploy, predict, predict_hugging_face_shape, predict_variant, predict_stream, refused, update, delete)
