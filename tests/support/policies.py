"""Random requests and policies, near enough to each other that half of them match."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from outcrop.access.evaluate import Decision, Policies, Question, decide
from outcrop.access.policy import Kind, compile_document
from outcrop.access.principals import Who

MINE, OTHER = "111111111111", "222222222222"
USER = f"arn:aws:iam::{MINE}:user/ann"
ROLE = f"arn:aws:iam::{MINE}:role/app"
SESSION = f"arn:aws:sts::{MINE}:assumed-role/app/job-7"
ACTIONS = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:GetObjectTagging"]
OBJECTS = [
    "arn:aws:s3:::models/team-a/config.json",
    "arn:aws:s3:::models/team-b/a:b.safetensors",
    "arn:aws:s3:::other/ann/x",
    "arn:aws:s3:::models/ann/job-7",
]
PATTERNS = [
    "*",
    "arn:aws:s3:::*",
    "arn:aws:s3:::models/*",
    "arn:aws:s3:::models/team-?/*",
    "arn:aws:s3:::*/ann/*",
    "arn:aws:s3:::models/*on*",
    "arn:aws:s3:::models/team-b/*:b.*",
    "arn:aws:s3:::other/${aws:username}/*",
    "arn:aws:s3:::models/${aws:PrincipalTag/team, 'team-a'}/*",
    "arn:aws:s3:::models/team-a/config.json",
    "arn:aws:s3:::mod?ls/team-a/conf*n",
]
ACTION_PATTERNS = ["*", "s3:*", "s3:Get*", "S3:getobject", "s3:?etObject", "s3:*Object", "s3:Put*", *ACTIONS]
CONDITIONS: list[dict[str, Any]] = [
    {"StringEquals": {"aws:PrincipalTag/team": ["red", "blue"]}},
    {"StringNotEquals": {"aws:PrincipalTag/team": "red"}},
    {"StringEqualsIgnoreCase": {"aws:PrincipalTag/team": "RED"}},
    {"StringLike": {"aws:PrincipalTag/Team": "r*d"}},
    {"StringNotLike": {"aws:userid": ["*:job-?", "AIDA*"]}},
    {"StringEqualsIfExists": {"aws:PrincipalTag/team": "blue"}},
    {"StringNotEqualsIfExists": {"aws:PrincipalTag/team": "blue"}},
    {"StringEquals": {"aws:PrincipalTag/color": "${aws:PrincipalTag/team}"}},
    {"StringLike": {"aws:PrincipalArn": ["arn:aws:iam::*:role/*", "*:user/a?n"]}},
    {"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::111111111111:role/*"}},
    {"ArnEquals": {"aws:PrincipalArn": "arn:aws:iam::*:user/ann"}},
    {"ArnNotLike": {"aws:PrincipalArn": "arn:aws:iam::111111111111:user/*"}},
    {"ArnLike": {"aws:SourceArn": "arn:aws:bedrock:*:111111111111:model-import-job/*"}},
    {"ArnNotEquals": {"aws:SourceArn": "arn:aws:bedrock:us-east-1:111111111111:model-import-job/abc"}},
    {"IpAddress": {"aws:SourceIp": ["10.0.0.0/8", "192.168.1.1"]}},
    {"NotIpAddress": {"aws:SourceIp": "10.1.0.0/16"}},
    {"IpAddress": {"aws:SourceIp": "2001:db8::/32"}},
    {"Bool": {"aws:SecureTransport": "true"}},
    {"BoolIfExists": {"aws:MultiFactorAuthPresent": "true"}},
    {"Null": {"aws:PrincipalTag/team": "true"}},
    {"Null": {"aws:SourceArn": "false"}},
    {"DateGreaterThan": {"aws:CurrentTime": "2026-01-01T00:00:00Z"}},
    {"DateLessThanEquals": {"aws:CurrentTime": "2026-06-30T12:00:00Z"}},
    {"NumericLessThan": {"aws:MultiFactorAuthAge": "300"}},
    {"NumericGreaterThanEquals": {"aws:MultiFactorAuthAge": "300"}},
    {"NumericNotEquals": {"aws:MultiFactorAuthAge": "120"}},
    {"StringEquals": {"aws:RequestedRegion": "us-east-1"}, "Bool": {"aws:SecureTransport": "false"}},
    {"ForAllValues:StringEquals": {"aws:TagKeys": ["team", "cost"]}},
    {"ForAnyValue:StringEquals": {"aws:TagKeys": ["team"]}},
    {"ForAllValues:StringLike": {"aws:TagKeys": ["t*"]}},
    {"ForAnyValue:StringNotEquals": {"aws:TagKeys": ["team"]}},
    {"StringEquals": {"aws:SourceAccount": MINE}},
    {"StringEquals": {"aws:username": "${aws:username}"}},
    {"StringLike": {"aws:PrincipalTag/team": "${*}*"}},
]


@dataclass(kw_only=True)
class Case:
    """One question with documents, as both engines can be asked it."""

    principal: str
    action: str
    resource: str
    owner: str
    context: dict[str, Any]
    identity: list[dict[str, Any]]
    boundary: dict[str, Any] | None = None
    session: dict[str, Any] | None = None
    bucket: dict[str, Any] | None = None
    note: str = field(default="", compare=False)

    def decide(self) -> Decision:
        context = {key.lower(): value for key, value in self.context.items()}
        who = Who(
            account=MINE,
            arn=self.principal,
            role_arn=ROLE if self.principal == SESSION else None,
            has_boundary=self.boundary is not None,
        )
        question = Question(who=who, action=self.action, resource=self.resource, owner=self.owner, context=context)
        policies = Policies(
            identity=[compile_document(each, Kind.IDENTITY, f"p{n}") for n, each in enumerate(self.identity)],
            boundary=None if self.boundary is None else compile_document(self.boundary, Kind.BOUNDARY),
            session=None if self.session is None else [compile_document(self.session, Kind.SESSION)],
            resource=None if self.bucket is None else compile_document(self.bucket, Kind.RESOURCE),
        )
        return decide(question, policies)

    def simulation(self) -> dict[str, Any]:
        """The case in the words of the simulator of ``tests/clients/foreign/iam_oracle.mjs``."""
        found: dict[str, Any] = {
            "request": {
                "principal": self.principal,
                "action": self.action,
                "resource": {"resource": self.resource, "accountId": self.owner},
                "contextVariables": self.context,
            },
            "identityPolicies": [{"name": f"p{n}", "policy": each} for n, each in enumerate(self.identity)],
            "serviceControlPolicies": [],
            "resourceControlPolicies": [],
        }
        if self.boundary is not None:
            found["permissionBoundaryPolicies"] = [{"name": "boundary", "policy": self.boundary}]
        if self.session is not None:
            found["sessionPolicy"] = self.session
        if self.bucket is not None:
            found["resourcePolicy"] = self.bucket
        return found


def case(rng: random.Random) -> Case:
    principal = rng.choice([USER, SESSION])
    return Case(
        principal=principal,
        action=rng.choice(ACTIONS[:3]),
        resource=rng.choice(OBJECTS),
        owner=rng.choice([MINE, MINE, OTHER]),
        context=_context(rng, principal),
        identity=[document(rng) for _ in range(rng.choice([0, 1, 1, 2]))],
        boundary=document(rng, allow=0.9) if rng.random() < 0.2 else None,
        session=document(rng, allow=0.9) if principal == SESSION and rng.random() < 0.3 else None,
        bucket=document(rng, names_principals=True) if rng.random() < 0.6 else None,
    )


def _context(rng: random.Random, principal: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "aws:PrincipalArn": ROLE if principal == SESSION else principal,
        "aws:userid": "AROAX:job-7" if principal == SESSION else "AIDAX",
        "aws:SourceIp": rng.choice(["10.1.2.3", "10.2.0.1", "192.168.1.1", "8.8.8.8", "2001:db8::5"]),
        "aws:SecureTransport": rng.choice(["true", "false"]),
        "aws:CurrentTime": rng.choice(["2025-12-31T23:59:59Z", "2026-03-01T00:00:00Z", "2026-07-01T00:00:00Z"]),
        "aws:RequestedRegion": rng.choice(["us-east-1", "eu-west-1"]),
    }
    if principal == USER:
        found["aws:username"] = "ann"
    for key, values in {
        "aws:PrincipalTag/team": ["red", "blue", "team-b", "*"],
        "aws:SourceArn": [f"arn:aws:bedrock:us-east-1:{MINE}:model-import-job/abc", "arn:aws:s3:::x"],
        "aws:SourceAccount": [MINE, OTHER],
        "aws:MultiFactorAuthPresent": ["true", "false"],
        "aws:MultiFactorAuthAge": ["120", "300", "900"],
    }.items():
        if rng.random() < 0.6:
            found[key] = rng.choice(values)
    if rng.random() < 0.6:
        found["aws:TagKeys"] = rng.choice([["team"], ["team", "cost"], ["team", "other"], ["other"]])
    if rng.random() < 0.4:
        found["aws:PrincipalTag/color"] = rng.choice(["red", "blue"])
    return found


def document(rng: random.Random, *, allow: float = 0.75, names_principals: bool = False) -> dict[str, Any]:
    count = rng.choice([1, 1, 2, 3])
    return {"Version": "2012-10-17", "Statement": [statement(rng, allow, names_principals) for _ in range(count)]}


def statement(rng: random.Random, allow: float, names_principals: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"Effect": "Allow" if rng.random() < allow else "Deny"}
    if names_principals:
        named: Any = rng.choice(
            [
                "*",
                {"AWS": "*"},
                {"AWS": MINE},
                {"AWS": f"arn:aws:iam::{MINE}:root"},
                {"AWS": [USER]},
                {"AWS": ROLE},
                {"AWS": SESSION},
                {"AWS": [OTHER, USER]},
                {"AWS": OTHER},
                {"Service": "bedrock.amazonaws.com"},
            ]
        )
        if found["Effect"] == "Deny" and rng.random() < 0.3 and named not in ("*", {"AWS": "*"}):
            found["NotPrincipal"] = named
        else:
            found["Principal"] = named
    actions = rng.sample(ACTION_PATTERNS, rng.choice([1, 1, 2]))
    found["NotAction" if rng.random() < 0.12 else "Action"] = actions if rng.random() < 0.7 else actions[0]
    resources = rng.sample(PATTERNS, rng.choice([1, 1, 2]))
    if names_principals:
        resources = [each for each in resources if each != "*"] or ["arn:aws:s3:::*"]
    found["NotResource" if rng.random() < 0.12 else "Resource"] = resources
    if rng.random() < 0.55:
        chosen: dict[str, Any] = {}
        for block in rng.sample(CONDITIONS, rng.choice([1, 1, 2])):
            for operator, keys in block.items():
                chosen.setdefault(operator, {}).update(keys)
        found["Condition"] = chosen
    return found
