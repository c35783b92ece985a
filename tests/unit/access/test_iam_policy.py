"""Rules that AWS documents, one by one; what must hold of every policy; documents that are none."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from tests.support.policies import MINE, OTHER, ROLE, SESSION, USER, Case, case, statement

from outcrop.access.evaluate import Policies, Question, decide
from outcrop.access.patterns import arn_glob, glob
from outcrop.access.policy import Kind, compile_document, parse
from outcrop.access.principals import Who
from outcrop.errors import MalformedPolicy

OBJECT = "arn:aws:s3:::models/a"


def doc(*statements: dict[str, Any], version: str = "2012-10-17") -> dict[str, Any]:
    return {"Version": version, "Statement": list(statements)}


def allow(**more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "*", "Resource": "*", **more}


def deny(**more: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": "*", "Resource": "*", **more}


def asked(principal: str = USER, owner: str = MINE, context: dict[str, Any] | None = None, **documents: Any) -> bool:
    given = {"identity": [], **documents}
    return (
        Case(
            principal=principal,
            action="s3:GetObject",
            resource=OBJECT,
            owner=owner,
            context=context or {},
            **given,
        )
        .decide()
        .is_allowed
    )


# (what the guide says, the documents, whether it is allowed)
RULES: list[tuple[str, dict[str, Any], bool]] = [
    ("nothing allows", {}, False),
    ("an identity policy allows", {"identity": [doc(allow())]}, True),
    ("an explicit deny wins over any allow", {"identity": [doc(allow(), deny())]}, False),
    ("a deny in another policy wins too", {"identity": [doc(allow()), doc(deny())]}, False),
    ("the resource's deny wins", {"identity": [doc(allow())], "bucket": doc(deny(Principal="*"))}, False),
    ("a boundary alone grants nothing", {"boundary": doc(allow())}, False),
    ("a boundary limits", {"identity": [doc(allow())], "boundary": doc(allow(Action="sqs:*"))}, False),
    ("boundary and identity together", {"identity": [doc(allow())], "boundary": doc(allow())}, True),
    ("the resource may grant alone in one account", {"bucket": doc(allow(Principal={"AWS": USER}))}, True),
    ("naming the account grants nobody by itself", {"bucket": doc(allow(Principal={"AWS": MINE}))}, False),
    (
        "a grant to the user is not limited by the boundary",
        {"boundary": doc(allow(Action="sqs:*")), "bucket": doc(allow(Principal={"AWS": USER}))},
        True,
    ),
    (
        "a grant to the role is limited by the session policy",
        {"principal": SESSION, "session": doc(allow(Action="sqs:*")), "bucket": doc(allow(Principal={"AWS": ROLE}))},
        False,
    ),
    (
        "a grant to the session is not",
        {"principal": SESSION, "session": doc(allow(Action="sqs:*")), "bucket": doc(allow(Principal={"AWS": SESSION}))},
        True,
    ),
    (
        "a session policy limits the role",
        {"principal": SESSION, "identity": [doc(allow())], "session": doc(allow(Action="sqs:*"))},
        False,
    ),
    ("a session policy grants nothing", {"principal": SESSION, "session": doc(allow())}, False),
    ("across accounts the caller's side is not enough", {"owner": OTHER, "identity": [doc(allow())]}, False),
    ("nor the resource's", {"owner": OTHER, "bucket": doc(allow(Principal={"AWS": USER}))}, False),
    (
        "both are",
        {"owner": OTHER, "identity": [doc(allow())], "bucket": doc(allow(Principal={"AWS": MINE}))},
        True,
    ),
    (
        "both, and the boundary too",
        {
            "owner": OTHER,
            "identity": [doc(allow())],
            "boundary": doc(allow(Action="sqs:*")),
            "bucket": doc(allow(Principal={"AWS": USER})),
        },
        False,
    ),
    ("NotAction leaves out", {"identity": [doc({"Effect": "Allow", "NotAction": "s3:*", "Resource": "*"})]}, False),
    ("NotAction means the rest", {"identity": [doc({"Effect": "Allow", "NotAction": "sqs:*", "Resource": "*"})]}, True),
    (
        "NotResource leaves out",
        {"identity": [doc({"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::models/*"})]},
        False,
    ),
    (
        "NotPrincipal with Deny spares whom it names",
        {
            "identity": [doc(allow())],
            "bucket": doc({"Effect": "Deny", "NotPrincipal": {"AWS": [USER, MINE]}, "Action": "*", "Resource": "*"}),
        },
        True,
    ),
    (
        "and nobody with a boundary",
        {
            "identity": [doc(allow())],
            "boundary": doc(allow()),
            "bucket": doc({"Effect": "Deny", "NotPrincipal": {"AWS": [USER, MINE]}, "Action": "*", "Resource": "*"}),
        },
        False,
    ),
]


@pytest.mark.parametrize(("rule", "given", "is_allowed"), RULES, ids=[rule for rule, _, _ in RULES])
def test_a_documented_rule_holds(rule: str, given: dict[str, Any], is_allowed: bool) -> None:
    assert asked(**given) is is_allowed


# (condition, context, whether it holds), after "Condition operators" and "Multivalued context keys"
CONDITIONS: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    ({"StringEquals": {"aws:username": "ann"}}, {"aws:username": "Ann"}, False),
    ({"StringEqualsIgnoreCase": {"aws:username": "ann"}}, {"aws:username": "Ann"}, True),
    ({"StringEquals": {"AWS:UserName": ["bob", "ann"]}}, {"aws:username": "ann"}, True),
    ({"StringEquals": {"aws:username": "ann"}}, {}, False),
    ({"StringEqualsIfExists": {"aws:username": "ann"}}, {}, True),
    ({"StringNotEquals": {"aws:username": "ann"}}, {}, True),
    ({"StringNotEquals": {"aws:username": ["ann", "bob"]}}, {"aws:username": "bob"}, False),
    ({"StringLike": {"aws:username": "a?n*"}}, {"aws:username": "annie"}, True),
    ({"StringEquals": {"aws:username": "a*"}}, {"aws:username": "ann"}, False),
    ({"Null": {"aws:username": "true"}}, {}, True),
    ({"Null": {"aws:username": True}}, {"aws:username": "ann"}, False),
    ({"Bool": {"aws:SecureTransport": True}}, {"aws:securetransport": "true"}, True),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:sourceip": "10.9.8.7"}, True),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:sourceip": "::1"}, False),
    ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:sourceip": "not an address"}, False),
    ({"NumericLessThanEquals": {"s3:max-keys": 10}}, {"s3:max-keys": "10"}, True),
    ({"NumericEquals": {"s3:max-keys": "10"}}, {"s3:max-keys": "ten"}, False),
    ({"DateLessThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}}, {"aws:currenttime": "2025-12-31T23:59:59Z"}, True),
    ({"DateGreaterThan": {"aws:EpochTime": "1700000000"}}, {"aws:epochtime": "1700000001"}, True),
    ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {"aws:tagkeys": ["a", "c"]}, False),
    ({"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {}, True),
    ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {"aws:tagkeys": ["a", "c"]}, True),
    ({"ForAnyValue:StringEquals": {"aws:TagKeys": ["a", "b"]}}, {}, False),
    ({"StringEquals": {"aws:username": "${aws:principaltag/owner}"}}, {"aws:username": "x"}, False),
    (
        {"StringLike": {"aws:username": "${aws:principaltag/o}*"}},
        {"aws:username": "ab", "aws:principaltag/o": "?"},
        False,
    ),
    ({"StringEquals": {"aws:username": "${x:y, 'ann'}"}}, {"aws:username": "ann"}, True),
    ({"StringLike": {"aws:username": "a${*}"}}, {"aws:username": "ann"}, False),
    ({"StringLike": {"aws:username": "a${*}"}}, {"aws:username": "a*"}, True),
    ({"ArnLike": {"aws:SourceArn": "arn:aws:s3:::b*"}}, {"aws:sourcearn": "arn:aws:s3:::bucket"}, True),
    ({"ArnLike": {"aws:SourceArn": "arn:*:s3:::b"}}, {"aws:sourcearn": "arn:aws:x:s3:::b"}, False),
    ({"ArnLike": {"aws:SourceArn": "arn:aws:s3:::b*"}}, {"aws:sourcearn": "bucket"}, False),
]


@pytest.mark.parametrize(("block", "context", "holds"), CONDITIONS)
def test_a_condition_holds_as_documented(block: dict[str, Any], context: dict[str, Any], holds: bool) -> None:
    assert asked(identity=[doc(allow(Condition=block))], context=context) is holds


def test_variables_of_the_oldest_version_are_plain_text() -> None:
    block = {"StringEquals": {"aws:username": "${aws:username}"}}

    assert asked(identity=[doc(allow(Condition=block))], context={"aws:username": "ann"})
    assert not asked(identity=[doc(allow(Condition=block), version="2008-10-17")], context={"aws:username": "ann"})


@pytest.mark.parametrize(
    ("kind", "document", "says"),
    [
        (Kind.IDENTITY, "{", "JSON"),
        (Kind.IDENTITY, "[]", "object"),
        (Kind.IDENTITY, "{}", "no Statement"),
        (Kind.IDENTITY, doc(allow(), version="2020-01-01"), "2020-01-01"),
        (Kind.IDENTITY, {**doc(allow()), "Extra": 1}, "Extra"),
        (Kind.IDENTITY, doc({"Effect": "Allow", "Action": "*"}), "Resource"),
        (Kind.IDENTITY, doc({"Effect": "Allow", "Resource": "*"}), "Action"),
        (Kind.IDENTITY, doc(allow(Effect="allow")), "Effect"),
        (Kind.IDENTITY, doc(allow(Action="InvokeModel")), "InvokeModel"),
        (Kind.IDENTITY, doc(allow(Action=[])), "Action"),
        (Kind.IDENTITY, doc(allow(NotAction="*")), "both"),
        (Kind.IDENTITY, doc(allow(Resource="models")), "models"),
        (Kind.IDENTITY, doc(allow(Principal="*")), "Principal"),
        (Kind.IDENTITY, doc(allow(Condition={"StringIs": {"a:b": "c"}})), "StringIs"),
        (Kind.IDENTITY, doc(allow(Condition={"IpAddress": {"aws:SourceIp": "ten"}})), "ten"),
        (Kind.IDENTITY, doc(allow(Condition={"StringEquals": {"nocolon": "c"}})), "nocolon"),
        (Kind.IDENTITY, doc(allow(Sid="a"), allow(Sid="a")), "unique"),
        (Kind.RESOURCE, doc(allow()), "Principal"),
        (Kind.RESOURCE, doc(allow(Principal={"AWS": "ann"})), "ann"),
        (Kind.RESOURCE, doc(allow(Principal={"People": "*"})), "People"),
        (Kind.RESOURCE, doc({"Effect": "Allow", "NotPrincipal": "*", "Action": "*", "Resource": "*"}), "NotPrincipal"),
        (Kind.TRUST, doc(allow(Principal="*")), "Resource"),
    ],
)
def test_a_document_that_breaks_the_grammar_is_refused_and_says_where(kind: Kind, document: Any, says: str) -> None:
    with pytest.raises(MalformedPolicy, match=says):
        parse(document if isinstance(document, str) else json.dumps(document), kind)


def test_removing_an_allow_never_grants_and_adding_a_deny_never_does() -> None:
    rng = random.Random(7)
    granted = 0
    while granted < 300:
        one = case(rng)
        if one.decide().is_allowed:
            granted += 1
            continue
        fewer, more = copy.deepcopy(one), copy.deepcopy(one)
        for document in [*fewer.identity, *(each for each in (fewer.bucket, fewer.boundary) if each is not None)]:
            for index, each in enumerate(document["Statement"]):
                if each["Effect"] == "Allow" and rng.random() < 0.5:
                    # In its place one that allows nothing, since a document without statements limits nothing less.
                    document["Statement"][index] = {**each, "Condition": {"Null": {"aws:currenttime": "true"}}}
        assert not fewer.decide().is_allowed
        denial = {**statement(rng, allow=0.0, names_principals=False), "Effect": "Deny"}
        more.identity = [*more.identity, doc(denial)]
        assert not more.decide().is_allowed


def test_a_denial_is_told_in_the_words_of_aws() -> None:
    who = Who(account=MINE, arn=USER)
    question = Question(who=who, action="s3:GetObject", resource=OBJECT, owner=MINE, context={})
    denied = decide(question, Policies(identity=[compile_document(doc(deny()), Kind.IDENTITY)]))

    assert decide(question, Policies()).because("s3:GetObject") == (
        "because no identity-based policy allows the s3:GetObject action"
    )
    assert denied.because("s3:GetObject") == "with an explicit deny in an identity-based policy"


def test_patterns_take_linear_time() -> None:
    hostile = "a*" * 60 + "b"

    assert not glob(hostile)("a" * 5000)
    assert not arn_glob("arn:aws:s3:::" + hostile)("arn:aws:s3:::" + "a" * 5000)


def test_a_wildcard_stays_within_its_segment() -> None:
    assert not arn_glob("arn:aws:*:::models")("arn:aws:bedrock:us-east-1:1:imported-model/models")
    assert arn_glob("arn:aws:bedrock")("arn:aws:bedrock:us-east-1:1:imported-model/x")
