"""The rows as values. Times are seconds since the epoch, as the caller's clock gave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outcrop.ids import JobId, ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportJob:
    job_id: JobId
    account: str
    job_name: str
    model_name: str
    model_id: ModelId  # chosen at creation, so that a resumed job registers the same model
    role_arn: str
    s3_uri: str
    client_token: str | None
    request: Mapping[str, Any]
    phase: str
    progress: float  # 0..1 over the whole job
    failure: str | None
    timings: Mapping[str, float]  # phase -> seconds
    created_at: float
    modified_at: float
    ended_at: float | None
    detail: Mapping[str, Any] = field(default_factory=dict)  # report, transfer, files, scan: see importing.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    model_id: ModelId
    account: str
    model_name: str
    job_id: JobId
    job_name: str
    s3_uri: str
    architecture: str
    instruct_supported: bool
    model_units: int
    artifact: str
    facts: Mapping[str, Any]
    created_at: float
    dialect: str | None = None
    engine: str | None = None  # the one that an operator put it on; None: the settings', or what the import chose
