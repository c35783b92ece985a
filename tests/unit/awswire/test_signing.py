"""What we sign and read is what botocore signs and writes."""

from __future__ import annotations

import datetime as dt

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from outcrop.awswire.eventstream import BrokenFrame, Decoder, encode_chunk, encode_exception
from outcrop.awswire.sigv4 import Keys, Scope, head

NOW = dt.datetime(2026, 11, 24, 12, 0, 0, tzinfo=dt.UTC)
PATHS = st.text(st.sampled_from("abcXYZ019-_.~:%+ é"), min_size=1, max_size=40)


@given(model=PATHS, body=st.binary(max_size=200), token=st.sampled_from(["", "tok/en=="]))
def test_a_signature_is_the_one_that_botocore_makes(model: str, body: bytes, token: str) -> None:
    from unittest.mock import patch
    from urllib.parse import quote

    path = f"/model/{quote(model, safe='')}/invoke"
    request = AWSRequest(
        "POST", f"http://127.0.0.1:7070{path}", data=body, headers={"Content-Type": "application/json"}
    )
    signer = SigV4Auth(Credentials("AKIA", "secret", token or None), "bedrock", "us-east-1")
    with patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        signer.add_auth(request)

    ours = head(
        Keys("AKIA", "secret", token),
        method="POST",
        host="127.0.0.1:7070",
        raw_path=path,
        content_type="application/json",
        body=body,
        timestamp="20261124T120000Z",
        scope=Scope("AKIA", "20261124", "us-east-1", "bedrock"),
    )

    assert f"Authorization: {request.headers['Authorization']}\r\n" in ours


def test_a_bearer_key_signs_nothing() -> None:
    scope = Scope("", "20261124", "us-east-1", "bedrock")
    ours = head(
        Keys(bearer="k"), method="POST", host="h", raw_path="/", content_type="a/b", body=b"", timestamp="", scope=scope
    )

    assert ours == "Content-Type: a/b\r\nAuthorization: Bearer k\r\n"


@given(cut=st.integers(1, 60))
def test_frames_are_read_from_parts_of_any_size_as_botocore_reads_them(cut: int) -> None:
    data = encode_chunk(b"{}") + encode_exception("throttlingException", "slow") + encode_chunk(b"[1]")
    theirs = EventStreamBuffer()
    theirs.add_data(data)
    decoder = Decoder()

    ours = [message for at in range(0, len(data), cut) for message in decoder.feed(data[at : at + cut])]

    assert [(m.headers, m.payload) for m in ours] == [(e.headers, e.payload) for e in theirs]


@pytest.mark.parametrize("at", [0, 5, 9, 20, -1])
def test_a_damaged_frame_is_not_read(at: int) -> None:
    data = bytearray(encode_chunk(b"{}"))
    data[at] ^= 1

    with pytest.raises(BrokenFrame):
        Decoder().feed(bytes(data))
