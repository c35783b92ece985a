"""TLS of a real server: its own authority, clients that trust it, certificates replaced while connections are open."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from tests.support.server import Server, wait_for

from outcrop.access.certificates import Certificate, ensure_certificate
from outcrop.access.tls import ServerTls
from outcrop.errors import BadSetting

HOSTS = ["127.0.0.1", "localhost"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, Certificate, Path]]:
    """A server with a certificate of the operator's; the certificate, and the folder that it is in."""
    folder = tmp_path / "pki"
    made = ensure_certificate(folder, HOSTS)
    server = Server(
        tmp_path / "home", cpu_threads=1, tls="true", tls_certificate=made.certificate, tls_key=made.key
    ).start()
    yield server, made, folder
    server.stop()


def connected(server: Server, authority: Path, protocol: str = "http/1.1") -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols([protocol])
    host, _, port = server.url.removeprefix("https://").partition(":")
    return context.wrap_socket(socket.create_connection((host, int(port)), timeout=10), server_hostname=host)


def ask(connection: ssl.SSLSocket) -> bytes:
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    found = b""
    while not found.endswith(b"\r\n\r\nok"):
        part = connection.recv(65536)
        assert part, found
        found += part
    return found


def serial(connection: ssl.SSLSocket) -> str:
    found = connection.getpeercert()
    assert found is not None
    return str(found["serialNumber"])


def replaced(made: Certificate, tmp_path: Path, name: str) -> Path:
    """Put a fresh pair in the place of *made*, as certbot does; its authority."""
    fresh = ensure_certificate(tmp_path / name, HOSTS)
    for new, old in ((fresh.key, made.key), (fresh.certificate, made.certificate)):
        part = old.with_name(old.name + ".new")
        shutil.copy2(new, part)
        part.replace(old)
    return fresh.authority


def test_a_certificate_is_replaced_at_sighup_and_no_connection_is_dropped(
    served: tuple[Server, Certificate, Path], tmp_path: Path
) -> None:
    server, made, folder = served
    old = connected(server, folder / "ca.pem")
    assert ask(old).startswith(b"HTTP/1.1 200")

    authority = replaced(made, tmp_path, "second")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)

    def is_new() -> bool:
        try:
            with connected(server, authority) as fresh:
                return serial(fresh) != serial(old)
        except ssl.SSLError:
            return False

    wait_for(is_new, 10)
    assert ask(old).startswith(b"HTTP/1.1 200")
    assert server.process.poll() is None
    old.close()


def test_a_certificate_that_cannot_be_used_is_told_of_and_the_old_one_stays(
    served: tuple[Server, Certificate, Path],
) -> None:
    server, made, folder = served
    made.certificate.write_text("-----BEGIN CERTIFICATE-----\nhalf wri")
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the TLS certificate in use stays" in (server.home / "server.log").read_text())

    with connected(server, folder / "ca.pem") as connection:
        assert ask(connection).startswith(b"HTTP/1.1 200")


def test_boto3_with_a_bearer_key_and_the_cli_reach_the_server_by_what_outcrop_env_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "home", cpu_threads=1, tls="true").start()
    try:
        command = [sys.executable, "-m", "outcrop.cli.main", "env", "--json", "--home", str(server.home)]
        exported = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
        for name, value in exported.items():
            monkeypatch.setenv(name, value)
        assert exported["AWS_CA_BUNDLE"] == str(server.home / "tls" / "ca.pem")
        assert {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "AWS_BEARER_TOKEN_BEDROCK"} <= set(
            exported
        )
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

        bedrock = boto3.client("bedrock")  # nothing but the environment
        seen: list[str] = []
        bedrock.meta.events.register(
            "before-send", lambda request, **_: seen.append(str(request.headers["Authorization"]))
        )
        assert bedrock.list_imported_models()["modelSummaries"] == []
        assert all("Bearer" in header for header in seen)
        assert seen

        trusting = ssl.create_default_context(cafile=exported["SSL_CERT_FILE"])
        assert trusting.verify_mode is ssl.CERT_REQUIRED
        monkeypatch.delenv("SSL_CERT_FILE")
        host, _, port = server.url.removeprefix("https://").partition(":")
        unknowing, old = ssl.create_default_context(), ssl.create_default_context(cafile=exported["SSL_CERT_FILE"])
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        for context in (unknowing, old):
            with socket.create_connection((host, int(port)), timeout=10) as plain, pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_hostname=host)
    finally:
        server.stop()


def test_files_that_change_are_loaded_without_a_signal(tmp_path: Path) -> None:
    made = ensure_certificate(tmp_path / "first", HOSTS)
    tls = ServerTls(tmp_path, HOSTS, certificate=made.certificate, key=made.key)
    tls.look()
    assert tls.loaded == 1
    replaced(made, tmp_path, "second")
    tls.look()
    assert tls.loaded == 2
    made.key.write_text("broken")
    tls.look()
    assert tls.loaded == 2


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: made.key.chmod(0o644), "chmod 600"),
        (lambda made: made.certificate.unlink(), "No such file"),
        (lambda made: made.certificate.write_text("x"), "cannot be used"),
        (lambda made: shutil.copy(ensure_certificate(made.key.parent / "o", HOSTS).key, made.key), "mismatch"),
    ],
)
def test_a_pair_that_cannot_be_used_stops_the_start_by_name(tmp_path: Path, spoil: object, told: str) -> None:
    made = ensure_certificate(tmp_path / "pki", HOSTS)
    spoil(made)  # type: ignore[operator]
    with pytest.raises(BadSetting, match=told):
        ServerTls(tmp_path, HOSTS, certificate=made.certificate, key=made.key)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="go together"):
        ServerTls(tmp_path, HOSTS, certificate=tmp_path / "a")


def test_the_authority_of_the_installation_is_made_once_and_its_files_are_private(tmp_path: Path) -> None:
    ServerTls(tmp_path / "tls", HOSTS)
    first = {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()}
    ServerTls(tmp_path / "tls", HOSTS)

    assert {path.name: path.read_bytes() for path in (tmp_path / "tls").iterdir()} == first
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "tls").iterdir())
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
