"""Operations that are not served: what AWS refuses for imported models is refused alike, the rest is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from outcrop.errors import Refused, ServiceError, UnknownOperation
from outcrop.ids import imported_model_id

# botocore data bedrock/2023-04-20: the patterns of these operations' model identifiers admit no imported model.
REFUSED_FOR_IMPORTED_MODELS = {
    "CreateCustomModelDeployment": "imported models are served on demand",
    "CreateInferenceProfile": "imported models have no application inference profiles",
    "CreateModelCopyJob": "imported models are not copied; import the checkpoint there",
    "CreateModelCustomizationJob": "imported models are not customised; fine-tune the checkpoint and import it",
    "CreateModelInvocationJob": "imported models have no batch inference",
    "CreatePromptRouter": "prompt routers route between foundation models",
    "CreateProvisionedModelThroughput": "imported models have no provisioned throughput",
    "StartAsyncInvoke": "imported models are invoked synchronously or as a stream",
    "UpdateProvisionedModelThroughput": "imported models have no provisioned throughput",
}


def refusal(operation: str, params: Mapping[str, Any]) -> ServiceError:
    """The error for *operation*, whose *params* the service model accepts."""
    if reason := REFUSED_FOR_IMPORTED_MODELS.get(operation):
        for text in _texts(params):
            if imported_model_id(text):
                return Refused(f"{operation} does not support the model {text}: {reason}.")
    return UnknownOperation(f"{operation} is not implemented by this service.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
