"""Where a target is and how calls to it are signed, found as AWS's SDKs find it. The front asks; workers are told."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from outcrop.awswire.sigv4 import Keys
from outcrop.errors import BadSetting
from outcrop.proxy.settings import ProxySettings
from outcrop.proxy.target import Endpoint

log = structlog.get_logger(__name__)

_LOOK_S = 20.0  # botocore renews temporary keys 10 to 15 minutes before their end; this only asks it
_NAME_S = 5


@dataclass(slots=True)
class Origin:
    """The target's endpoint and today's keys."""

    endpoint: Endpoint
    ca_bundle: str
    _credentials: Any
    fixed: Keys | None = None

    def keys(self) -> Keys:
        """Keys to sign with now; may ask a credentials service. Raises BadSetting when there are none."""
        if self.fixed is not None:
            return self.fixed
        if bearer := os.environ.get("AWS_BEARER_TOKEN_BEDROCK", ""):
            return Keys(bearer=bearer)
        if self._credentials is None:
            raise BadSetting(
                "there are no AWS credentials to sign calls to the target with: set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, give the container a role, or set AWS_BEARER_TOKEN_BEDROCK"
            )
        frozen = self._credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    async def watch(self, current: Keys, changed: Callable[[Keys], None]) -> None:
        """Tell of new keys, for ever. A credentials service that fails is asked again: the old keys may still do."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                found = await asyncio.to_thread(self.keys)
            except Exception:
                log.warning("credentials could not be renewed", exc_info=True)
                continue
            if found != current:
                current = found
                changed(found)


def find(settings: ProxySettings) -> Origin:
    """The origin that *settings* and AWS's own configuration name. Raises BadSetting."""
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    session = Session()
    try:
        # Lambda and SageMaker set AWS_REGION, which botocore alone does not read.
        region = settings.region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
        if not region:
            raise BadSetting("no region is set: give --region, or set AWS_REGION or AWS_DEFAULT_REGION")
        config = Config(connect_timeout=_NAME_S, read_timeout=_NAME_S, retries={"total_max_attempts": 1})
        client = session.create_client(
            "bedrock-runtime", region_name=region, endpoint_url=settings.endpoint_url, config=config
        )
        url = client.meta.endpoint_url.rstrip("/")
        ca_bundle = session.get_config_variable("ca_bundle") or ""
        model = settings.target
        if not model.startswith("arn:"):
            model = _arn(session, settings, region, config) or model
        return Origin(Endpoint(url, region, model), ca_bundle, session.get_credentials())
    except (BotoCoreError, ValueError) as exc:  # the latter of an endpoint URL that is none
        place = f" (endpoint URL {settings.endpoint_url})" if settings.endpoint_url else ""
        raise BadSetting(f"the AWS configuration cannot be used{place}: {exc}") from exc


def _arn(session: Any, settings: ProxySettings, region: str, config: Any) -> str | None:
    """The ARN of the imported model named *target*; None where it cannot be asked for, and the name must do."""
    with contextlib.suppress(Exception):
        bedrock = session.create_client(
            "bedrock", region_name=region, endpoint_url=settings.endpoint_url, config=config
        )
        found: str = bedrock.get_imported_model(modelIdentifier=settings.target)["modelArn"]
        return found
    log.warning("the target's ARN could not be asked for; its name is used", target=settings.target)
    return None
