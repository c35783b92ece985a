"""Ceph with its S3 gateway: a monitor, an object store in memory and radosgw over one folder, gone with the test run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.support.server import free_port, wait_for

# The tenant is the account in the ARNs of its roles; Outcrop takes those of its own account only.
ACCOUNT, USER = "000000000000", "importer"
ACCESS_KEY, SECRET_KEY, REGION = "IMPORTERKEY", "ceph-secret", "us-east-1"

# No keys between the daemons, which listen on loopback only; without keys messages must go unencrypted (mode crc).
_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
auth cluster required = none
auth service required = none
auth client required = none
ms cluster mode = crc
ms service mode = crc
ms client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
ms bind msgr1 = false
public network = 127.0.0.0/8
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
osd data = {root}/osd
mon data = {root}/mon
mon data avail crit = 0
run dir = {root}
admin socket =
pid file =
log file = {root}/$name.log
mon cluster log file = {root}/cluster.log
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw s3 auth use sts = true
rgw sts key = 0123456789abcdef
"""
# What `ceph osd new` sends; its own program needs the distribution's Python.
_MON_COMMAND = """
import ctypes, sys
rados = ctypes.CDLL("librados.so.2")
cluster = ctypes.c_void_p()
assert rados.rados_create(ctypes.byref(cluster), b"admin") == 0
assert rados.rados_conf_read_file(cluster, sys.argv[1].encode()) == 0
assert rados.rados_connect(cluster) == 0
command = (ctypes.c_char_p * 1)(sys.argv[2].encode())
out, out_length, said, said_length = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_char_p(), ctypes.c_size_t()
arguments = [ctypes.byref(each) for each in (out, out_length, said, said_length)]
code = rados.rados_mon_command(cluster, command, ctypes.c_size_t(1), b"", ctypes.c_size_t(0), *arguments)
sys.exit(f"the monitor refused: {said.value}" if code < 0 else 0)
"""


class CephServer:
    """*unpacked*: the root that ``tests/ceph/install.sh`` filled."""

    def __init__(self, unpacked: Path, root: Path) -> None:
        (self._libraries,) = (unpacked / "usr" / "lib").glob("*-linux-gnu")
        self._bin = unpacked / "usr" / "bin"
        self._root = root
        self._conf = root / "ceph.conf"
        older = unpacked / "lib" / self._libraries.name
        paths = [self._libraries, older, self._libraries / "ceph"]
        self._environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, paths))}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def start(self) -> CephServer:
        mon_port, port = free_port(), free_port()
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self.url = f"http://127.0.0.1:{port}"
        for name in ("mon", "osd"):
            (self._root / name).mkdir()
        self._conf.write_text(
            _CONF.format(fsid=fsid, mon_port=mon_port, port=port, root=self._root, libraries=self._libraries)
        )
        monitors = str(self._root / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, monitors)
        self._run("ceph-mon", "--id", "a", "--mkfs", "--monmap", monitors)
        self._launch("ceph-mon", "--id", "a")
        self._mon_command(prefix="osd new", uuid=osd)
        self._run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", osd)
        self._launch("ceph-osd", "--id", "0")
        keys = ["--access-key", ACCESS_KEY, "--secret", SECRET_KEY, "--caps", "roles=*;user-policy=*"]
        self._run("radosgw-admin", "user", "create", "--tenant", ACCOUNT, "--uid", USER, "--display-name", USER, *keys)
        self._launch("radosgw", "-n", "client.rgw.a")
        wait_for(self._answers, 60)
        return self

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.kill()
            process.wait(10)

    def client(self, service: str = "s3", **more: Any) -> Any:
        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": SECRET_KEY}
        config = Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required")
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

    def role(self, name: str, statements: list[dict[str, Any]]) -> str:
        """ARN of a role that the owner may assume and that may do what *statements* allow."""
        iam = self.client("iam")

        def policy(*those: dict[str, Any]) -> str:
            # Without spaces: radosgw 16 reads the plus signs of a form as they stand.
            return json.dumps({"Version": "2012-10-17", "Statement": those}, separators=(",", ":"))

        principal = {"AWS": [f"arn:aws:iam::{ACCOUNT}:user/{USER}"]}
        owner = {"Effect": "Allow", "Principal": principal, "Action": ["sts:AssumeRole"]}
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=policy(owner))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="own", PolicyDocument=policy(*statements))
        return arn

    def _mon_command(self, **command: str) -> None:
        argv = [sys.executable, "-c", _MON_COMMAND, str(self._conf), json.dumps(command)]
        subprocess.run(argv, env=self._environment, check=True, timeout=60)

    def _run(self, program: str, *words: str) -> None:
        argv = [str(self._bin / program), "-c", str(self._conf), *words]
        argv = argv if program != "monmaptool" else [argv[0], *words]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}{self._logs()}"

    def _launch(self, program: str, *words: str) -> None:
        with (self._root / f"{program}.out").open("wb") as log:
            argv = [str(self._bin / program), "-c", str(self._conf), *words, "-f"]
            self._processes.append(subprocess.Popen(argv, env=self._environment, stdout=log, stderr=log))

    def _answers(self) -> bool:
        try:
            self.client().list_buckets()
        except Exception:
            assert all(process.poll() is None for process in self._processes), self._logs()
            return False
        return True

    def _logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self._root.glob("*.out"))
