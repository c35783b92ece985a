"""What AWS's published signature cases are about, case by case under their names, signed here by botocore.

Each case is a request; *same* are further ways of writing it on the wire that its signature holds for, *other* ones that
it must not hold for. The texts are ours, so that what each case is about can be varied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from outcrop.access.authenticate import Authenticator
from outcrop.access.identities import AccessKey, MemoryCredentials, Principal
from outcrop.errors import NotAuthenticated

ME = Principal("123456789012", "arn:aws:iam::123456789012:user/me")
KEY, SECRET = "AKIAABCDEFGHIJKLMNOP", "s" * 40
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    name: str
    target: str = "/"
    headers: Headers = ()
    method: str = "GET"
    body: bytes = b""
    same: Sequence[str | Headers] = field(default=())
    other: Sequence[str | Headers] = field(default=())


FORM = ("Content-Type", "application/x-www-form-urlencoded")
CASES = [
    Case("get-vanilla", other=["/x", "/?a"]),
    Case("get-vanilla-empty-query-key", "/?Param1=value1", other=["/?=value1", "/?Param1", "/?Param1=value"]),
    Case("get-vanilla-query", "/?", same=["/"], other=["/?a="]),
    Case("get-vanilla-query-order-key", "/?b=1&a=2", same=["/?a=2&b=1"], other=["/?a=1&b=2"]),
    Case("get-vanilla-query-order-key-case", "/?P2=v&p1=v", same=["/?p1=v&P2=v"], other=["/?p2=v&p1=v"]),
    Case("get-vanilla-query-order-value", "/?a=2&a=1", same=["/?a=1&a=2"], other=["/?a=1", "/?a=1&a=2&a=2"]),
    Case("get-vanilla-query-order-encoded", "/?%C3%A9=1&z=2", same=["/?z=2&%C3%A9=1"], other=["/?%C3%A8=1&z=2"]),
    Case("get-vanilla-query-unreserved", f"/?{UNRESERVED}={UNRESERVED}", other=[f"/?{UNRESERVED}={UNRESERVED}0"]),
    Case("get-vanilla-utf8-query", "/?%E1%88%B4=bar", other=["/?%e1%88%b5=bar"]),
    Case("get-utf8", "/%E1%88%B4", other=["/%E1%88%B5"]),
    Case("get-unreserved", f"/{UNRESERVED}", other=[f"/{UNRESERVED[::-1]}"]),
    Case("get-space", "/example%20space/", other=["/example+space/", "/example%2520space/", "/examplespace/"]),
    Case("get-relative", "/example/..", same=["/"], other=["/example"]),
    Case("get-relative-relative", "/one/two/../..", same=["/"], other=["/one/two/.."]),
    Case("get-slash", "//", same=["/"], other=["//x"]),
    Case("get-slash-dot-slash", "/./", same=["/"], other=["/.x/"]),
    Case("get-slash-pointless-dot", "/./example", same=["/example"], other=["/example."]),
    Case("get-slashes", "//example//", same=["/example/"], other=["/example"]),
    Case(  # model ids are ARNs: what the client encoded is encoded once more, so that neither reading is the other's
        "double-encode",
        "/model/arn%3Aaws%3Abedrock%3Aimported-model%2Fx/invoke",
        other=[
            "/model/arn:aws:bedrock:imported-model%2Fx/invoke",
            "/model/arn%3Aaws%3Abedrock%3Aimported-model/x/invoke",
            "/model/arn%253Aaws%253Abedrock%253Aimported-model%252Fx/invoke",
            "/model/arn%3aaws%3abedrock%3aimported-model%2fx/invoke",
        ],
    ),
    Case(
        "get-header-key-duplicate",
        headers=[("My-Header1", "value2"), ("My-Header1", "value2"), ("My-Header1", "value1")],
        same=[[("My-Header1", "value2,value2,value1")]],
        other=[[("My-Header1", "value2,value1")], [("My-Header1", "value1"), ("My-Header1", "value2,value2")]],
    ),
    Case(  # a folded value reaches us in one line, or not at all
        "get-header-value-multiline",
        headers=[("My-Header1", "value1 value2 value3")],
        same=[[("My-Header1", "value1   value2\t value3")]],
        other=[[("My-Header1", "value1value2 value3")], [("My-Header1", "value1,value2,value3")]],
    ),
    Case(
        "get-header-value-order",
        headers=[("My-Header1", "value4"), ("My-Header1", "value1"), ("My-Header1", "value3")],
        other=[[("My-Header1", "value1"), ("My-Header1", "value3"), ("My-Header1", "value4")]],
    ),
    Case(
        "get-header-value-trim",
        headers=[("My-Header1", " value1"), ("My-Header2", ' "a   b   c"')],
        same=[[("My-Header1", "value1  "), ("My-Header2", '"a b c"')]],
        other=[[("My-Header1", "value1"), ("My-Header2", '"abc"')]],
    ),
    Case("get-vanilla-with-session-token", other=[[("X-Amz-Security-Token", "somebody's")]]),
    Case("post-vanilla", method="POST", body=b"", other=["/x"]),
    Case("post-vanilla-query", "/?a=1", method="POST", other=["/?a=2"]),
    Case("post-vanilla-empty-query-value", "/?Param1=", method="POST", same=["/?Param1"], other=["/?Param2="]),
    Case(
        "post-header-key-case",
        method="POST",
        headers=[("MY-HEADER1", "value1")],
        same=[[("my-header1", "value1")]],
        other=[[("my_header1", "value1")]],
    ),
    Case(
        "post-header-key-sort",
        method="POST",
        headers=[("My-Header2", "b"), ("My-Header1", "a")],
        same=[[("My-Header1", "a"), ("My-Header2", "b")]],
        other=[[("My-Header1", "b"), ("My-Header2", "a")]],
    ),
    Case(
        "post-header-value-case",
        method="POST",
        headers=[("My-Header1", "VALUE1")],
        other=[[("My-Header1", "value1")]],
    ),
    Case("post-x-www-form-urlencoded", method="POST", headers=[FORM], body=b"Param1=value1"),
    Case(
        "post-x-www-form-urlencoded-parameters",
        method="POST",
        headers=[("Content-Type", "application/x-www-form-urlencoded; charset=utf8")],
        body=b"Param1=value1",
        other=[[("Content-Type", "application/x-www-form-urlencoded; charset=latin1")]],
    ),
]


def authenticate(case: Case, signed: Headers, varied: str | Headers) -> Principal:
    """Send *case* with what botocore added, another target or other headers in the place of its own."""
    target, headers = (varied, case.headers) if isinstance(varied, str) else (case.target, varied)
    path, _, query = target.partition("?")
    authenticator = Authenticator(
        MemoryCredentials([AccessKey(KEY, SECRET, ME)], []), region="us-east-1", now=lambda: datetime.now(UTC)
    )
    sent = [(name.encode(), value.encode()) for name, value in (*headers, *signed)]
    return authenticator.authenticate(case.method, path.encode(), query.encode(), sent, case.body)


def added(case: Case) -> Headers:
    """The headers with which botocore signs *case*, the host's included."""
    url = f"http://host:8080{case.target}"
    request = AWSRequest(case.method, url, data=case.body)
    for name, value in case.headers:
        request.headers.add_header(name, value)
    SigV4Auth(Credentials(KEY, SECRET), "bedrock", "us-east-1").add_auth(request)
    own = {"authorization", "x-amz-date"}
    return [*((n, v) for n, v in request.headers.items() if n.lower() in own), ("Host", urlsplit(url).netloc)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_verifies_in_every_way_that_it_may_be_written_and_in_no_other(case: Case) -> None:
    signed = added(case)

    for way in (case.target, case.headers, *case.same):
        assert authenticate(case, signed, way) is ME, way
    for way in case.other:
        with pytest.raises(NotAuthenticated):
            authenticate(case, signed, way)


@pytest.mark.parametrize(
    "more",
    [
        "{whole}",
        "Bearer oc-somebody",
        "Signature=0",
        "Credential={key}/20300101/us-east-1/bedrock/aws4_request",
        "Other=1",
        "nothing",
    ],
)
def test_an_authorization_that_could_be_read_in_two_ways_is_refused(more: str) -> None:
    case = CASES[0]
    signed = added(case)
    (whole,) = (value for name, value in signed if name == "Authorization")
    twice = more.format(whole=whole, key=KEY)

    for sent in ([*signed, ("Authorization", twice)], [("authorization", twice), *signed]):
        with pytest.raises(NotAuthenticated):
            authenticate(case, sent, case.target)
    joined = [(name, f"{value}, {twice}" if name == "Authorization" else value) for name, value in signed]
    with pytest.raises(NotAuthenticated):
        authenticate(case, joined, case.target)
