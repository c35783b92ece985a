"""The control plane: import jobs and imported models, in the shapes of ``bedrock/2023-04-20``."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from outcrop.access.identities import Principal
from outcrop.errors import InvalidRequest
from outcrop.ids import JobId, ModelId, import_job_arn, imported_model_arn, random_id
from outcrop.importing.jobs import Importer
from outcrop.importing.states import Phase, wire_status
from outcrop.importing.weights import WeightStore
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Page, Registry
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.fleet import Fleet

Handler = Callable[[Mapping[str, Any], Principal], Awaitable[dict[str, Any]]]
UNITS_VERSION = "v1.0"
DEFAULT_PAGE = 100

# Operation -> method of Bedrock. The compatibility page is made from this.
OPERATIONS = {
    "CreateModelImportJob": "create_job",
    "GetModelImportJob": "get_job",
    "ListModelImportJobs": "list_jobs",
    "GetImportedModel": "get_model",
    "ListImportedModels": "list_models",
    "DeleteImportedModel": "delete_model",
}

_PHASES = {
    "InProgress": [phase for phase in Phase if wire_status(phase) == "InProgress"],
    "Completed": [Phase.COMPLETED],
    "Failed": [Phase.FAILED],
}


class Bedrock:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(
        self,
        *,
        region: str,
        registry: Registry,
        importer: Importer,
        catalogue: Catalogue,
        fleet: Fleet,
        store: WeightStore,
    ) -> None:
        self._region = region
        self._registry = registry
        self._importer = importer
        self._catalogue = catalogue
        self._fleet = fleet
        self._store = store
        self.handlers: dict[str, Handler] = {name: getattr(self, method) for name, method in OPERATIONS.items()}

    async def create_job(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        role_account = re.sub(r"arn:aws[^:]*:iam::([0-9]*):.*", r"\1", params["roleArn"])
        if role_account != principal.account:
            raise InvalidRequest(
                f"The provided role ARN is invalid: {params['roleArn']} is not a role of account {principal.account}."
            )
        now = time.time()
        job = ImportJob(
            job_id=JobId(random_id()),
            account=principal.account,
            job_name=params["jobName"],
            model_name=params["importedModelName"],
            model_id=ModelId(random_id()),
            role_arn=params["roleArn"],
            s3_uri=params["modelDataSource"]["s3DataSource"]["s3Uri"],
            client_token=params.get("clientRequestToken"),
            request=dict(params),
            phase=Phase.QUEUED,
            progress=0.0,
            failure=None,
            timings={},
            created_at=now,
            modified_at=now,
            ended_at=None,
        )
        stored = await self._importer.submit(job)
        return {"jobArn": self._job_arn(stored)}

    async def get_job(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        job = await asyncio.to_thread(self._registry.job, principal.account, params["jobIdentifier"])
        return {
            **self._job_summary(job),
            "roleArn": job.role_arn,
            "modelDataSource": job.request["modelDataSource"],
            "failureMessage": job.failure,
            "vpcConfig": job.request.get("vpcConfig"),
        }

    async def list_jobs(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        page = _page(params)
        rows = await asyncio.to_thread(self._registry.jobs, principal.account, page)
        return _listing("modelImportJobSummaries", rows, page, self._job_summary, lambda job: job.job_id)

    async def get_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        model = await asyncio.to_thread(self._registry.model, principal.account, params["modelIdentifier"])
        return {
            **self._model_summary(model),
            "jobName": model.job_name,
            "jobArn": import_job_arn(self._region, model.account, model.job_id),
            "modelDataSource": {"s3DataSource": {"s3Uri": model.s3_uri}},
            "customModelUnits": {
                "customModelUnitsPerModelCopy": model.model_units,
                "customModelUnitsVersion": UNITS_VERSION,
            },
        }

    async def list_models(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        page = _page(params)
        rows = await asyncio.to_thread(self._registry.models, principal.account, page)
        return _listing("modelSummaries", rows, page, self._model_summary, lambda model: model.model_id)

    async def delete_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        """Take the model out of sight at once; its copies drain, then its files go."""
        model = await asyncio.to_thread(self._registry.model, principal.account, params["modelIdentifier"])
        await asyncio.to_thread(self._registry.delete_model, principal.account, model.model_id)
        self._catalogue.remove(model)
        await self._fleet.remove(model.model_id)
        await asyncio.to_thread(self._store.remove_model, model.model_id)
        return {}

    def _job_arn(self, job: ImportJob) -> str:
        return import_job_arn(self._region, job.account, job.job_id)

    def _job_summary(self, job: ImportJob) -> dict[str, Any]:
        is_completed = job.phase == Phase.COMPLETED
        return {
            "jobArn": self._job_arn(job),
            "jobName": job.job_name,
            "status": wire_status(job.phase),
            "creationTime": _when(job.created_at),
            "lastModifiedTime": _when(job.modified_at),
            "endTime": None if job.ended_at is None else _when(job.ended_at),
            "importedModelName": job.model_name,
            "importedModelArn": imported_model_arn(self._region, job.account, job.model_id) if is_completed else None,
        }

    def _model_summary(self, model: ImportedModel) -> dict[str, Any]:
        return {
            "modelArn": imported_model_arn(self._region, model.account, model.model_id),
            "modelName": model.model_name,
            "creationTime": _when(model.created_at),
            "instructSupported": model.instruct_supported,
            "modelArchitecture": model.architecture,
        }


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _page(params: Mapping[str, Any]) -> Page:
    status = params.get("statusEquals")
    after, before = params.get("creationTimeAfter"), params.get("creationTimeBefore")
    return Page(
        limit=params.get("maxResults", DEFAULT_PAGE),
        ascending=params.get("sortOrder", "Descending") == "Ascending",
        created_after=after.timestamp() if after else None,
        created_before=before.timestamp() if before else None,
        name_contains=params.get("nameContains"),
        phases=_PHASES[status] if status else None,
        after=_decode_token(params["nextToken"]) if "nextToken" in params else None,
    )


def _listing(
    key: str, rows: list[Any], page: Page, summary: Callable[[Any], dict[str, Any]], row_id: Callable[[Any], str]
) -> dict[str, Any]:
    """One page; the token names the last row, so rows that are added meanwhile shift nothing."""
    token = None
    if len(rows) == page.limit:
        mark = json.dumps([rows[-1].created_at, row_id(rows[-1])])
        token = base64.urlsafe_b64encode(mark.encode()).decode()
    return {key: [summary(row) for row in rows], "nextToken": token}


def _decode_token(token: str) -> tuple[float, str]:
    try:
        created_at, row_id = json.loads(base64.urlsafe_b64decode(token))
        return float(created_at), str(row_id)
    except (ValueError, TypeError) as exc:
        raise InvalidRequest("The provided nextToken is invalid. Use the token of the previous page.") from exc
