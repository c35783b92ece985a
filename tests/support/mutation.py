"""Valid requests, and what becomes of them in bad hands. Everything comes from one seeded random source."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from urllib.parse import quote

_VALUES = [
    "1e400", "-1e400", "1" + "0" * 5000, "123456789012345678901234567890", "-0.0", "NaN", "Infinity", "null", "true", "[]", "{}",
    '""', '"\\ud800"', '"\\u0000"', '"' + "x" * 70_000 + '"', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000,
    '{"a":1,"a":2}', "2147483648", "-1", "0.5", '"\\uDC00\\uD800"', '"%00"', '"../../etc"', "[null]", '[{"role":"user","content":null}]',
]  # fmt: skip
_BYTES = [b"\x00", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"%", b"\r\n", b"\\", b'"', b"{", b"]"]
_PATHS = [
    "%00",
    "%ff",
    "%2e%2e",
    "..",
    ".",
    "//",
    "%",
    "%zz",
    "é",
    "a" * 5000,
    "%252F",
    "?",
    "#",
    ":",
    "{x}",
    "%0d%0aX: y",
    " ",
]
_METHODS = ["GET", "POST", "PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW", "get"]
_HEADERS = [
    ("x-amz-date", "20200101T000000Z"), ("x-amz-date", "junk"), ("content-type", "\xff\xfe"), ("content-type", "text/xml"),
    ("x-amzn-bedrock-trace", "MAYBE"), ("x-amzn-bedrock-guardrailidentifier", "a b"), ("accept", "é"), ("range", "bytes=0-1"),
    ("content-encoding", "gzip"), ("expect", "nonsense"), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), ("cookie", "a" * 9000),
    ("x-amz-security-token", "t"), ("x-amzn-bedrock-performanceconfig-latency", "fast"), ("upgrade", "websocket"), ("te", "x"),
]  # fmt: skip
_AUTHORIZATIONS = [
    "", "Bearer", "Bearer ", "Bearer \xff", "Basic eA==", "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 Credential=", "AWS4-HMAC-SHA512 x",
    "AWS4-HMAC-SHA256 Credential=a/b/c/d/aws4_request, SignedHeaders=host;x-amz-date, Signature=\xe9",
    "Bearer bedrock-api-key-" + "A" * 400, "Bearer bedrock-api-key-\xff", "AWS4-HMAC-SHA256 " + "=," * 2000,
]  # fmt: skip


@dataclass(frozen=True)
class Sent:
    """A request before it is framed; header values are latin-1."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def http1(self) -> bytes:
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            "host: h",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        if not any(name in ("content-length", "transfer-encoding") for name, _ in self.headers):
            lines.append(f"content-length: {len(self.body)}")
        return "\r\n".join([*lines, "connection: close", "", ""]).encode("latin-1", "replace") + self.body


def valid_requests(model_arn: str, job_arn: str, bearer: str) -> list[Sent]:
    """One of every kind that the server serves."""
    model, short = quote(model_arn, safe=""), {"max_tokens": 2}
    chat = {"messages": [{"role": "user", "content": "hi"}], **short}
    converse = {"messages": [{"role": "user", "content": [{"text": "hi"}]}], "inferenceConfig": {"maxTokens": 2}}
    tags = [{"key": "a", "value": "b"}]
    job = {
        "jobName": "fuzz", "importedModelName": "fuzz", "roleArn": "arn:aws:iam::000000000000:role/outcrop-import",
        "modelDataSource": {"s3DataSource": {"s3Uri": "s3://artifacts/none/"}}, "jobTags": tags, "clientRequestToken": "fuzz",
    }  # fmt: skip
    calls: list[tuple[str, str, object]] = [
        ("POST", "/model-import-jobs", job),
        ("GET", "/model-import-jobs?maxResults=2&nameContains=a&sortOrder=Ascending", None),
        ("GET", f"/model-import-jobs/{quote(job_arn, safe='')}", None),
        ("GET", "/imported-models?creationTimeAfter=2024-01-02T03%3A04%3A05Z", None),
        ("GET", f"/imported-models/{model}", None),
        ("POST", "/tagResource", {"resourceARN": model_arn, "tags": tags}),
        ("POST", "/listTagsForResource", {"resourceARN": job_arn}),
        ("POST", "/untagResource", {"resourceARN": model_arn, "tagKeys": ["a"]}),
        ("PUT", "/logging/modelinvocations", {"loggingConfig": {"textDataDeliveryEnabled": True}}),
        ("POST", "/resource-policy", {"resourceArn": model_arn, "resourcePolicy": '{"Statement":[]}'}),
        ("POST", "/model-copy-jobs", {"sourceModelArn": model_arn, "targetModelName": "x"}),
        ("POST", f"/model/{model}/invoke", {"prompt": "hi", "max_gen_len": 2, "temperature": 0.5}),
        ("POST", f"/model/{model}/invoke", {"prompt": "hi", "top_p": 0.9, "stop": ["x"], **short}),
        ("POST", f"/model/{model}/invoke", {**chat, "seed": 1, "response_format": {"type": "json_object"}}),
        ("POST", f"/model/{model}/invoke-with-response-stream", {"prompt": "hi", "max_gen_len": 2}),
        ("POST", f"/model/{model}/converse", {**converse, "system": [{"text": "s"}], "additionalModelRequestFields": {"top_k": 3}}),
        ("POST", f"/model/{model}/converse-stream", converse),
        ("POST", "/v1/chat/completions", {**chat, "model": "fuzzed", "stream": True}),
        ("POST", "/v1/completions", {"model": "fuzzed", "prompt": "hi", **short}),
        ("GET", "/v1/models", None),
        ("GET", "/outcrop/v1/status", None),
        ("GET", "/metrics", None),
    ]  # fmt: skip
    headers = (("authorization", f"Bearer {bearer}"), ("content-type", "application/json"))
    return [
        Sent(method, path, headers, b"" if body is None else json.dumps(body).encode()) for method, path, body in calls
    ]


