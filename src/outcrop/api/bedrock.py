"""The control plane: import jobs and imported models, in the shapes of ``bedrock/2023-04-20``."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from outcrop.access.identities import Principal
from outcrop.access.quotas import JOBS, MODELS, Quotas
from outcrop.api import bedrock_resources
from outcrop.api.bedrock_resources import Resources, checked_tags
from outcrop.api.pages import listing, page, when, with_one_more
from outcrop.errors import InvalidRequest, JobNotFound, ModelNotFound
from outcrop.ids import JobId, ModelId, import_job_arn, imported_model_arn, is_own_arn, random_id
from outcrop.importing.jobs import Importer
from outcrop.importing.states import Phase, wire_status
from outcrop.importing.weights import WeightStore
from outcrop.registry.records import ImportedModel, ImportJob
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue
from outcrop.serving.fleet import Fleet
from outcrop.telemetry.invocation_log import InvocationLog

Handler = Callable[[Mapping[str, Any], Principal], Awaitable[dict[str, Any]]]
UNITS_VERSION = "v1.0"

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
        quotas: Quotas,
        invocations: InvocationLog,
    ) -> None:
        self._region = region
        self._registry = registry
        self._importer = importer
        self._catalogue = catalogue
        self._fleet = fleet
        self._store = store
        self._quotas = quotas
        self._counting = asyncio.Lock()  # between a count and what adds to it
        resources = Resources(region=region, registry=registry, invocations=invocations)
        self.handlers: dict[str, Handler] = {
            **{name: getattr(self, method) for name, method in OPERATIONS.items()},
            **{name: getattr(resources, method) for name, method in bedrock_resources.OPERATIONS.items()},
        }

    async def create_job(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        role_account = re.sub(r"arn:aws[^:]*:iam::([0-9]*):.*", r"\1", params["roleArn"])
        if role_account != principal.account:
            raise InvalidRequest(
                f"The provided role ARN is invalid: {params['roleArn']} is not a role of account {principal.account}."
            )
        for field in ("jobTags", "importedModelTags"):
            checked_tags(params.get(field, ()), field)
        now = round(time.time(), 3)  # what the API shows of a time is all that is kept, so that filters agree with it
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
        async with self._counting:
            # Before the quotas: a call that is repeated because its answer was lost adds nothing to what it began.
            token = job.client_token
            if token and (earlier := await asyncio.to_thread(self._registry.job_of_token, job.account, token)):
                return {"jobArn": self._job_arn(earlier)}
            await self._check_quotas(principal.account)
            stored = await self._importer.submit(job)
        return {"jobArn": self._job_arn(stored)}

    async def _check_quotas(self, account: str) -> None:
        """Raises QuotaExceeded where one more job, or the model that it will bring, is too many for *account*."""
        models, jobs = await asyncio.gather(
            asyncio.to_thread(self._registry.all_models), asyncio.to_thread(self._registry.unfinished_jobs)
        )
        running = sum(job.account == account for job in jobs)
        self._quotas.check_count(account, JOBS, running)
        self._quotas.check_count(account, MODELS, running + sum(model.account == account for model in models))

    async def get_job(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        identifier = params["jobIdentifier"]
        if identifier.startswith("arn:") and not is_own_arn(identifier, self._region, principal.account):
            raise JobNotFound(
                f"Could not find model import job {identifier}: this is region {self._region}, "
                f"account {principal.account}."
            )
        job = await asyncio.to_thread(self._registry.job, principal.account, identifier)
        return {
            **self._job_summary(job),
            "roleArn": job.role_arn,
            "modelDataSource": job.request["modelDataSource"],
            "failureMessage": job.failure,
            "vpcConfig": job.request.get("vpcConfig"),
            "importedModelKmsKeyArn": self._kms_key_arn(job),
        }

    async def list_jobs(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        name = "ListModelImportJobs"
        wanted = with_one_more(page(name, params, _PHASES))
        rows = await asyncio.to_thread(self._registry.jobs, principal.account, wanted)
        return listing(
            name, params, "modelImportJobSummaries", rows, self._job_summary, lambda job: (job.created_at, job.job_id)
        )

    async def get_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        model = await self._model(params["modelIdentifier"], principal)
        job_arn = import_job_arn(self._region, model.account, model.job_id)
        job = await asyncio.to_thread(self._registry.job, principal.account, job_arn)
        return {
            **self._model_summary(model),
            "jobName": model.job_name,
            "jobArn": job_arn,
            "modelDataSource": {"s3DataSource": {"s3Uri": model.s3_uri}},
            "modelKmsKeyArn": model.facts.get("weight_key") or self._kms_key_arn(job),
            "customModelUnits": {
                "customModelUnitsPerModelCopy": model.model_units,
                "customModelUnitsVersion": UNITS_VERSION,
            },
        }

    async def list_models(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        name = "ListImportedModels"
        wanted = with_one_more(page(name, params, {}))
        rows = await asyncio.to_thread(self._registry.models, principal.account, wanted)
        return listing(
            name, params, "modelSummaries", rows, self._model_summary, lambda model: (model.created_at, model.model_id)
        )

    async def delete_model(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        """Take the model out of sight at once; its copies drain, then its files go."""
        model = await self._model(params["modelIdentifier"], principal)
        await asyncio.to_thread(self._registry.delete_model, principal.account, model.model_id)
        self._catalogue.remove(model)
        await self._fleet.remove(model.model_id)
        await asyncio.to_thread(self._store.remove_model, model.model_id)
        return {}

    async def _model(self, identifier: str, principal: Principal) -> ImportedModel:
        """The model of this ARN or name. Raises ModelNotFound."""
        if identifier.startswith("arn:") and not is_own_arn(identifier, self._region, principal.account):
            raise ModelNotFound(
                f"Could not find imported model {identifier}: this is region {self._region}, "
                f"account {principal.account}."
            )
        return await asyncio.to_thread(self._registry.model, principal.account, identifier)

    def _kms_key_arn(self, job: ImportJob) -> str | None:
        """The key that the job named, by id, alias or ARN, as an ARN."""
        key: str | None = job.request.get("importedModelKmsKeyId")
        if key is None or key.startswith("arn:"):
            return key
        return f"arn:aws:kms:{self._region}:{job.account}:{key if key.startswith('alias/') else f'key/{key}'}"

    def _job_arn(self, job: ImportJob) -> str:
        return import_job_arn(self._region, job.account, job.job_id)

    def _job_summary(self, job: ImportJob) -> dict[str, Any]:
        is_completed = job.phase == Phase.COMPLETED
        return {
            "jobArn": self._job_arn(job),
            "jobName": job.job_name,
            "status": wire_status(job.phase),
            "creationTime": when(job.created_at),
            "lastModifiedTime": when(job.modified_at),
            "endTime": None if job.ended_at is None else when(job.ended_at),
            "importedModelName": job.model_name,
            "importedModelArn": imported_model_arn(self._region, job.account, job.model_id) if is_completed else None,
        }

    def _model_summary(self, model: ImportedModel) -> dict[str, Any]:
        return {
            "modelArn": imported_model_arn(self._region, model.account, model.model_id),
            "modelName": model.model_name,
            "creationTime": when(model.created_at),
            "instructSupported": model.instruct_supported,
            "modelArchitecture": model.architecture,
        }
