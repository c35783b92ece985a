"""Content types of the container contract, as values and back.

Where a script's own ``predict_fn`` runs, what it is given by default is what the SageMaker inference toolkit gives:
NumPy arrays. Where the call is forwarded, JSON stays JSON.
"""

from __future__ import annotations

import csv
import email.parser
import email.policy
import io
from collections.abc import Callable
from typing import Any

import msgspec

from outcrop.proxy.failures import Refuse, UnsupportedFormat
from outcrop.proxy.values import JSON, JSON_LINES

CSV, NPY, NPZ, TEXT = "text/csv", "application/x-npy", "application/x-npz", "text/plain"
OCTETS, FORM = "application/octet-stream", "multipart/form-data"
LINES = (JSON_LINES, "application/x-jsonlines", "application/x-ndjson", "application/jsonl")


def media_type(header: str) -> str:
    """The type of a Content-Type header, lower case, without parameters."""
    return header.partition(";")[0].strip().lower()


def decode(body: bytes, content_type: str) -> Any:
    """The value that *body* holds. Raises Refuse (400) for a body that is not what its type says, 415 for the type."""
    kind = media_type(content_type)
    try:
        if kind == FORM:
            return _form(body, content_type)
        if kind in LINES:
            return [msgspec.json.decode(line) for line in body.splitlines() if line.strip()]
        decoder = _DECODERS.get(kind)
        if decoder is None:
            raise UnsupportedFormat(content_type)
        return decoder(body)
    except (ValueError, csv.Error) as exc:
        raise Refuse(f"The body is not {kind}: {exc}.") from exc


def decode_array(body: bytes, content_type: str) -> Any:
    """As ``decode``, but JSON, CSV and NPY become NumPy arrays, as the toolkit's default ``input_fn`` has it."""
    import numpy as np

    kind = media_type(content_type)
    try:
        if kind == JSON:
            return np.array(msgspec.json.decode(body))
        if kind == CSV:
            return np.genfromtxt(io.StringIO(body.decode()), dtype=None, delimiter=",")
        if kind == NPY:
            return _npy(body)
    except ValueError as exc:
        raise Refuse(f"The body is not {kind}: {exc}.") from exc
    raise UnsupportedFormat(content_type)


def encode(value: Any, accept: str) -> tuple[bytes, str]:
    """*value* in the first type of *accept* that can be written, and that type. Raises UnsupportedFormat."""
    for wanted in accept.split(","):
        kind = media_type(wanted)
        kind = JSON if kind in ("", "*/*", "application/*") else kind
        if kind in LINES:
            rows = value if isinstance(value, list) else [value]
            return b"".join(_json(row) + b"\n" for row in rows), kind
        encoder = _ENCODERS.get(kind)
        if encoder is not None:
            return encoder(value), kind
    raise UnsupportedFormat(accept)


def written(result: Any, accept: str) -> tuple[bytes, str]:
    """What a handler returned as the body and its type: text and bytes as they are, a pair with its own type."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str):
        body, accept = result
        return (as_bytes(body) if isinstance(body, str | bytes | bytearray) else encode(body, accept)[0]), accept
    if isinstance(result, str | bytes | bytearray):
        return as_bytes(result), accept
    return encode(result, accept)


def as_bytes(text: str | bytes | bytearray) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def piece(value: Any) -> bytes:
    """One part of a stream that a handler yields: text and bytes as they are, anything else as a line of JSON."""
    return as_bytes(value) if isinstance(value, str | bytes | bytearray) else _json(value) + b"\n"


def _plain(value: Any) -> Any:
    # Arrays, tensors and scalars of NumPy and its kin.
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON; return text, bytes or plain values")


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_plain)


def _csv(value: Any) -> bytes:
    if hasattr(value, "tolist"):
        value = value.tolist()
    out = io.StringIO()
    rows = value if isinstance(value, list | tuple) else [value]
    csv.writer(out, lineterminator="\n").writerows(row if isinstance(row, list | tuple) else [row] for row in rows)
    return out.getvalue().encode()


def _npy_of(value: Any) -> bytes:
    import numpy as np

    out = io.BytesIO()
    np.save(out, np.asarray(value), allow_pickle=False)
    return out.getvalue()


def _npy(body: bytes) -> Any:
    import numpy as np

    return np.load(io.BytesIO(body), allow_pickle=False)  # a pickle would run what a caller sends


def _text(value: Any) -> bytes:
    return as_bytes(value) if isinstance(value, str | bytes) else _json(value)


def _form(body: bytes, content_type: str) -> dict[str, str | bytes]:
    """Fields of a multipart form by name: text, or the bytes of a file."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(f"Content-Type: {content_type}\r\n\r\n".encode("latin-1", "replace") + body)
    if not message.is_multipart():
        raise ValueError("its boundary is missing")
    fields: dict[str, str | bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)  # no part of a form is itself multipart
        is_file = part.get_filename() is not None
        fields[str(name)] = content if is_file else content.decode()
    return fields


def _csv_rows(body: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(body.decode())))


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    JSON: msgspec.json.decode,
    CSV: _csv_rows,
    TEXT: bytes.decode,
    NPY: _npy,
    OCTETS: bytes,
    "application/x-text": bytes.decode,
}
_ENCODERS: dict[str, Callable[[Any], bytes]] = {JSON: _json, CSV: _csv, NPY: _npy_of, TEXT: _text}
