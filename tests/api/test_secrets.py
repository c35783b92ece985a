"""Where secrets of a running server are and are not: arguments, environments, logs, listeners of its processes."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.copies import UnixConnection, asked, listening_ports, listening_sockets
from tests.support.server import Server, wait_for

from outcrop.engines.llama_cpp_child import PREFIX

SCRIPT = (
    "def preprocess(request, ctx):\n    return {'messages': [{'role': 'user', 'content': 'Hi'}], 'max_tokens': 1}\n"
)
# Python asks for this module at its start: every key that the processes make is written down, beside what the test knows.
WITNESS = """
import os, secrets
_made = secrets.token_urlsafe
def token_urlsafe(size=None):
    found = _made(size)
    with open(os.environ.get("WITNESS") or {place!r}, "a") as file:
        file.write(found + "\\n")
    return found
secrets.token_urlsafe = token_urlsafe
"""


class Busy:
    """A server with two copies, a proxy, an object store and a key for weights; *known*: all its secrets by name."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        witness = folder / "witness"
        (folder / "modules").mkdir(parents=True)
        (folder / "modules" / "sitecustomize.py").write_text(WITNESS.format(place=str(witness)))
        store = {"buckets": ["far-*"], "endpoint": "http://127.0.0.1:9", "access_key_id": "AKIASTORESTORESTORE"}
        store["secret_access_key"] = "store-secret-4f1c9a7e2b"
        os.environ["PYTHONPATH"] = str(folder / "modules")
        os.environ["GUARD_MASTER"] = "7b" * 32
        try:
            self.server = Server(
                folder / "home",
                cpu_threads=1,
                imports_in_parallel=2,
                log_level="debug",
                slow_request_s=0,
                object_stores=json.dumps([store]),
                weight_keys='{"default": "env:GUARD_MASTER"}',
            ).start()
        finally:
            del os.environ["PYTHONPATH"], os.environ["GUARD_MASTER"]
        self.models = [self.server.import_model(tiny, name) for name in ("one", "two")]
        for arn in self.models:
            self.ask(arn)
        self._endpoint()
        keys = self.server.credentials
        self.known = {
            "secret access key": keys.secret_access_key,
            "bearer key": keys.bearer_key,
            "object store": store["secret_access_key"],
            "master key": "7b" * 32,
            "audit key": (self.server.home / "audit.key").read_text().strip(),
        }
        self.made = witness.read_text().split()
        self.known |= {f"made {number}": secret for number, secret in enumerate(self.made)}

    def ask(self, arn: str) -> None:
        self.server.client("bedrock-runtime").converse(
            modelId=arn, messages=[{"role": "user", "content": [{"text": "Hello"}]}], inferenceConfig={"maxTokens": 1}
        )

    def _endpoint(self) -> None:
        bundle = self.server.home / "buckets" / "bundles"
        bundle.mkdir(parents=True)
        (bundle / "inference.py").write_text(SCRIPT)
        with tarfile.open(bundle / "model.tar.gz", "w:gz") as archive:
            archive.add(bundle / "inference.py", "code/inference.py")
        sagemaker = self.server.client("sagemaker")
        container = {
            "ModelDataUrl": "s3://bundles/model.tar.gz",
            "Environment": {"OUTCROP_PROXY_TARGET": self.models[0]},
        }
        role = self.server.credentials.import_role_arn
        sagemaker.create_model(ModelName="m", PrimaryContainer=container, ExecutionRoleArn=role)
        variant = {"VariantName": "v", "ModelName": "m", "InitialInstanceCount": 1}
        sagemaker.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
        sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="c")
        wait_for(lambda: sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] != "Creating", 60)
        assert sagemaker.describe_endpoint(EndpointName="e")["EndpointStatus"] == "InService"

    @property
    def pids(self) -> list[int]:
        """The server's process and all below it."""
        assert self.server.process is not None
        parents: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = [self.server.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Busy]:
    busy = Busy(tmp_path_factory.mktemp("busy"), tiny)
    yield busy
    busy.server.stop()


def test_no_secret_is_in_an_argument_or_in_the_environment_of_a_child(busy: Busy) -> None:
    server, *children = busy.pids
    assert len(children) >= 4  # two engines, a proxy and its worker
    assert len(busy.made) >= 4
    for pid in (server, *children):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert [name for name, secret in busy.known.items() if secret.encode() in arguments] == []
    for pid in children:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert [name for name, secret in busy.known.items() if secret.encode() in environment] == []


