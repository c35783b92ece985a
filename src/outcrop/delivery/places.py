"""Where a deployment goes: a server of this project, or AWS. Both are asked through boto3; what differs is here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from botocore.exceptions import ClientError
from msgspec import structs

from outcrop.errors import BadSetting
from outcrop.serving.migration.machine import OPEN
from outcrop.serving.migration.plan import Step

_CHUNK = 1 << 20


class Place(Protocol):
    """What a deployment needs of its target."""

    name: str
    role_arn: str

    def client(self, service: str) -> Any:
        """A boto3 client."""

    def upload(self, folder: Path, files: list[str], prefix: str, digests: dict[str, str]) -> str:
        """The URI under which *files* lie; those that are there already are not sent again."""

    def current(self, name: str) -> str | None:
        """What the name that applications use stands for now; None when it is not set."""

    def switch(self, name: str, model: str | None) -> None:
        """Point that name at a model; None takes it away."""

    def move(
        self, name: str, old: str, model: str, steps: Sequence[Step], tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        """Move that name's traffic from *old* to *model* step by step; what became of it, once it is over."""

    def what_switches(self, name: str) -> str:
        """In words, for a plan."""


@dataclass(slots=True)
class OutcropPlace:
    """A running server. *send* asks its own API: method, path, body."""

    role_arn: str
    buckets: Path
    clients: Callable[[str], Any]
    send: Callable[[str, str, Any], Any]
    name: str = "outcrop"
    poll_s: float = 1.0

    def client(self, service: str) -> Any:
        return self.clients(service)

    def upload(self, folder: Path, files: list[str], prefix: str, digests: dict[str, str]) -> str:
        target = self.buckets / "outcrop-deployments" / prefix
        for name in files:
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_file() and place.stat().st_size == (folder / name).stat().st_size:
                continue
            part = place.with_name(place.name + ".part")
            part.unlink(missing_ok=True)
            try:
                os.link(folder / name, part)
            except OSError:
                shutil.copyfile(folder / name, part)
            part.replace(place)
        return f"s3://outcrop-deployments/{prefix}/"

    def current(self, name: str) -> str | None:
        for row in self.send("GET", "/outcrop/v1/aliases", None)["aliases"]:
            if row["alias"] == name:
                return str(row["model_name"])
        return None

    def switch(self, name: str, model: str | None) -> None:
        if model is None:
            self.send("DELETE", f"/outcrop/v1/aliases/{name}", None)
        else:
            self.send("PUT", f"/outcrop/v1/aliases/{name}", {"model": model})

    def move(
        self, name: str, old: str, model: str, steps: Sequence[Step], tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        """One that an earlier run began is gone on with."""
        path = f"/outcrop/v1/migrations/{name}"
        source, target = f"bedrock:{old}", f"bedrock:{model}"
        known = self.send("GET", "/outcrop/v1/migrations", None)["migrations"]
        is_begun = any((row["name"], row["target"]) == (name, target) and row["phase"] in OPEN for row in known)
        if not is_begun:
            body = {"name": name, "source": source, "target": target, "steps": [structs.asdict(step) for step in steps]}
            self.send("POST", "/outcrop/v1/migrations", body)
        shown = 0
        while True:
            told: Mapping[str, Any] = self.send("GET", path, None)
            for event in told["events"][shown:]:
                tell(f"migration: {event['what']}")
            shown = len(told["events"])
            if told["phase"] not in OPEN:
                return told
            time.sleep(self.poll_s)

    def what_switches(self, name: str) -> str:
        return f"alias {name}"


@dataclass(slots=True)
class AwsPlace:
    """AWS, or what stands in at its endpoint URLs. *bucket*: s3://bucket/prefix for checkpoints of this machine.

    AWS has no aliases of imported models: the name is a parameter of Systems Manager that applications read.
    """

    role_arn: str
    bucket: str
    session: Any
    name: str = "aws"

    def client(self, service: str) -> Any:
        from botocore.config import Config

        return self.session.client(service, config=Config(read_timeout=900))

    def upload(self, folder: Path, files: list[str], prefix: str, digests: dict[str, str]) -> str:
        if not self.bucket.startswith("s3://"):
            raise BadSetting("a checkpoint on this machine needs --bucket s3://bucket/prefix to be uploaded to")
        bucket, _, base = self.bucket.removeprefix("s3://").partition("/")
        base = f"{base.rstrip('/')}/{prefix}".lstrip("/")
        s3 = self.client("s3")
        for name in files:
            key = f"{base}/{name}"
            with contextlib.suppress(ClientError):
                if s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256") == digests[name]:
                    continue
            s3.upload_file(str(folder / name), bucket, key, ExtraArgs={"Metadata": {"sha256": digests[name]}})
        return f"s3://{bucket}/{base}/"

    def current(self, name: str) -> str | None:
        ssm = self.client("ssm")
        try:
            return str(ssm.get_parameter(Name=name)["Parameter"]["Value"])
        except ssm.exceptions.ParameterNotFound:
            return None

    def switch(self, name: str, model: str | None) -> None:
        ssm = self.client("ssm")
        if model is None:
            ssm.delete_parameter(Name=name)
        else:
            ssm.put_parameter(Name=name, Value=model, Type="String", Overwrite=True)

    def move(
        self, name: str, old: str, model: str, steps: Sequence[Step], tell: Callable[[str], None]
    ) -> Mapping[str, Any]:
        """Raises BadSetting: whoever reads a parameter reads it whole."""
        raise BadSetting(
            "--gradual needs somebody between the applications and the models: AWS has no aliases of imported models. "
            "Deploy without it, and let outcrop migrate on a server of this project split the traffic."
        )

    def what_switches(self, name: str) -> str:
        return f"parameter {name} of Systems Manager"


def sha256_of(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            found.update(data)
    return found.hexdigest()
