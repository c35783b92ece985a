"""Identifiers and ARNs: how they are made, read and told apart. No room owns them, so none imports another for them.

Shapes: botocore ``bedrock/2023-04-20``, ``ModelImportJobArn`` and ``ImportedModelArn``.
"""

from __future__ import annotations

import re
import secrets
import string
from typing import NewType

JobId = NewType("JobId", str)
ModelId = NewType("ModelId", str)
CopyId = NewType("CopyId", str)

_ALPHABET = string.ascii_lowercase + string.digits
_IMPORTED_MODEL_ARN = re.compile(
    r"arn:aws(?:-[^:]+)?:bedrock:([a-z0-9-]{1,20}):([0-9]{12}):imported-model/([a-z0-9]{12})"
)
_IMPORT_JOB_ARN = re.compile(
    r"arn:aws(?:-[^:]+)?:bedrock:([a-z0-9-]{1,20}):([0-9]{12}):model-import-job/([a-z0-9]{12})"
)


def random_id(length: int = 12) -> str:
    """A fresh resource id of *length* lower-case letters and digits, the shape AWS uses in ARNs."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def import_job_arn(region: str, account: str, job_id: str) -> str:
    return f"arn:aws:bedrock:{region}:{account}:model-import-job/{job_id}"


def imported_model_arn(region: str, account: str, model_id: str) -> str:
    return f"arn:aws:bedrock:{region}:{account}:imported-model/{model_id}"


def import_job_resource(job_id: str) -> str:
    """The end of a job's ARN, which names it within account and region."""
    return f"model-import-job/{job_id}"


def imported_model_resource(model_id: str) -> str:
    """The end of a model's ARN, which names it within account and region."""
    return f"imported-model/{model_id}"


def is_own_arn(arn: str, region: str, account: str) -> bool:
    """Whether *arn* names something of *account* in *region*."""
    return arn.startswith(f"arn:aws:bedrock:{region}:{account}:")


def imported_model_id(arn: str) -> ModelId | None:
    """The model id inside an imported-model ARN; None when *arn* is not one."""
    match = _IMPORTED_MODEL_ARN.fullmatch(arn)
    return ModelId(match.group(3)) if match else None


def imported_model_account(arn: str) -> str | None:
    """The account inside an imported-model ARN; None when *arn* is not one."""
    match = _IMPORTED_MODEL_ARN.fullmatch(arn)
    return match.group(2) if match else None


def import_job_id(arn: str) -> JobId | None:
    """The job id inside a model-import-job ARN; None when *arn* is not one."""
    match = _IMPORT_JOB_ARN.fullmatch(arn)
    return JobId(match.group(3)) if match else None
