"""Which action on which resource each door asks for, before it looks anything up.

AWS operations are authorised as AWS's own reference says (``access.actions``). A name stands for the ARN that it
resolves to; one that resolves to nothing is an ARN too, so that who may not look hears the same of both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from outcrop.access import actions
from outcrop.access.authorizer import Authorizer, Origin
from outcrop.access.identities import Principal
from outcrop.api.http import Request
from outcrop.awswire.service import Operation
from outcrop.errors import JobNotFound
from outcrop.ids import import_job_arn, import_job_id, imported_model_account, imported_model_arn
from outcrop.registry.store import Registry
from outcrop.serving.catalogue import Catalogue

# Members of requests that name a resource, by signing name -> type in the reference; None: an ARN of any type.
_NAMED: dict[str, dict[str, str | None]] = {
    "bedrock": {
        "modelId": "imported-model",
        "modelIdentifier": "imported-model",
        "jobIdentifier": "model-import-job",
        "guardrailIdentifier": "guardrail",
        "resourceARN": None,
        "resourceArn": None,
    },
    "sagemaker": {
        "EndpointName": "endpoint",
        "EndpointConfigName": "endpoint-config",
        "ModelName": "model",
        "ResourceArn": None,
    },
}
_PASSED = {"CreateModelImportJob": ("roleArn", "bedrock"), "CreateModel": ("ExecutionRoleArn", "sagemaker")}
_TAGS = ("tags", "jobTags", "importedModelTags", "Tags")
_TAG_KEYS = ("tagKeys", "TagKeys")
# Doors that show or change what belongs to every account: only the installation's own account may be let in.
_SHARED = frozenset({"GetMetrics", "GetStore", "CollectStore"})
_OWN_ACCOUNT = (["explain"], ["boundaries"])  # below access: about identities of the caller's account
_VERBS = {"GET": "Get", "PUT": "Put", "PATCH": "Update", "POST": "Create", "DELETE": "Delete"}

Facts = dict[str, str | list[str]]


class Permissions:
    """Asks the authorizer on behalf of the doors."""

    def __init__(
        self, authorizer: Authorizer, *, catalogue: Catalogue, registry: Registry, region: str, account: str
    ) -> None:
        self.authorizer = authorizer
        self._catalogue = catalogue
        self._registry = registry
        self._region = region
        self._account = account

    def bearer(self, principal: Principal, origin: Origin) -> None:
        """Whether *principal* may use the bearer key that it came with. Raises NotAllowed."""
        facts: Facts = {"bedrock:bearertokentype": principal.bearer}
        self.authorizer.check(principal, "bedrock:CallWithBearerToken", "*", origin, facts=facts)

    async def aws(
        self, operation: Operation, service: str, params: Mapping[str, Any], principal: Principal, origin: Origin
    ) -> None:
        """Whether *principal* may do an operation of a *service* (its signing name). Raises NotAllowed."""
        action = actions.action_of(service, operation.name)
        facts = self._facts(params, principal)
        resources = []
        for member, kind in _NAMED[service].items():
            value = params.get(member)
            if isinstance(value, str) and self._is_about(action, kind):
                resources.append(await self._resource(service, kind, value, principal))
        for resource in resources or ["*"]:
            self.authorizer.check(principal, action, resource, origin, facts=facts)
        if asked := params.get("retrieveAndGenerateConfiguration"):
            for model in _models_in(asked):
                self.invoke(model, principal, origin, streams=False)
        if operation.name in _PASSED:
            member, to = _PASSED[operation.name]
            if role := params.get(member):
                passed: Facts = {"iam:passedtoservice": f"{to}.amazonaws.com"}
                # Another account's role cannot be passed: the operation itself says so, to those who may pass theirs.
                self.authorizer.check(principal, "iam:PassRole", role, origin, owner=principal.account, facts=passed)

    def invoke(self, model: str, principal: Principal, origin: Origin, *, streams: bool) -> None:
        """Whether *principal* may have *model* generate, through a door that is not AWS's. Raises NotAllowed."""
        action = "bedrock:InvokeModelWithResponseStream" if streams else "bedrock:InvokeModel"
        self.authorizer.check(principal, action, self.model_arn(model, principal), origin)

    def named(self, operation: str, name: str, principal: Principal, origin: Origin) -> None:
        """Whether *principal* may ask for inference of a name that need not be one here. Raises NotAllowed."""
        if operation.startswith("InvokeEndpoint"):
            action = actions.action_of("sagemaker", operation)
            resource = actions.arn("sagemaker", "endpoint", self._region, principal.account, name.lower())
        else:
            action, resource = actions.action_of("bedrock", operation), self.model_arn(name, principal)
        self.authorizer.check(principal, action, resource, origin)

    def look(self, model: str | None, principal: Principal, origin: Origin) -> None:
        """Whether *principal* may list the models, or see one. Raises NotAllowed."""
        action = "bedrock:ListImportedModels" if model is None else "bedrock:GetImportedModel"
        resource = "*" if model is None else self.model_arn(model, principal)
        self.authorizer.check(principal, action, resource, origin)

    async def own(self, method: str, parts: Sequence[str], principal: Principal, origin: Origin) -> None:
        """Whether *principal* may use one of our own doors, *parts* being its decoded path. Raises NotAllowed."""
        name = own_action(method, parts)
        is_of_all = parts[0] == "access" and parts[1:2] not in _OWN_ACCOUNT and name != "GetAccessQuotas"
        if name in _SHARED or is_of_all:
            resource = f"arn:aws:outcrop:{self._region}:{self._account}:{'/'.join(parts)}"
        elif parts[0] == "models" and len(parts) > 1:
            resource = self.model_arn(parts[1], principal)
        elif parts[0] == "import-jobs" and len(parts) > 1:
            resource = await self._resource("bedrock", "model-import-job", parts[1], principal)
        else:
            resource = f"arn:aws:outcrop:{self._region}:{principal.account}:{'/'.join(parts)}"
        self.authorizer.check(principal, f"outcrop:{name}", resource, origin)

    def model_arn(self, identifier: str, principal: Principal) -> str:
        """The ARN that *identifier* (an ARN, an id, a name or an alias) stands for."""
        if identifier.startswith("arn:"):
            return identifier
        found = self._catalogue.id_of(principal.account, identifier)
        return imported_model_arn(self._region, principal.account, found or identifier)

    @staticmethod
    def model_of(params: Mapping[str, Any]) -> str:
        """The model that a request for inference names."""
        named = params.get("modelId")
        return named if isinstance(named, str) else next(iter(_models_in(params)), "")

    @staticmethod
    def _is_about(action: str, kind: str | None) -> bool:
        # The reference knows CountTokens for foundation models alone; here an imported one is counted with.
        return kind in (None, "imported-model") or kind in actions.resource_types(action)

    async def _resource(self, service: str, kind: str | None, value: str, principal: Principal) -> str:
        if kind is None or value.startswith("arn:"):
            return value
        if kind == "imported-model":
            return self.model_arn(value, principal)
        if kind == "model-import-job":
            try:
                job = await asyncio.to_thread(self._registry.job, principal.account, value)
            except JobNotFound:
                return import_job_arn(self._region, principal.account, import_job_id(value) or value)
            return import_job_arn(self._region, job.account, job.job_id)
        name = value.lower() if service == "sagemaker" else value
        return actions.arn(service, kind, self._region, principal.account, name)

    def _facts(self, params: Mapping[str, Any], principal: Principal) -> Facts:
        """Context keys that a request's own members give."""
        found: Facts = {}
        tags: dict[str, str] = {}
        for member in _TAGS:
            for tag in params.get(member) or ():
                tags[tag.get("key", tag.get("Key", ""))] = tag.get("value", tag.get("Value", ""))
        found |= {f"aws:requesttag/{key.lower()}": value for key, value in tags.items()}
        keys = [*tags, *(key for member in _TAG_KEYS for key in params.get(member) or ())]
        if keys:
            found["aws:tagkeys"] = keys
        config = params.get("guardrailConfig") or params
        if isinstance(guardrail := config.get("guardrailIdentifier"), str):
            found["bedrock:guardrailidentifier"] = self._guardrail(
                guardrail, str(config.get("guardrailVersion", "DRAFT")), principal
            )
        return found

    def _guardrail(self, identifier: str, version: str, principal: Principal) -> str:
        """As the condition key is documented: the guardrail's ARN, a colon and a number after it for a version."""
        is_arn = identifier.startswith("arn:")
        arn = identifier if is_arn else f"arn:aws:bedrock:{self._region}:{principal.account}:guardrail/{identifier}"
        return f"{arn}:{version}" if version.isdigit() else arn


