"""A real server in a process of its own, and real clients to it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from outcrop.access.credentials_file import Credentials, read
from outcrop.importing import rates

# What systemd does with the socket of a unit: sd_listen_fds(3).
HAND_OVER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
    " os.execv(sys.argv[2], sys.argv[2:])"
)


START_S = 100  # a start takes 2.5 s of processor time, which a machine that others use gave in no less than 14 s


class Server:
    """``outcrop serve`` on a free port over *home*; *settings* become OUTCROP_ variables.

    *store_mount*, *log_mount*, *database_mount*: options of a tmpfs that only the server sees in place of its weight
    store, its logs or its registry. *listener*: a socket that the test holds and the server takes, as systemd would
    hand it over. *prefix*: words before the command that starts it.
    """

    def __init__(
        self,
        home: Path,
        *,
        store_mount: str | None = None,
        log_mount: str | None = None,
        database_mount: str | None = None,
        listener: socket.socket | None = None,
        prefix: Sequence[str] = (),
        **settings: object,
    ) -> None:
        self.home = home
        self._prefix = list(prefix)
        self._handed: list[int] = []
        if listener is not None:
            self._handed = [listener.fileno()]
            self._prefix = [sys.executable, "-c", HAND_OVER, str(listener.fileno())]
        mounts = {"store": store_mount, "logs": log_mount, "database": database_mount}
        if database_mount is not None:
            home.mkdir(parents=True, exist_ok=True)
            (home / "outcrop.db").symlink_to(Path("database") / "outcrop.db")
        for folder, options in mounts.items():
            if options is not None:
                self._prefix += private_mount(home / folder, options)
        self._settings = settings
        self._emptied = 0  # how often; the names of jobs are taken for ever
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        variables = {f"OUTCROP_{name.upper()}": str(value) for name, value in self._settings.items()}
        environment = {**os.environ, "OUTCROP_HOME": str(self.home), "OUTCROP_PORT": "0", **variables}
        address = self.home / "run" / "server.json"
        address.unlink(missing_ok=True)
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._prefix, sys.executable, "-m", "outcrop.cli.main", "serve"],
                env=environment,
                stderr=log,
                pass_fds=self._handed,
            )
        wait_for(lambda: address.exists() or self.process.poll() is not None, START_S)
        assert address.exists(), (self.home / "server.log").read_text()[-3000:]
        return self

    @property
    def url(self) -> str:
        url: str = json.loads((self.home / "run" / "server.json").read_text())["url"]
        return url

    @property
    def credentials(self) -> Credentials:
        return read(self.home)

    def client(self, service: str, *, attempts: int = 1, **kwargs: Any) -> Any:
        keys = self.credentials
        given = {
            "aws_access_key_id": keys.access_key_id,
            "aws_secret_access_key": keys.secret_access_key,
            "region_name": keys.region,
            **kwargs,
        }
        config = Config(retries={"total_max_attempts": attempts}, read_timeout=120)
        return boto3.client(service, endpoint_url=self.url, config=config, **given)

    def put(self, folder: Path, key: str) -> str:
        """Put a checkpoint's folder into a bucket of the server; its URI."""
        target = self.home / "buckets" / "artifacts" / key
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in folder.rglob("*"):
            if path.is_file():
                place = target / path.relative_to(folder)
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(path.read_bytes())
        return f"s3://artifacts/{key}/"

    def create_job(self, uri: str, name: str, *, role: str | None = None, **more: Any) -> str:
        arn: str = self.client("bedrock").create_model_import_job(
            jobName=f"job-{name}-{self._emptied}" if self._emptied else f"job-{name}",
            importedModelName=name,
            roleArn=role or self.credentials.import_role_arn,
            modelDataSource={"s3DataSource": {"s3Uri": uri}},
            **more,
        )["jobArn"]
        return arn

    def ended_job(self, arn: str, timeout_s: float = 60) -> dict[str, Any]:
        bedrock = self.client("bedrock")
        job: dict[str, Any] = {}

        def has_ended() -> bool:
            job.update(bedrock.get_model_import_job(jobIdentifier=arn))
            return job["status"] != "InProgress"

        wait_for(has_ended, timeout_s)
        return job

    def import_model(self, folder: Path, name: str) -> str:
        """Import *folder*; the model's ARN."""
        job = self.ended_job(self.create_job(self.put(folder, name), name))
        assert job["status"] == "Completed", job.get("failureMessage")
        arn: str = job["importedModelArn"]
        return arn

    def empty(self) -> None:
        """Leave it running without models, whatever a test made of it."""
        self._emptied += 1
        if self.process is None or self.process.poll() is not None:
            self.start()
        for row in self.admin("/outcrop/v1/aliases")["aliases"]:
            self.admin(f"/outcrop/v1/aliases/{row['alias']}", "DELETE")
        bedrock = self.client("bedrock")
        for model in bedrock.list_imported_models()["modelSummaries"]:
            bedrock.delete_imported_model(modelIdentifier=model["modelArn"])

    def status(self) -> dict[str, Any]:
        return self.admin("/outcrop/v1/status")

    def admin(self, path: str, method: str = "GET", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """JSON of one of the server's own resources."""
        import urllib.request

        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, method=method, headers={"Authorization": f"Bearer {self.credentials.bearer_key}"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def store_bytes(self) -> int:
        """Bytes of all distinct files in the weight store; what it remembers of earlier imports is not counted."""
        found = (path for path in (self.home / "store").rglob("*") if path.name != rates.FILE)
        states = [path.stat() for path in found if path.is_file()]
        return sum({state.st_ino: state.st_size for state in states}.values())

    def patch(self, path: str, change: dict[str, Any]) -> dict[str, Any]:
        """Change one of the server's own resources; raises urllib's HTTPError when it is refused."""
        import urllib.request

        headers = {"Authorization": f"Bearer {self.credentials.bearer_key}"}
        request = urllib.request.Request(self.url + path, json.dumps(change).encode(), headers, method="PATCH")
        with urllib.request.urlopen(request, timeout=10) as response:
            found: dict[str, Any] = json.load(response)
        return found

    def kill(self) -> None:
        """SIGKILL: no goodbye."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(40)


def private_mount(folder: Path, options: str) -> list[str]:
    """What to put before a command so that it runs with a tmpfs over *folder*, in a mount namespace of its own.

    The four folders of a weight store are made in it first, since a read-only one could not be written later.
    """
    script = (
        'mkdir -p "$0" && mount -t tmpfs none "$0" && mkdir "$0"/blobs "$0"/artifacts "$0"/models "$0"/staging'
        ' && mount -o "remount,$1" "$0" && shift && exec "$@"'
    )
    flags = ["-m"] if os.geteuid() == 0 else ["-U", "-r", "-m"]
    return ["unshare", *flags, "sh", "-c", script, str(folder), options]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(is_true: Callable[[], bool], timeout_s: float = 20) -> None:
    """Poll until *is_true*; fail after *timeout_s* seconds."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {timeout_s} s")
        time.sleep(0.02)
