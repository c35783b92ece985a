"""Least-privilege policies for a deployment on AWS, as documents to review; nothing is created."""

from __future__ import annotations

from typing import Any


def _document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": "2012-10-17", "Statement": list(statements)}


def documents(*, region: str, account: str, bucket: str, prefix: str, name: str, parameter: str) -> dict[str, Any]:
    """Policies by what they are for: pipeline, import role with its trust, proxy, another account's bucket."""
    models = f"arn:aws:bedrock:{region}:{account}:imported-model/*"
    jobs = f"arn:aws:bedrock:{region}:{account}:model-import-job/*"
    objects, whole = f"arn:aws:s3:::{bucket}/{prefix}*", f"arn:aws:s3:::{bucket}"
    listing = {"StringLike": {"s3:prefix": [f"{prefix}*"]}}
    role = f"arn:aws:iam::{account}:role/{name}-import"
    pipeline: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": objects},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": whole, "Condition": listing},
        {
            "Effect": "Allow",
            "Action": ["bedrock:CreateModelImportJob", "bedrock:GetModelImportJob"],
            "Resource": [jobs, models],
        },
        {"Effect": "Allow", "Action": ["bedrock:GetImportedModel", "bedrock:InvokeModel"], "Resource": models},
        {
            "Effect": "Allow",
            "Action": "iam:PassRole",
            "Resource": role,
            "Condition": {"StringEquals": {"iam:PassedToService": "bedrock.amazonaws.com"}},
        },
    ]
    if parameter:
        arn = f"arn:aws:ssm:{region}:{account}:parameter/{parameter.lstrip('/')}"
        actions = ["ssm:GetParameter", "ssm:PutParameter", "ssm:DeleteParameter"]
        pipeline.append({"Effect": "Allow", "Action": actions, "Resource": arn})
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "bedrock.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": account}, "ArnEquals": {"aws:SourceArn": jobs}},
    }
    reading: list[dict[str, Any]] = [
        {"Effect": "Allow", "Action": "s3:GetObject", "Resource": objects},
        {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": whole, "Condition": listing},
    ]
    invoking = {
        "Effect": "Allow",
        "Action": ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"],
        "Resource": models,
    }
    lookup = {"Effect": "Allow", "Action": "bedrock:GetImportedModel", "Resource": models}
    shared = [{**statement, "Principal": {"AWS": role}} for statement in reading]
    return {
        "pipeline": _document(*pipeline),
        "import-role-trust": _document(trust),
        "import-role": _document(*reading),
        "proxy-role": _document(invoking, lookup),
        "bucket-policy-of-another-account": _document(*shared),
    }
