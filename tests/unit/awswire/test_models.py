"""Every operation, served or not: what botocore writes we read, what we write botocore reads, what is wrong is refused."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.parsers import create_parser
from botocore.serialize import create_serializer
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from tests.support.shapes import breaks, values

from outcrop.api import bedrock, bedrock_resources
from outcrop.api import bedrock_runtime as runtime
from outcrop.api.refusals import REFUSED_FOR_IMPORTED_MODELS
from outcrop.awswire.parse import request
from outcrop.awswire.serialize import serialize_response
from outcrop.awswire.service import Operation, Router, Service
from outcrop.errors import InvalidRequest

SERVICES = {name: Service(name) for name in ("bedrock", "bedrock-runtime")}
ROUTER = Router(list(SERVICES.values()))
READ = {
    *bedrock.OPERATIONS,
    *bedrock_resources.OPERATIONS,
    *runtime.OPERATIONS,
    *REFUSED_FOR_IMPORTED_MODELS,
}
OPERATIONS = [op for service in SERVICES.values() for op in service.operations.values() if op.name in READ]
# What is not served is read alike. One pattern needs classes of letters, which the second opinion's ``re`` does not know.
OTHERS = [
    op
    for service in SERVICES.values()
    for op in service.operations.values()
    if op not in OPERATIONS and "AutomatedReasoningPolicy" not in op.name
]
_SERIALIZER = create_serializer("rest-json", include_validation=False)
_PARSER = create_parser("rest-json")

# No shrinking: inputs this large take minutes to shrink, and the first failure says enough.
lean = settings(
    deadline=None,
    max_examples=int(os.environ.get("OUTCROP_TEST_EXAMPLES", "8")),
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.explicit, Phase.generate],
)


def by_name(operation: Operation) -> str:
    return operation.name


def read(operation: Operation, params: dict[str, Any]) -> dict[str, Any]:
    """*params* as ours after botocore wrote them to the wire and we routed and read them."""
    wire = _SERIALIZER.serialize_to_request(params, operation.model)
    path = quote(wire["url_path"], safe="/%~")
    assume(not {".", ".."} & set(path.split("/")))  # which address nothing here: docs/decisions/0005
    match = ROUTER.match(wire["method"], path)
    assert match is not None
    assert match[0] is operation
    headers = {name.lower(): str(value) for name, value in wire["headers"].items()}
    body = wire["body"] if isinstance(wire["body"], bytes) else (wire["body"] or "").encode()
    return request(operation, match[1], urlencode(wire["query_string"], doseq=True), headers, body)


def _absent_body(operation: Operation, params: dict[str, Any]) -> dict[str, Any]:
    """A body that is the whole payload is read as empty bytes where none was given."""
    shape = operation.model.input_shape
    payload = shape.serialization.get("payload") if shape else None
    return {payload: b""} if payload and shape.members[payload].type_name == "blob" and payload not in params else {}


@pytest.mark.parametrize("operation", OPERATIONS, ids=by_name)
@lean
@given(st.data())
def test_what_botocore_writes_is_read_back_unchanged(operation: Operation, data: st.DataObject) -> None:
    params = data.draw(values(operation.model.input_shape)) if operation.model.input_shape else {}

    assert read(operation, params) == {**params, **_absent_body(operation, params)}


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.model.input_shape], ids=by_name)
@lean
@given(st.data())
def test_exactly_what_breaks_the_model_is_refused(operation: Operation, data: st.DataObject) -> None:
    params = data.draw(values(operation.model.input_shape, wild=True))
    is_wrong = breaks(operation.model.input_shape, {**params, **_absent_body(operation, params)})

    with pytest.raises(InvalidRequest) if is_wrong else nullcontext():
        read(operation, params)


@pytest.mark.parametrize("operation", [op for op in OPERATIONS if op.model.input_shape], ids=by_name)
@lean
@given(st.data())
def test_a_body_with_anything_in_place_of_a_value_is_read_or_refused(operation: Operation, data: st.DataObject) -> None:
    shape = operation.model.input_shape
    wire = _SERIALIZER.serialize_to_request(data.draw(values(shape)), operation.model)
    document = json.loads(wire["body"] or b"{}") if shape.serialization.get("payload") is None else {}
    holder: Any = document
    while isinstance(holder, dict | list) and holder:
        key = data.draw(st.sampled_from(sorted(holder))) if isinstance(holder, dict) else 0
        if data.draw(st.booleans()) or not isinstance(holder[key], dict | list):
            holder[key] = data.draw(
                st.sampled_from([None, True, 0, -1, 2**63, 0.5, 1e300, "", "x" * 3000, [], [[]], {}, {"a": 1}])
            )
            break
        holder = holder[key]
    try:
        read_params = request(operation, {}, "", {}, json.dumps(document).encode())
    except InvalidRequest:
        return
    assert not breaks(shape, read_params)


# A stream of events is no document, and is read by nobody.
@pytest.mark.parametrize(
    "operation",
    [op for op in OTHERS if op.model.input_shape and not op.model.has_event_stream_input],
    ids=by_name,
)
@settings(lean, max_examples=int(os.environ.get("OUTCROP_TEST_EXAMPLES", "2")))
@given(st.data())
def test_what_is_not_served_is_read_and_refused_alike(operation: Operation, data: st.DataObject) -> None:
    params = data.draw(values(operation.model.input_shape))
    wild = data.draw(values(operation.model.input_shape, wild=True))
    is_wrong = breaks(operation.model.input_shape, {**wild, **_absent_body(operation, wild)})

    assert read(operation, params) == {**params, **_absent_body(operation, params)}
    with pytest.raises(InvalidRequest) if is_wrong else nullcontext():
        read(operation, wild)


def test_a_list_that_is_empty_but_for_nulls_is_empty() -> None:
    operation = SERVICES["bedrock"].operations["BatchDeleteEvaluationJob"]

    with pytest.raises(InvalidRequest, match="length greater than or equal to 1"):
        request(operation, {}, "", {}, b'{"jobIdentifiers": [null]}')


@pytest.mark.parametrize(
    "operation",
    [op for op in OPERATIONS if op.model.output_shape and not op.model.output_shape.serialization.get("payload")],
    ids=by_name,
)
@lean
@given(st.data())
def test_botocore_reads_what_we_write(operation: Operation, data: st.DataObject) -> None:
    result = data.draw(values(operation.model.output_shape))
    status, headers, body = serialize_response(operation, result)

    parsed = _PARSER.parse(
        {"status_code": status, "headers": dict(headers), "body": body}, operation.model.output_shape
    )
    del parsed["ResponseMetadata"]
    assert parsed == result
    assert status == operation.model.http.get("responseCode", 200)
