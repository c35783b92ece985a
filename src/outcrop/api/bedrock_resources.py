"""What is attached to jobs, models and the account: tags, resource policies, invocation logging.

Shapes are those of ``bedrock/2023-04-20``. Policies are kept as they were put; invocation logging
begins when its configuration is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from outcrop.access.identities import Principal
from outcrop.access.policy import Kind, parse
from outcrop.errors import InvalidRequest, JobNotFound, ModelNotFound, ResourceNotFound, ServiceError, TooManyTags
from outcrop.ids import import_job_id, import_job_resource, imported_model_id, imported_model_resource, is_own_arn
from outcrop.registry.attachments import MAX_TAGS, tag_map
from outcrop.registry.store import Registry
from outcrop.telemetry.invocation_log import InvocationLog

# Operation -> method of Resources. The compatibility page is made from this.
OPERATIONS = {
    "TagResource": "tag",
    "UntagResource": "untag",
    "ListTagsForResource": "list_tags",
    "PutResourcePolicy": "put_policy",
    "GetResourcePolicy": "get_policy",
    "DeleteResourcePolicy": "delete_policy",
    "PutModelInvocationLoggingConfiguration": "put_logging",
    "GetModelInvocationLoggingConfiguration": "get_logging",
    "DeleteModelInvocationLoggingConfiguration": "delete_logging",
}


class Resources:
    """Handlers by operation name; parameters are already parsed and validated against the service model."""

    def __init__(self, *, region: str, registry: Registry, invocations: InvocationLog) -> None:
        self._region = region
        self._invocations = invocations
        self._registry = registry
        self._attachments = registry.attachments

    async def tag(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        arn, tags = params["resourceARN"], checked_tags(params["tags"], "tags")
        resource = await self._taggable(arn, principal)
        try:
            await asyncio.to_thread(self._attachments.put_tags, principal.account, resource, tags)
        except TooManyTags as exc:
            raise TooManyTags(exc.message, resource_name=arn) from exc
        return {}

    async def untag(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        resource = await self._taggable(params["resourceARN"], principal)
        await asyncio.to_thread(self._attachments.drop_tags, principal.account, resource, params["tagKeys"])
        return {}

    async def list_tags(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        resource = await self._taggable(params["resourceARN"], principal)
        tags = await asyncio.to_thread(self._attachments.tags, principal.account, resource)
        return {"tags": [{"key": key, "value": value} for key, value in tags.items()]}

    async def put_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        """Keep a policy document for an imported model; it has a say from the next request on."""
        arn, text = params["resourceArn"], params["resourcePolicy"]
        parse(text, Kind.RESOURCE)
        try:
            resource = await self._model(arn, principal)
        except ResourceNotFound as exc:  # an error that this operation does not have
            raise InvalidRequest(exc.message) from exc
        await asyncio.to_thread(self._attachments.put_policy, principal.account, resource, text)
        return {"resourceArn": arn}

    async def get_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        resource = await self._model(params["resourceArn"], principal)
        return {"resourcePolicy": await asyncio.to_thread(self._attachments.policy, principal.account, resource)}

    async def delete_policy(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        resource = await self._model(params["resourceArn"], principal)
        await asyncio.to_thread(self._attachments.delete_policy, principal.account, resource)
        return {}

    async def put_logging(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        """Raises InvalidRequest for what cannot be delivered: a bucket that cannot be written, CloudWatch Logs."""
        config = params["loggingConfig"]
        if "cloudWatchConfig" in config:
            raise InvalidRequest(
                "loggingConfig.cloudWatchConfig cannot be delivered: there is no CloudWatch Logs here. Leave it "
                "out and give s3Config."
            )
        try:
            await self._invocations.check(principal.account, config)
        except ServiceError as exc:
            raise InvalidRequest(
                f"Failed to validate permissions for the bucket of loggingConfig.s3Config: {exc.message}"
            ) from exc
        await asyncio.to_thread(self._attachments.put_logging, principal.account, config)
        self._invocations.configure(principal.account, config)
        return {}

    async def get_logging(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        return {"loggingConfig": await asyncio.to_thread(self._attachments.logging, principal.account)}

    async def delete_logging(self, params: Mapping[str, Any], principal: Principal) -> dict[str, Any]:
        await asyncio.to_thread(self._attachments.put_logging, principal.account, None)
        self._invocations.configure(principal.account, None)
        return {}

    async def _taggable(self, arn: str, principal: Principal) -> str:
        """The job or model of this ARN as the registry names it. Raises ResourceNotFound."""
        if is_own_arn(arn, self._region, principal.account) and (job_id := import_job_id(arn)):
            try:
                await asyncio.to_thread(self._registry.job, principal.account, arn)
            except JobNotFound as exc:
                raise _not_found(arn) from exc
            return import_job_resource(job_id)
        return await self._model(arn, principal)

    async def _model(self, arn: str, principal: Principal) -> str:
        model_id = imported_model_id(arn)
        if model_id is None or not is_own_arn(arn, self._region, principal.account):
            raise _not_found(arn)
        try:
            await asyncio.to_thread(self._registry.model, principal.account, arn)
        except ModelNotFound as exc:
            raise _not_found(arn) from exc
        return imported_model_resource(model_id)


def checked_tags(tags: Sequence[Mapping[str, str]], field: str) -> dict[str, str]:
    """*tags* by key. Raises InvalidRequest for keys that occur twice or are AWS's own, TooManyTags."""
    keys = Counter(tag["key"] for tag in tags)
    if twice := sorted(key for key, times in keys.items() if times > 1):
        raise InvalidRequest(f"{field} has the key '{twice[0]}' more than once. Give each key once.")
    if reserved := sorted(key for key in keys if key.lower().startswith("aws:")):
        raise InvalidRequest(f"{field} has the key '{reserved[0]}'; keys that begin with 'aws:' are reserved.")
    if len(keys) > MAX_TAGS:
        raise TooManyTags(f"{field} has {len(keys)} tags; a resource has at most {MAX_TAGS}.")
    return tag_map(tags)


def _not_found(arn: str) -> ResourceNotFound:
    return ResourceNotFound(f"Could not find resource {arn}. Check the ARN, its region and account.")