def mutated(sent: Sent, rng: random.Random) -> Sent:
    """*sent* with one to three things made wrong; a model is never deleted."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        sent = rng.choices([_body, _value, _path, _query, _header, _authorization, _method], [5, 6, 2, 2, 2, 1, 1])[0](
            sent, rng
        )
    return sent


def _body(sent: Sent, rng: random.Random) -> Sent:
    body, at = sent.body, rng.randrange(len(sent.body) + 1)
    return replace(sent, body=rng.choice([
        body[:at], body[:at] + rng.choice(_BYTES) + body[at:], body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :], body * 2,
        rng.randbytes(rng.choice([1, 50, 3000])), b"", rng.choice(_VALUES).encode(), body[at:] + body[:at], b"\xef\xbb\xbf" + body,
    ]))  # fmt: skip


def _value(sent: Sent, rng: random.Random) -> Sent:
    """Some value somewhere in the JSON becomes another one, or gets a neighbour."""
    try:
        document = json.loads(sent.body)
    except (ValueError, RecursionError):  # it was made worse before
        return _body(sent, rng)
    holder, mark = document, "\x01mark\x01"
    while isinstance(holder, dict | list) and holder:
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        if rng.random() < 0.4 or not isinstance(holder[key], dict | list):
            if isinstance(holder, dict) and rng.random() < 0.2:
                key = rng.choice(
                    ["", "model", "messages", "prompt", "n", "logprobs", "stop", "tools", "stream_options", "x" * 300]
                )
            holder[key] = mark
            break
        holder = holder[key]
    return replace(sent, body=json.dumps(document).replace(json.dumps(mark), rng.choice(_VALUES)).encode())


def _path(sent: Sent, rng: random.Random) -> Sent:
    path, _, query = sent.path.partition("?")
    segments = path.split("/")
    at = rng.randrange(len(segments))
    segments[at] = rng.choice([segments[at] + rng.choice(_PATHS), rng.choice(_PATHS), "", segments[at].upper()])
    return replace(sent, path="/".join(segments) + (f"?{query}" if query else ""))


def _query(sent: Sent, rng: random.Random) -> Sent:
    names = [
        "maxResults",
        "nextToken",
        "sortBy",
        "statusEquals",
        "creationTimeAfter",
        "creationTimeBefore",
        "nameContains",
        "",
    ]
    found = [
        "-1",
        "0",
        "1e3",
        "9" * 30,
        "%",
        "%ff",
        "",
        "2024-13-01",
        "1e400",
        "0001-01-01T00:00:00%2B23:59",
        "W10=",
        "NaN",
        "a" * 3000,
    ]
    joint = "&" if "?" in sent.path else "?"
    return replace(sent, path=sent.path + joint + f"{rng.choice(names)}={rng.choice(found)}")


def _header(sent: Sent, rng: random.Random) -> Sent:
    more = rng.choices(_HEADERS, k=rng.choice([1, 1, 2, 150]))
    return replace(sent, headers=(*sent.headers, *more))


def _authorization(sent: Sent, rng: random.Random) -> Sent:
    return replace(sent, headers=(("authorization", rng.choice(_AUTHORIZATIONS)), *sent.headers[1:]))


def _method(sent: Sent, rng: random.Random) -> Sent:
    return replace(sent, method=rng.choice(_METHODS))
