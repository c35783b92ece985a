"""OpenStack Swift with its S3 API: four processes over one folder, made for a test run and thrown away with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.support.server import free_port, wait_for

ACCESS_KEY, SECRET_KEY, REGION = "models:importer", "swift-secret", "us-east-1"

_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {etc}
devices = {devices}
mount_check = false
user = {user}
log_level = WARNING
"""
_STORAGE = (
    _COMMON
    + """
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
fallocate_reserve = 0
"""
)
_PROXY = (
    _COMMON
    + """
[pipeline:main]
pipeline = catch_errors gatekeeper listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_models_importer = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""
)


class SwiftServer:
    """*bin_folder*: where ``swift-proxy-server`` and the others are. Needs a file system with user attributes."""

    def __init__(self, bin_folder: Path, root: Path) -> None:
        self._bin = bin_folder
        self._root = root
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def start(self) -> SwiftServer:
        etc, devices = self._root / "etc", self._root / "devices"
        (devices / "d1").mkdir(parents=True)
        etc.mkdir()
        (etc / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = test\nswift_hash_path_prefix = test\n")
        for kind in ("account", "container", "object"):
            port = free_port()
            self._ring(etc, kind, port)
            self._launch(etc, devices, kind, port, _STORAGE)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._launch(etc, devices, "proxy", port, _PROXY)
        wait_for(self._answers, 30)
        return self

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)

    def client(self, service: str = "s3", **more: Any) -> Any:
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        config = Config(s3={"addressing_style": "path"})
        return boto3.client(service, endpoint_url=self.url, region_name=REGION, config=config, **{**keys, **more})

    def store(self, *, endpoint: str | None = None, **more: Any) -> dict[str, Any]:
        """The settings of this server as an object store of Outcrop's."""
        keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY, "region": REGION}
        return {"endpoint": endpoint or self.url, **keys, **more}

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Put the files of *folder* under *prefix*; the URI."""
        s3 = self.client()
        if bucket not in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]:
            s3.create_bucket(Bucket=bucket)
        for path in folder.iterdir():
            s3.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
        return f"s3://{bucket}/{prefix}/"

    def _ring(self, etc: Path, kind: str, port: int) -> None:
        builder = str(etc / f"{kind}.builder")
        for words in (["create", "4", "1", "0"], ["add", f"r1z1-127.0.0.1:{port}/d1", "1"], ["rebalance"]):
            done = subprocess.run(
                [self._bin / "swift-ring-builder", builder, *words], capture_output=True, text=True, check=False
            )
            assert done.returncode in (0, 1), done.stdout + done.stderr  # 1 is a warning

    def _launch(self, etc: Path, devices: Path, kind: str, port: int, template: str) -> None:
        conf = etc / f"{kind}-server.conf"
        values = {"port": port, "etc": etc, "devices": devices, "kind": kind, "region": REGION, "secret": SECRET_KEY}
        conf.write_text(template.format(user=os.environ.get("USER", "root"), **values))
        with (self._root / f"{kind}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen([self._bin / f"swift-{kind}-server", conf, "--verbose"], stdout=log, stderr=log)
            )

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except Exception:
            assert all(process.poll() is None for process in self._processes), self._logs()
            return False
        return True

    def _logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in self._root.glob("*.log"))
