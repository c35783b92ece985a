"""A real S3 server over HTTP in a process of its own: moto with authorization on. Users, policies, roles, uploads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import boto3

from tests.support.server import free_port, wait_for

REGION = "us-east-1"
_FIRST_CALLS = 3  # that make the administrator; from then on every request is judged


@dataclass(frozen=True, slots=True)
class Keys:
    access_key_id: str
    secret_access_key: str

    def boto(self) -> dict[str, str]:
        return {"aws_access_key_id": self.access_key_id, "aws_secret_access_key": self.secret_access_key}


class S3Server(Protocol):
    """What the tests of transfer need of any S3 server."""

    url: str

    def client(self, service: str = "s3") -> Any:
        """A boto3 client with the owner's keys."""
        ...

    def upload(self, folder: Path, bucket: str, prefix: str) -> str: ...

    def store(self, *, endpoint: str | None = None, **more: Any) -> dict[str, Any]: ...


class MotoServer:
    """``moto`` on a free port. ``admin`` may do everything; what others may is given by policies.

    *is_open*: whoever asks may do everything.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        environment = dict(os.environ)
        if not is_open:
            environment["INITIAL_NO_AUTH_ACTION_COUNT"] = str(_FIRST_CALLS)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", self.url.rsplit(":", 1)[1]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers, 30)
        self.admin = Keys("any", "any")
        self.admin = self.user("admin", [{"Effect": "Allow", "Action": "*", "Resource": "*"}])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def client(self, service: str = "s3", keys: Keys | None = None, **more: Any) -> Any:
        keys = keys or self.admin
        return boto3.client(service, endpoint_url=self.url, region_name=REGION, **{**keys.boto(), **more})

    def user(self, name: str, statements: list[dict[str, Any]]) -> Keys:
        """A user that may do what *statements* allow."""
        iam = self.client("iam")
        iam.create_user(UserName=name)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        if statements:
            iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=policy)
        return Keys(made["AccessKeyId"], made["SecretAccessKey"])

    def role(self, name: str, statements: list[dict[str, Any]], *, trusts: dict[str, Any]) -> str:
        """ARN of a role that *trusts* may assume and that may do what *statements* allow."""
        iam = self.client("iam")
        trust = {"Effect": "Allow", "Principal": trusts, "Action": "sts:AssumeRole"}
        arn: str = iam.create_role(
            RoleName=name,
            AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
        )["Role"]["Arn"]
        policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=policy)
        return arn

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Put the files of *folder* under *prefix*; the URI."""
        s3 = self.client("s3")
        if bucket not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]:
            s3.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}/"

    def store(self, keys: Keys | None = None, *, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """The settings of this server as an object store of Outcrop's."""
        keys = keys or self.admin
        return {
            "endpoint": endpoint or self.url,
            "access_key_id": keys.access_key_id,
            "secret_access_key": keys.secret_access_key,
            **more,
        }

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/moto-api/", timeout=1).read()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True
