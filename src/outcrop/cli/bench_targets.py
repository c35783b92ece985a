"""What a target of ``outcrop bench`` names: an endpoint, and the server of ours behind it, where it is one."""

from __future__ import annotations

import os
import time
from pathlib import Path

from outcrop.bench.drive import Look
from outcrop.bench.endpoints import Bedrock, Endpoint, Keys, OpenAI, SageMaker
from outcrop.cli.client import Client, connect
from outcrop.delivery import targets
from outcrop.errors import BadSetting


def endpoint_of(text: str, home: Path | None, *, stream: bool) -> tuple[Endpoint, Client | None]:
    """What *text* names, and our own server when it is ours. Raises BadSetting."""
    target = targets.parse(text)
    client = None if target.url else connect(home)
    if target.api == "openai":
        if client is not None:
            return OpenAI(f"{client.url}/v1", target.model, client.credentials.bearer_key, stream=stream), client
        return OpenAI(target.url, target.model, os.environ.get("OPENAI_API_KEY", ""), stream=stream), None
    if client is not None:
        keys = Keys(client.credentials.access_key_id, client.credentials.secret_access_key)
        url, region = client.url, client.credentials.region
    else:
        keys, region = _aws_keys(target)
        url = target.address(region)
    made = Bedrock if target.api == "bedrock" else SageMaker
    return made(url, target.model, keys, region, stream=stream), client


def _aws_keys(target: targets.Target) -> tuple[Keys, str]:
    """Credentials of the AWS chain and the region, which an ARN names itself. Raises BadSetting."""
    import botocore.session

    session = botocore.session.get_session()
    found = session.get_credentials()
    if found is None:
        raise BadSetting("no AWS credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    region = target.region(session.get_config_variable("region") or "us-east-1")
    return Keys(found.access_key, found.secret_key, found.token), region


def look_of(client: Client | None, model: str) -> Look | None:
    """Asks our own server how many copies the model has; None for another's."""
    if client is None:
        return None

    def look() -> tuple[int, int, int, int] | None:
        try:
            status = client.get("/outcrop/v1/status")
        except BadSetting:
            return None
        mine = [each for each in status["models"] if model in (each["model_name"], each["model_arn"])]
        copies = [each for each in status["copies"] if model in (each["model_name"], each["model_arn"])]
        ready = sum(each["state"] in ("ready", "evictable") for each in copies)
        starting = sum(each["state"] == "starting" for each in copies)
        return ready, starting, sum(each["held"] for each in mine), sum(each["in_flight"] for each in copies)

    return look


def windows_of(client: Client | None, model: str) -> dict[str, int]:
    """Billed windows times units, and cold starts, of the model so far; nothing for another's server."""
    if client is None:
        return {}
    now = int(time.time() * 1000)
    found = client.get(f"/outcrop/v1/usage/{now - 7_200_000}/{now + 1}")
    ids = [model_id for model_id, note in found["models"].items() if model in (note["name"], model_id)]
    ids += [model.rpartition("/")[2]]
    names = ("window_units", "cold_starts")
    return {name: sum(row[name] for row in found["rows"] if row["model_id"] in ids) for name in names}