def origin_of(request: Request) -> Origin:
    """What conditions of policies may ask of where *request* came from."""
    return Origin(
        source_ip=request.source_ip,
        is_secure=request.is_secure,
        user_agent=request.header_map().get("user-agent", ""),
    )


def own_action(method: str, parts: Sequence[str]) -> str:
    """The name after ``outcrop:`` of the action that one of our own doors asks for.

    Doors without a name of their own here are named after method and path, so that a new one is closed to everybody
    who was not given it.
    """
    match method, [parts[0], *("*" for _ in parts[1:2]), *parts[2:3]]:
        case "GET", ["models", "*"]:
            return "GetModel"
        case "PATCH", ["models", "*"]:
            return "UpdateModel"
        case "POST", ["models", "*", "evict"]:
            return "EvictModel"
        case "POST", ["models", "*", "warm"]:
            return "WarmModel"
        case "GET", ["models", "*", "decisions"]:
            return "GetModelDecisions"
        case "GET", ["models", "*", "logs"]:
            return "GetModelLogs"
        case "GET", ["models", "*", "scaling"]:
            return "GetModelScaling"
        case "PUT", ["models", "*", "scaling"]:
            return "PutModelScaling"
        case "GET", ["import-jobs", "*"]:
            return "GetImportJob"
        case "POST", ["import-jobs", "*", "cancel"]:
            return "CancelImportJob"
        case "POST", ["store", "*"] if parts[1] == "collect":
            return "CollectStore"
        case "GET", ["requests"]:
            return "ListRequests"
        case "GET", ["requests", "*"]:
            return "GetRequest"
        case "GET", ["aliases"]:
            return "ListAliases"
        case _, ["aliases", "*"] if method in ("PUT", "DELETE"):
            return f"{_VERBS[method]}Alias"
        case _, ["access", "*", *_]:
            return f"{_VERBS.get(method, method)}Access{_camel(parts[1])}"
    return f"{_VERBS.get(method, method.capitalize())}{_camel(parts[0])}"


def _models_in(asked: Mapping[str, Any]) -> list[str]:
    """The models that a configuration names, however deep."""
    inner = [model for value in asked.values() if isinstance(value, Mapping) for model in _models_in(value)]
    return [*inner, asked["modelArn"]] if isinstance(asked.get("modelArn"), str) else inner


def owner_of(model: str, principal: Principal) -> str:
    """The account to look *model* up in, once it was authorised: the one in its ARN, else the caller's."""
    return imported_model_account(model) or principal.account


def _camel(text: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in text.replace("_", "-").split("-"))