def test_no_secret_is_in_a_log_and_those_on_the_disk_are_private(busy: Busy) -> None:
    busy.ask(busy.models[0])
    headers = {"Authorization": f"Bearer {busy.server.credentials.bearer_key}x"}
    wrong = urllib.request.Request(f"{busy.server.url}/v1/models", headers=headers)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(wrong, timeout=10)
    home = busy.server.home
    for path in home.rglob("*"):
        if not path.is_file() or path.is_symlink() or path.stat().st_size > 50_000_000:
            continue
        content = path.read_bytes()
        found = [name for name, secret in busy.known.items() if secret.encode() in content]
        if found:
            assert path.relative_to(home).parts[0] in ("credentials.json", "audit.key", "outcrop.db", "run", "tls"), (
                path,
                found,
            )
            assert path.stat().st_mode & 0o077 == 0, (path, found)
        assert "log" not in path.name or not found, (path, found)


def test_a_crash_dump_is_not_written_where_others_read_it(busy: Busy) -> None:
    for pid in busy.pids:
        limit = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file size" in line)
        assert limit.split()[4] == "0", (pid, Path(f"/proc/{pid}/cmdline").read_bytes())


# Every route of llama.cpp's server that its documentation or its source names, and what others call theirs.
ENGINE_PATHS = [
    *("/", "/index.html", "/health", "/v1/health", "/metrics", "/props", "/slots", "/slots/0?action=save", "/api/show"),
    *(
        "/api/tags",
        "/models",
        "/v1/models",
        "/models/load",
        "/completion",
        "/completions",
        "/v1/completions",
        "/infill",
    ),
    *("/chat/completions", "/v1/chat/completions", "/api/chat", "/v1/responses", "/v1/messages", "/apply-template"),
    *("/v1/messages/count_tokens", "/tokenize", "/detokenize", "/embedding", "/embeddings", "/v1/embeddings"),
    *("/rerank", "/v1/rerank", "/reranking", "/v1/reranking", "/lora-adapters", "/cors-proxy", "/ping", "/version"),
]
PROXY_PATHS = [("POST", "/invocations"), ("GET", "/metrics")]


def test_engines_listen_on_no_port_and_nothing_is_had_of_their_sockets_without_the_copy_s_secret(busy: Busy) -> None:
    _, *children = busy.pids
    engines = listening_sockets(children, busy.server.home / "run" / "sockets")
    assert len(engines) == 2
    assert not {pid for pid, _, _ in listening_ports(children)} & set(engines)
    for path in engines.values():
        for method in ("GET", "POST"):
            for route in (prefix + route for prefix in ("", PREFIX) for route in ENGINE_PATHS):
                for key in (None, "wrong", busy.server.credentials.bearer_key):
                    status, body = asked(UnixConnection(path), method, route, key)
                    assert status in (401, 403, 404), (method, route)
                    assert b"model" not in body, (method, route, body)
        # The right secret works, so what was refused was refused for the lack of it; that of one copy opens no other.
        answers = [asked(UnixConnection(path), "POST", f"{PREFIX}/v1/completions", key)[0] for key in busy.made]
        assert answers.count(200) == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_of_the_machine_cannot_connect_to_an_engine(busy: Busy, tmp_path: Path) -> None:
    _, *children = busy.pids
    folder = busy.server.home / "run" / "sockets"
    engines = listening_sockets(children, folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    # Every folder above is opened up, so that the one that is meant to hold is what holds.
    opened = [parent for parent in folder.parents if parent.stat().st_uid == os.getuid() and parent != Path("/")]
    modes = {parent: parent.stat().st_mode & 0o7777 for parent in opened}
    program = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    try:
        for parent in opened:
            parent.chmod(modes[parent] | 0o055)
        for pid, path in engines.items():
            for way in (path, f"/proc/{pid}/root{path}"):
                command = [
                    "setpriv",
                    "--reuid",
                    "65534",
                    "--regid",
                    "65534",
                    "--clear-groups",
                    "/usr/bin/env",
                    "python3",
                ]
                done = subprocess.run([*command, "-c", program, str(way)], check=False, capture_output=True, text=True)
                assert "PermissionError" in done.stderr, (way, done.stderr)
            assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 0
    finally:
        for parent, mode in modes.items():
            parent.chmod(mode)


def test_a_proxy_s_port_is_on_loopback_and_asks_for_its_own_secret(busy: Busy) -> None:
    _, *children = busy.pids
    found = listening_ports(children)
    assert len(found) == 1
    ((pid, address, port),) = found
    assert b"proxy" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert address in ("127.0.0.1", "::1")

    def status(method: str, path: str, key: str | None) -> int:
        return asked(http.client.HTTPConnection(address, port, timeout=20), method, path, key)[0]

    for method, path in PROXY_PATHS:
        for key in (None, "wrong", busy.server.credentials.bearer_key):
            assert status(method, path, key) in (401, 403), (method, path)
    statuses = [status(*PROXY_PATHS[0], secret) for secret in busy.made]
    assert sum(status not in (0, 401, 403) for status in statuses) == 1


def test_the_servers_own_port_is_the_only_one_that_it_listens_on(busy: Busy) -> None:
    server, *_ = busy.pids

    assert {port for _, _, port in listening_ports([server])} == {int(busy.server.url.rpartition(":")[2])}
